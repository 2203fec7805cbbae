"""Folders at scale: several processes, kills, resumed runs, and what the manifest says of all that."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lwrn_fast import cli, models
from lwrn_fast.inference import manifest, work_queue
from lwrn_fast.inference import segment as lwrn_segment
from lwrn_fast.io import atomic, images

COMMAND = [sys.executable, "-m", "lwrn_fast"]
OPTIONS = ["--num-classes", "3", "--size", "16", "16"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
QUIET = os.environ | {"OMP_NUM_THREADS": "1", "LWRN_FAST_BACKEND": "reference"}

# The command, which also notes which labels it writes.
NOTING = """
import os, sys
from lwrn_fast import cli
from lwrn_fast.io import images
write = images.write_labels
def noted(path, labels):
    write(path, labels)
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{path.name} {os.getpid()}\\n")
images.write_labels = noted
sys.exit(cli.main())
"""


def make(folder: Path, count: int, bad: int = 0) -> list[Path]:
    """Images, the last ones of which are none, mixed with the others by name."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.RandomState(0)
    paths = [folder / f"{int(number):04}.png" for number in generator.permutation(count)]
    for i, path in enumerate(paths):
        pixels = generator.randint(0, 256, (16 + i % 8, 20, 3)).astype(np.uint8)
        if i < count - bad:
            Image.fromarray(pixels).save(path)
        elif i % 3:
            path.write_text("no image")
        else:
            path.touch()
    return paths


def segment(*arguments: object) -> int:
    return cli.main(["segment", *map(str, arguments), *OPTIONS])


def records(out: Path) -> dict[str, dict[str, Any]]:
    """The manifest by the inputs' names; all of its lines are whole."""
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text("utf-8").splitlines()]
    assert [line["input"] for line in lines] == sorted({line["input"] for line in lines})
    return {Path(line["input"]).name: line for line in lines}


def check(out: Path, good: list[Path], bad: list[Path]) -> None:
    """The manifest and the folder have what they should, and nothing else."""
    found = records(out)
    assert len(found) == len(good) + len(bad)
    for path in good:
        record = found[path.name]
        assert (record["state"], record["reason"], record["input"]) == ("done", None, str(path))
        (name,) = record["outputs"]
        assert (record["height"], record["width"]) == images.size(path) == images.size(out / name)
        assert record["stamps"] == [manifest.stamp(path), manifest.stamp(out / name)]
        assert record["milliseconds"] > 0
    for path in bad:
        assert found[path.name]["state"] == "failed"
        assert found[path.name]["reason"] == "is not an image"
    assert len({record["fingerprint"] for record in found.values()}) == 1
    names = [name for path in good for name in found[path.name]["outputs"]]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "manifest.jsonl", ".lwrn_fast"])


def workers(launcher: int) -> dict[str, int]:
    """Process ids by RANK of what torchrun has started."""
    found = {}
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        variables = dict(entry.partition("=")[::2] for entry in Path(f"/proc/{child}/environ").read_text().split("\0"))
        if "RANK" in variables:
            found[variables["RANK"]] = int(child)
    return found


def wait_for(condition: Any, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "it has ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in Linux's /proc")
def test_a_thousand_images_two_processes_and_a_kill(tmp_path, capsys):
    paths = make(tmp_path / "in", 1000, bad=20)
    good, bad = paths[:-20], paths[-20:]
    out, notes, script = tmp_path / "out", tmp_path / "notes", tmp_path / "command.py"
    script.write_text(NOTING)
    command = [*TORCHRUN, str(script), "segment", str(tmp_path / "in"), "--out", str(out), *OPTIONS]
    environment = QUIET | {"NOTES": str(notes)}

    def noted() -> list[list[str]]:
        return [line.split() for line in notes.read_text().splitlines()] if notes.exists() else []

    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    wait_for(lambda: len(noted()) > 300 and len({pid for _, pid in noted()}) == 2, process)
    before = manifest.read(out)
    os.kill(workers(process.pid)["1"], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=300)

    assert process.returncode == 1  # torchrun's own
    assert "exitcode  : 2" in stderr
    assert stdout.endswith(f"980 of 1000 images are done, 20 failed: {out / 'manifest.jsonl'}\n")
    check(out, good, bad)
    assert {name for name, _ in noted()} == {path.name for path in good}
    assert len(noted()) <= len(good) + 2  # of each process the one in flight
    assert len({pid for _, pid in noted()}) == 4
    after = records(out)
    assert len(before) > 250
    for path, line in before.items():
        assert after[Path(path).name] == json.loads(line)

    # what is done is left alone, what failed is tried again
    capsys.readouterr()
    assert segment(tmp_path / "in", "--out", out, "--resume", "--backend", "reference") == 2
    text = capsys.readouterr()
    assert text.err.splitlines() == [f"lwrn-fast: error: {path}: is not an image" for path in sorted(bad)]
    assert "\n0 images\n980 of 1000 images are done, 20 failed: " in text.out
    check(out, good, bad)


def test_ctrl_c_and_resume(tmp_path):
    paths = make(tmp_path / "in", 300)
    out = tmp_path / "out"
    command = [*COMMAND, "segment", str(tmp_path / "in"), "--out", str(out), *OPTIONS, "--resume"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=QUIET)
    wait_for(lambda: len(list(out.glob("*.png"))) > 10, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stderr == "lwrn-fast: error: interrupted\n"
    before = {path: manifest.stamp(path) for path in out.glob("*.png")}
    assert 10 < len(before) < 300

    for path in paths[20:]:
        if not (out / path.name).exists():
            path.unlink()
    left = [path for path in paths if path.exists()]
    assert segment(tmp_path / "in", "--out", out, "--resume", "--backend", "reference") == 0
    check(out, left, [])
    again = [path for path, stamp in before.items() if manifest.stamp(path) != stamp]
    assert len(again) <= 1


def test_two_runs_at_once(tmp_path):
    paths = make(tmp_path / "in", 60, bad=3)
    out, notes = tmp_path / "out", tmp_path / "notes"
    command = [sys.executable, "-c", NOTING, "segment", str(tmp_path / "in"), "--out", str(out), *OPTIONS, "--resume"]
    processes = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=QUIET | {"NOTES": str(notes)})
        for _ in range(2)
    ]
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 2
    check(out, paths[:-3], paths[-3:])
    assert sorted(line.split()[0] for line in notes.read_text().splitlines()) == sorted(p.name for p in paths[:-3])


@pytest.fixture
def holder(tmp_path):
    """A process that has begun a run in tmp_path / "out" and holds its first image, and does no more."""
    (tmp_path / "out").mkdir()
    code = f"""
import sys, time
from pathlib import Path
from lwrn_fast.inference import work_queue, folders, segment
options = segment.Options(Path({str(tmp_path / "out")!r}), num_classes=3, size=(16, 16), resume=True)
(options.out / ".lwrn_fast").mkdir()
run = folders._Run([{str(tmp_path / "in")!r}], options, folders.settings(segment.build(options)[0], options))
with work_queue.joined(options.out / ".lwrn_fast", run.begin) as plan:
    assert next(iter(plan)).begun == 0
    print("holding", flush=True)
    time.sleep(300)
"""
    make(tmp_path / "in", 4)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=QUIET | {"LWRN_FAST_BACKEND": "auto"}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    yield process
    process.kill()
    process.communicate()


def test_an_image_of_a_dead_process_is_taken_over(tmp_path, holder, capsys):
    out = tmp_path / "out"
    make(tmp_path / "other", 1)
    assert segment(tmp_path / "other", "--out", out, "--resume") == 2
    assert capsys.readouterr().err == f"lwrn-fast: error: {out}: a run with other PATHS is going on in this folder\n"
    (out / f"{atomic._shared_prefix(out / '0000.png')}abcd_123").write_text("half")  # as who is killed might leave

    def kill_when_only_its_image_is_left() -> None:
        while len(list(out.glob("*.png"))) < 3:
            time.sleep(0.05)
        assert not (out / "0000.png").exists()
        holder.kill()

    killer = threading.Thread(target=kill_when_only_its_image_is_left)
    killer.start()
    assert segment(tmp_path / "in", "--out", out, "--resume") == 0
    killer.join()
    assert "4 images, " in capsys.readouterr().out
    check(out, sorted((tmp_path / "in").iterdir()), [])


class TestResume:
    """In one process."""

    @pytest.fixture
    def done(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> Path:
        """A finished run over tmp_path / "in"."""
        make(tmp_path / "in", 3)
        assert segment(tmp_path / "in", "--out", tmp_path / "out", "--resume") == 0
        capsys.readouterr()
        return tmp_path / "out"

    def again(self, out: Path, *options: object) -> set[str]:
        """Return the results that another run writes."""
        before = {path: manifest.stamp(path) for path in out.rglob("*.png")}
        assert segment(out.parent / "in", "--out", out, "--resume", *options) == 0
        return {path.name for path in out.rglob("*.png") if before.get(path) != manifest.stamp(path)}

    def test_nothing_is_done_twice(self, done):
        written = (done / "manifest.jsonl").read_bytes()
        assert self.again(done) == set()
        assert (done / "manifest.jsonl").read_bytes() == written

    def test_what_changed_is_done_again(self, done):
        make(done.parent / "new", 2)
        os.replace(done.parent / "new" / "0001.png", done.parent / "in" / "0001.png")
        (done / "0002.png").unlink()
        assert self.again(done) == {"0001.png", "0002.png"}
        Image.new("P", (20, 16)).save(done / "0000.png")
        assert self.again(done) == {"0000.png"}
        check(done, sorted((done.parent / "in").iterdir()), [])

    def test_new_images_do_not_change_names(self, done):
        """Though by order a new image would have had the name of an old one's result."""
        Image.new("RGB", (20, 16)).save(done.parent / "in" / "0001.jpg")
        assert self.again(done) == {"0001_2.png"}
        assert {name: record["outputs"] for name, record in records(done).items()} == {
            **{"0000.png": ["0000.png"], "0001.png": ["0001.png"], "0002.png": ["0002.png"]},
            **{"0001.jpg": ["0001_2.png"]},
        }

    def test_a_failed_image_that_is_mended_or_gone(self, done, capsys):
        for name in ("bad1", "bad2"):
            (done.parent / "in" / f"{name}.png").write_text("no image")
        assert segment(done.parent / "in", "--out", done, "--resume") == 2
        assert [records(done)[f"{name}.png"]["state"] for name in ("bad1", "bad2")] == ["failed", "failed"]
        (done.parent / "in" / "bad1.png").unlink()
        Image.new("RGB", (20, 16)).save(done.parent / "in" / "bad2.png")
        assert self.again(done) == {"bad2.png"}
        check(done, sorted((done.parent / "in").iterdir()), [])

    @pytest.mark.parametrize(
        ("option", "text"),
        [
            (["--dtype", "bf16"], "dtype f32, here it is bf16"),
            (["--size", "16", "32"], "size [16, 16], here it is [16, 32]"),
            (["--overlay"], "overlay False, here it is True"),
            (["--backend", "reference"], "backend auto, here it is reference"),
            (["--model", "rf_lw_mbv2", "--checkpoint", "{weights}"], "weights "),
        ],
        ids=["dtype", "size", "overlay", "backend", "weights"],
    )
    def test_other_options_are_refused(self, option, text, done, capsys):
        weights = done.parent / "other.pth"
        if "--checkpoint" in option:
            torch.manual_seed(3)
            torch.save(models.rf_lw_mbv2(3).state_dict(), weights)
        before = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()}
        arguments = ["segment", str(done.parent / "in"), "--out", str(done), "--resume", *OPTIONS]
        assert cli.main([*arguments, *(part.format(weights=weights) for part in option)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"lwrn-fast: error: {done}: has results with {text}")
        assert {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()} == before

    def test_torn_lines_of_a_journal(self, done):
        """Two processes were killed while they wrote, one of them with the whole machine; a third went on after
        them."""
        lines = (done / "manifest.jsonl").read_text("utf-8").splitlines()
        (done / "manifest.jsonl").write_text(lines[0] + "\n", "utf-8")
        journal = done / ".lwrn_fast" / "journal.jsonl"
        journal.write_text("\n".join(["", lines[1][:100], "\0" * 50, "", lines[2], "", lines[1][:-1]]), "utf-8")
        assert self.again(done) == {"0001.png"}
        check(done, sorted((done.parent / "in").iterdir()), [])
        assert not journal.exists()

    def test_a_journal_goes_on_after_a_torn_line(self, done):
        (done / ".lwrn_fast" / "journal.jsonl").write_text('{"input": "/a", "outp')
        journal = manifest.Journal(done)
        line = {"input": "/b", "outputs": [], "state": "failed", "fingerprint": "", "stamps": []}
        journal.append(line)
        journal.close()
        found = manifest.read(done)
        assert len(found) == 4
        assert json.loads(found["/b"]) == line

    def test_an_image_that_kills_processes(self, done, capsys):
        """A plan as three processes left it that died over the same image; the next run tries once more."""
        place = done / ".lwrn_fast" / "plan"
        (done / "0001.png").unlink()
        entries = [json.dumps({"input": str(done.parent / "in" / "0001.png"), "outputs": ["0001.png"]})]
        work_queue.write(place, {"images": 1, "paths": [], "errors": []}, [(entries[0], b"3")])
        assert segment(done.parent / "in", "--out", done, "--resume") == 2
        assert capsys.readouterr().err.endswith("0001.png: 3 processes ended while they worked on it\n")
        assert records(done)["0001.png"]["state"] == "failed"
        assert self.again(done) == {"0001.png"}

    def test_an_interrupted_image_does_not_count_as_deadly(self, tmp_path):
        place = tmp_path / "plan"
        work_queue.write(place, {"images": 2}, [('{"input": "/a"}', b"0"), ('{"input": "/b"}', b"2")])
        plan = work_queue.Plan(place)
        job = next(iter(plan))
        assert (job.entry, job.begun) == ({"input": "/a"}, 0)
        assert list(work_queue.unfinished(place)) == [({"input": "/a"}, 1), ({"input": "/b"}, 2)]
        plan.close()
        assert list(work_queue.unfinished(place)) == [({"input": "/b"}, 2)]


class TestProcesses:
    def test_only_the_first_one_speaks_and_fails(self, tmp_path, monkeypatch, capsys):
        (bad,) = make(tmp_path / "in", 1, bad=1)
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
        assert segment(tmp_path / "in", "--out", tmp_path / "out") == 0
        text = capsys.readouterr()
        assert text.out == ""
        assert text.err == f"lwrn-fast: error: {bad}: is not an image\n"
        # torchrun's processes begin again, and the image is not tried again
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        assert segment(tmp_path / "in", "--out", tmp_path / "out") == 2
        where = tmp_path / "out" / "manifest.jsonl"
        assert capsys.readouterr().err == f"lwrn-fast: error: 1 image failed, {where} says why\n"
        assert records(tmp_path / "out")[bad.name]["rank"] == 1
        # but by those of another torchrun it is
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "two")
        assert segment(tmp_path / "in", "--out", tmp_path / "out") == 2
        assert capsys.readouterr().err == f"lwrn-fast: error: {bad}: is not an image\n"

    def test_each_has_a_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert lwrn_segment.device("cuda") == "cuda:0"
        monkeypatch.setenv("LOCAL_RANK", "3")
        assert lwrn_segment.device("cuda") == "cuda:1"
        assert lwrn_segment.device("cpu") == "cpu"

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
    @pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["plain", "resume"])
    def test_no_gpu(self, resume, tmp_path, capsys):
        make(tmp_path / "in", 1)
        assert segment(tmp_path / "in", "--out", tmp_path / "out", "--device", "cuda", *resume) == 2
        assert capsys.readouterr().err == "lwrn-fast: error: --device cuda: PyTorch finds no GPU here\n"

    def test_results_are_not_taken_for_images(self, tmp_path, capsys):
        make(tmp_path / "in", 1)
        assert segment(tmp_path / "in", "--out", tmp_path / "in", "--resume") == 2
        assert "is one of PATHS" in capsys.readouterr().err
        assert len(list((tmp_path / "in").iterdir())) == 1

    def test_what_cannot_be_found_is_said(self, tmp_path, capsys):
        (tmp_path / "empty").mkdir()
        make(tmp_path / "in", 1)
        assert segment(tmp_path / "empty", tmp_path / "in", "--out", tmp_path / "out", "--resume") == 2
        assert capsys.readouterr().err == f"lwrn-fast: error: {tmp_path / 'empty'}: no images in this folder\n"
        assert list(records(tmp_path / "out")) == ["0000.png"]


@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["plain", "resume"])
def test_folders_below(resume, tmp_path):
    """The results lie as the images do, and in a folder among these are not taken for images."""
    make(tmp_path / "in", 2)
    make(tmp_path / "in" / "a" / "b", 1)
    make(tmp_path / "in" / "a" / ".hidden", 1)
    os.symlink(tmp_path / "in", tmp_path / "in" / "a" / "loop")
    out = tmp_path / "in" / "out"
    for _ in range(2):
        assert segment(tmp_path / "in", "--out", out, "--recursive", *resume) == 0
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert names == ["0000.png", "0001.png", "a/b/0000.png"]


def test_a_signal_as_a_file_is_made_leaves_nothing(tmp_path, monkeypatch):
    """Python tells a signal behind any instruction, also behind the one that has made a file."""

    def interrupted(*arguments: Any) -> None:
        open(*arguments).close()
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "open", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        images.write_labels(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_where_a_result_should_go(tmp_path, capsys):
    """Such as that for the images of a folder that is called a.png; what can be done is."""
    make(tmp_path / "in" / "a.png", 1)
    Image.new("RGB", (20, 16)).save(tmp_path / "in" / "a.jpg")
    assert segment(tmp_path / "in", "--out", tmp_path / "out", "--recursive") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a.png/0000.png: cannot be written (" in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_many_of_one_name_are_named_in_a_moment():
    """Names are looked for from the last one on, or these would take minutes."""
    found = [images.ImageFile(f"/{i}/a.jpg", f"/{i}/a.jpg", "") for i in range(20_000)]
    names = images.output_names(found, Path("out"), [".png"])
    assert names[:2] == [["a.png"], ["a_2.png"]]
    assert names[-1] == ["a_20000.png"]


def awkward(folder: Path) -> dict[bytes, str | None]:
    """A folder as people have them, with files to pass over; by name, why an image cannot be read, None if it can."""
    folder.mkdir()
    data = {}
    for kind in ("png", "jpeg", "bmp"):
        buffer = io.BytesIO()
        Image.fromarray(np.random.RandomState(0).randint(0, 256, (16, 20, 3)).astype(np.uint8)).save(buffer, kind)
        data[kind] = buffer.getvalue()
    png, place = data["png"], data["png"].index(b"IDAT") - 4
    exif = b"\0\0\0\7eXIfno tiff" + struct.pack(">I", zlib.crc32(b"eXIfno tiff"))
    files = {
        b"a.jfif": (data["jpeg"], None),
        b"a.png": (png, None),
        b"exif.png": (png[:place] + exif + png[place:], None),
        b"Stra\xdfe.png": (png, None),
        b"Stra\xdfe.bmp": (data["bmp"], None),
        b"line\nfeed\x1b[2J.png": (png, None),
        b"10:30.JPG": (data["jpeg"], None),
        b"-o.png": (png, None),
        b"%s.png": (png, None),
        "e\u0301 \u202e.png".encode(): (png, None),
        b"x" * 251 + b".png": (png, None),
        b"cut\xff.png": (png[:-60], "cannot be read"),
        b"empty.webp": (b"", "is not an image"),
        b"text\n.png": (b"text", "is not an image"),
    }
    passed = {b"._a.png": b"\0\5\26\7", b".hidden.png": png, b"a.cr2": b"raw", b"b.CR2": b"raw", b"notes.txt": b"text"}
    for name, content in [*passed.items(), *((name, content) for name, (content, _) in files.items())]:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(content)
    return {name: why for name, (_, why) in files.items()}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 1, 2], ids=["plain", "resume", "two_processes"])
def test_a_folder_as_people_have_them(processes, tmp_path):
    """Every image that can be read is done, whatever it and the others are called; each other one has its line."""
    files = awkward(tmp_path / "in")
    good, bad = (sum((why is None) is state for why in files.values()) for state in (True, False))
    out = tmp_path / "out"
    start = [*TORCHRUN, "-m", "lwrn_fast"] if processes == 2 else COMMAND
    command = [*start, "segment", str(tmp_path / "in"), "--out", str(out), "--overlay", *OPTIONS]
    command += ["--resume"] if processes else []
    done = subprocess.run(command, env=QUIET | {"PYTHONIOENCODING": "utf-8"}, capture_output=True, timeout=300)
    assert done.returncode == (1 if processes == 2 else 2)  # torchrun's own
    said = done.stdout + done.stderr
    assert b"UnicodeEncodeError" not in said
    assert b"\x1b[2J" not in said
    assert b"2 images are skipped, Pillow cannot read them here: 2 .cr2" in said
    results = {os.fsencode(path.name) for path in out.iterdir() if path.suffix == ".png"}
    assert len(results) == 2 * good
    assert {b"a.png", b"a_2.png", b"10:30.png", b"-o.png", b"%s.png", b"Stra\xdfe.png", b"Stra\xdfe_2.png"} <= results
    assert not [name for name in results if b"hidden" in name]
    if processes != 2:
        lines = done.stderr.splitlines()
        assert len(lines) == bad
        assert all(line.startswith(b"lwrn-fast: error: ") for line in lines)
    if processes:
        found = {os.fsencode(name): record for name, record in records(out).items()}
        assert {name: record["reason"] and record["state"] for name, record in found.items()} == {
            name: why and "failed" for name, why in files.items()
        }
        assert all((why or "") in (found[name]["reason"] or "") for name, why in files.items())


def test_raw_images_alone(tmp_path, capsys):
    """That there are images of a kind that cannot be read is said even where nothing else is there."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.CR3").touch()
    for arguments in ([], ["--resume"]):
        assert segment(tmp_path / "in", "--out", tmp_path / "out", *arguments) == 2
        output = capsys.readouterr()
        assert "1 image is skipped, Pillow cannot read it here: 1 .cr3" in output.out
        assert f"{tmp_path / 'in'}: no images in this folder" in output.err


def test_an_error_that_nobody_thought_of_costs_one_image(tmp_path, monkeypatch, capsys):
    paths = make(tmp_path / "in", 4)
    write = images.write_labels

    def fails(path: Path, labels: np.ndarray) -> None:
        if path.name == paths[1].name:
            raise KeyError("odd\nand more")
        write(path, labels)

    monkeypatch.setattr(images, "write_labels", fails)
    for number, arguments in enumerate(([], ["--resume"])):
        out = tmp_path / str(number)
        assert segment(tmp_path / "in", "--out", out, *arguments) == 2
        assert len(list(out.glob("*.png"))) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"lwrn-fast: error: {paths[1]}: ")
