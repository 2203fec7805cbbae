"""README.md and docs/ run as they are written: the ```python and ```sh blocks of a page, in order, in a folder of their
own, as a reader with that page alone would run them.

A comment that the page does not show stands before a block and tells what it needs:
<!-- test: setup photos -->         makes something that readers have: photos, a checkpoint, data (see SETUPS)
<!-- test: needs g++ onnx -->       the block is skipped where a command or a package is absent
<!-- test: refused without GPU -->  where there is none, the block runs and must fail with one line that says so
<!-- test: long -->                 skipped on a GPU, where it takes longer than a test may
<!-- test: installs -->             runs in a copy of the sources and an environment of its own, by tests/packaging
<!-- test: output -->               before a ```text block: the output of the block before it
"""

import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lwrn_fast
from lwrn_fast import cli, models
from lwrn_fast.io import images
from lwrn_fast.training import generate
from support.compiling import missing
from support.fake_devices import camera, screen
from support.pages import BLOCKS, PAGES, ROOT, RUN, SHOWN, Block, blocks

# Seconds that the commands of one block may take.
MAX_SECONDS = 300.0


def make_photos(folder: Path) -> None:
    (folder / "photos").mkdir()
    for i in range(2):
        images.write(folder / "photos" / f"{i}.jpg", generate.draw_image(0, "test", i, (96, 128))[0])
    shutil.copy(folder / "photos" / "0.jpg", folder / "photo.jpg")


def make_checkpoint(folder: Path) -> None:
    """Write a checkpoint in the form of the published ones."""
    torch.manual_seed(0)
    state = models.rf_lw_mbv2(num_classes=21).state_dict()
    torch.save({"segmenter": state}, folder / "rf_lw_mbv2_voc.pth.tar")


def make_data(folder: Path) -> None:
    generate.generate(folder / "data", 6, 0, (64, 64))


def make_image(folder: Path) -> None:
    """Write a model's input as a program without Python reads it."""
    torch.randn(1, 3, 512, 512).numpy().tofile(folder / "image.f32")


def make_sources(folder: Path) -> None:
    """Link the folders that commands of the source tree name."""
    for name in ("bench", "csrc", "docs"):
        (folder / name).symlink_to(ROOT / name)


def make_clip(folder: Path) -> None:
    """Write a second of drawn shapes."""
    av = pytest.importorskip("av")
    with av.open(str(folder / "in.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for i in range(12):
            frame = generate.draw_image(0, "test", i // 6, (96, 128))[0]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(frame, i, 1))))
        container.mux(stream.encode(None))


def make_camera(folder: Path) -> dict[str, str]:
    """Start a camera that is unplugged after some time."""
    return camera(folder, 12)


SETUPS = {
    "photos": make_photos,
    "clip": make_clip,
    "camera": make_camera,
    "checkpoint": make_checkpoint,
    "data": make_data,
    "image": make_image,
    "sources": make_sources,
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Return variables with a home, a screen, and this installation's `python`, `lwrn-fast` and `torchrun` in PATH."""
    home = tmp_path_factory.mktemp("home")
    commands = {"python": "", "lwrn-fast": " -m lwrn_fast", "torchrun": " -m torch.distributed.run"}
    for name, module in commands.items():
        path = home / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n')
        path.chmod(0o755)
    with nullcontext({}) if missing("Xvfb") else screen() as shown:
        yield {**os.environ, **shown, "HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}


@pytest.fixture
def as_before():
    """Undo a page's choice of backend and threads, and drop the code that it compiled."""
    threads = torch.get_num_threads()
    with lwrn_fast.use_backend("auto"):
        yield
    torch.set_num_threads(threads)
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_runs_as_written(page, environment, as_before, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", environment["HOME"])
    names: dict[str, object] = {"__name__": "__main__"}
    printed, skipped = "", []
    for block in blocks(page):
        if "output" in block.marks:
            assert lines(printed) == lines(block.text), f"{block}: prints\n{printed}"
        if block.language not in RUN or block.installs():
            continue
        if block.why_skipped() is not None:
            skipped.append(f"{block}: {block.why_skipped()}")
            continue
        for setup in block.setups():
            environment = environment | (SETUPS[setup](tmp_path) or {})
        if block.is_refused():
            with pytest.raises(Exception, match=r"^[^\n]*\b(GPU|CUDA|NVIDIA)\b"):
                run(block, names, environment)
        else:
            printed = run(block, names, environment)
    if skipped:
        pytest.skip(f"all but {'; '.join(skipped)}")


def run(block: Block, names: dict[str, object], environment: dict[str, str]) -> str:
    """Return the output of a block. Raise the errors of its Python, RuntimeError with the last line of a command."""
    if block.language == "python":
        # with empty lines before it, so that a traceback names the line of the page
        with redirect_stdout(StringIO()) as out:
            exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), names)
        return out.getvalue()
    command = ["bash", "-eu", "-o", "pipefail", "-c", block.text]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=MAX_SECONDS
    )
    if done.returncode:
        last = (done.stderr.splitlines() or ["it says nothing"])[-1]
        raise RuntimeError(f"{last}\n{block}:\n{block.text}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_there_are_pages_and_most_blocks_run():
    assert len(PAGES) >= 8
    runnable = [block for block in BLOCKS if block.language in RUN]
    assert len(runnable) > 30
    assert sum(block.why_skipped() is None for block in runnable) > len(runnable) / 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_have_a_language_and_known_marks(page):
    for block in blocks(page):
        assert block.language in RUN + SHOWN, f"{block}: {block.language!r}"
        for mark in block.marks:
            assert re.match(r"needs |setup |(output|installs|long|refused without GPU)$", mark), f"{block}: {mark!r}"
        assert set(block.setups()) <= set(SETUPS), str(block)


def anchors(page: Path) -> set[str]:
    """Return the names of headings in links, as GitHub makes them."""
    lines = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL).splitlines()
    titles = [line.lstrip("# ") for line in lines if re.match(r"#{1,6} ", line)]
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


FOR_DEVELOPERS = [ROOT / f"{name}.md" for name in ("ARCHITECTURE", "CHANGELOG", "CONTRIBUTING", "SECURITY")]


@pytest.mark.parametrize("page", [*PAGES, *FOR_DEVELOPERS], ids=lambda page: page.name)
def test_links_and_images_are_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{page.name}: {target}"
        assert path.resolve().is_relative_to(ROOT), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(path), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_the_text_are_there(page):
    """Each path of the source tree in `...` exists."""
    for path in re.findall(r"`(?:python )?((?:bench|csrc|docs|kernels|lwrn_fast|tests)/[\w./*-]+)", page.read_text()):
        assert list(ROOT.glob(path.rstrip("/"))), f"{page.name}: {path}"


def commands(page: Path) -> list[str]:
    """Return the lwrn-fast commands that no test runs: in the text, and in blocks that are skipped."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = re.findall(r"`lwrn-fast ([^`]+)`", text)
    for block in blocks(page):
        if block.language == "sh" and block.why_skipped() is not None:
            named += re.findall(r"(?:lwrn-fast|-m lwrn_fast) ([^#\n]+)", block.text)
    return named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_do_not_run_here_exist(page):
    parser = cli._parser()
    known = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
    for command in commands(page):
        name, *words = command.split()
        assert name in known, f"{page.name}: lwrn-fast {command}"
        options = {option for action in known[name]._actions for option in action.option_strings}
        assert {word for word in words if word.startswith("--")} <= options, f"{page.name}: lwrn-fast {command}"


def test_every_page_is_linked_from_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"](docs/{page.name})" not in text] == []


def test_images_can_be_read():
    for path in [*(ROOT / "docs").rglob("*.png"), *(ROOT / "docs").rglob("*.jpg")]:
        with Image.open(path) as image:
            assert np.asarray(image.convert("RGB")).std() > 5, path


def test_drawings_are_as_the_script_draws_them(tmp_path):
    subprocess.run([sys.executable, ROOT / "docs" / "images" / "draw.py", tmp_path], check=True)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == sorted(path.name for path in (ROOT / "docs" / "images").glob("*.svg"))
    for name in drawn:
        assert (tmp_path / name).read_text() == (ROOT / "docs" / "images" / name).read_text(), f"{name}: run draw.py"
