"""The command `lwrn-fast segment`: the files that it writes and the lines that it prints."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lwrn_fast import backends, cli, models
from lwrn_fast.io import images
from support.commands import COMMAND, MARK, assert_labels, expected_labels, forget, labels, random_image, save


class TestSegment:
    def test_folder_and_files(self, tmp_path, checkpoint, capsys):
        save(tmp_path / "in" / "one.jpg", quality=90)
        save(tmp_path / "in" / "TWO.PNG", random_image(33, 70, 1))
        (tmp_path / "in" / "notes.txt").write_text("not an image, and not asked for")
        three = save(tmp_path / "three.bmp", random_image(20, 20, 2))
        out = tmp_path / "new" / "out"
        arguments = ["segment", str(tmp_path / "in"), str(three), str(three), "--checkpoint", str(checkpoint)]
        assert cli.main([*arguments, "--out", str(out)]) == 0
        assert sorted(path.name for path in out.iterdir()) == ["TWO.png", "one.png", "three.png"]
        for source, result in (("in/one.jpg", "one.png"), ("in/TWO.PNG", "TWO.png"), ("three.bmp", "three.png")):
            image = images.read(tmp_path / source)
            assert_labels(out / result, expected_labels(checkpoint, image))
        text = capsys.readouterr().out
        assert text.startswith("rf_lw_mbv2, 7 classes, trained weights")
        assert "3 images, " in text
        assert "UNTRAINED" not in text
        for step in ("pre ", "infer ", "post "):
            assert step in text

    @pytest.mark.parametrize(
        ("option", "size"), [(["--size", "40", "96"], (40, 96)), (["--scale", "0.5"], (24, 32))], ids=["size", "scale"]
    )
    def test_size_of_the_input(self, option, size, tmp_path, checkpoint):
        photo = save(tmp_path / "a.png")
        arguments = ["segment", str(photo), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
        assert cli.main([*arguments, *option]) == 0
        assert_labels(tmp_path / "out" / "a.png", expected_labels(checkpoint, images.read(photo), size))

    @pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
    def test_overlay_and_verify(self, dtype, tmp_path, checkpoint, capsys):
        photo = save(tmp_path / "a.png")
        out = tmp_path / "out"
        arguments = ["segment", str(photo), "--checkpoint", str(checkpoint), "--dtype", dtype, "--out", str(out)]
        assert cli.main([*arguments, "--overlay", "--verify"]) == 0
        classes, image = labels(out / "a.png"), images.read(photo)
        overlay = images.read(out / "a_overlay.png")
        np.testing.assert_array_equal(overlay[classes == 0], image[classes == 0])
        mixed = (image.astype(float) + models.PALETTE[classes]) / 2
        assert np.abs(overlay - mixed)[classes != 0].max() <= 0.5
        line = next(line for line in capsys.readouterr().out.splitlines() if "difference" in line)
        difference = float(line.split("logits ")[1].split(" ")[0])
        assert difference < {"f32": 1e-4, "bf16": 0.3, "f16": 0.03}[dtype]
        assert f" of {classes.size} labels (" in line

    def test_untrained_says_so_and_is_the_same_every_time(self, tmp_path, capsys):
        photo = save(tmp_path / "a.png")
        results = []
        for out in ("x", "y"):
            torch.manual_seed(len(results))
            arguments = ["--out", str(tmp_path / out), "--model", "rf_lw_mbv2", "--num-classes", "3"]
            assert cli.main(["segment", str(photo), *arguments]) == 0
            results.append(labels(tmp_path / out / "a.png"))
        np.testing.assert_array_equal(*results)
        text = capsys.readouterr().out
        assert "rf_lw_mbv2, 3 classes, UNTRAINED weights" in text
        assert "the labels mean nothing" in text

    def test_leaves_the_chosen_backend_alone(self, tmp_path, checkpoint):
        photo, before = save(tmp_path / "a.png"), backends.requested()
        arguments = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), "--backend", "reference"]
        assert cli.main(["segment", str(photo), *arguments, "--verify"]) == 0
        assert backends.requested() == before

    def test_same_stems_do_not_overwrite(self, tmp_path, checkpoint, capsys):
        photos = [
            save(tmp_path / name, random_image(16 + i, 24)) for i, name in enumerate(["a.jpg", "a.png", "b/A.png"])
        ]
        photos.append(save(tmp_path / "a_overlay.png", random_image(30, 24)))
        arguments = ["segment", *map(str, photos), "--overlay", "--checkpoint", str(checkpoint)]
        assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
        heights = {path.name: images.read(path).shape[0] for path in (tmp_path / "out").iterdir()}
        assert heights == {
            **{"a.png": 16, "a_overlay.png": 16, "a_2.png": 17, "a_2_overlay.png": 17},
            **{"A_3.png": 18, "A_3_overlay.png": 18, "a_overlay_2.png": 30, "a_overlay_2_overlay.png": 30},
        }
        assert f"{photos[1]} is in {tmp_path / 'out' / 'a_2.png'}" in capsys.readouterr().out

    def test_never_overwrites_an_image(self, tmp_path, checkpoint):
        photo = save(tmp_path / "a.png")
        before = photo.read_bytes()
        assert cli.main(["segment", str(photo), "--checkpoint", str(checkpoint), "--out", str(tmp_path)]) == 0
        assert photo.read_bytes() == before
        assert labels(tmp_path / "a_2.png").shape == (48, 64)

    def test_runs_again_over_its_own_results(self, tmp_path, checkpoint):
        arguments = ["segment", str(save(tmp_path / "a.jpg")), "--checkpoint", str(checkpoint)]
        for _ in range(2):
            assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1:strict"])
def test_names_that_cannot_be_encoded(encoding, tmp_path):
    """On stdout, where a result has another name than its image."""
    for ending in (b".png", b".bmp"):
        for name in (b"Stra\xdfe", "Stra\u00dfe\u3042".encode()):
            save(Path(os.fsdecode(os.fsencode(tmp_path) + b"/in/" + name + ending)))
    command = [*COMMAND, "segment", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--size", "16", "16"]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")
    assert sum(b" is in " in line for line in done.stdout.splitlines()) == 2
    assert len(list((tmp_path / "out").iterdir())) == 4


class TestProcess:
    @pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
    def test_ctrl_c(self, tmp_path, checkpoint):
        photo = save(tmp_path / "in" / "0.png", random_image(96, 128))
        for number in range(1, 2000):  # more than are done while this process waits for its turn
            os.link(photo, tmp_path / "in" / f"{number}.png")
        out = tmp_path / "out"
        command = [*COMMAND, "segment", str(tmp_path / "in"), "--checkpoint", str(checkpoint), "--out", str(out)]
        environment = os.environ | {"LWRN_FAST_BACKEND": "reference"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        deadline = time.monotonic() + 120
        while not list(out.glob("*.png")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 130
        assert stderr == f"{MARK}interrupted\n"
        assert list(out.glob(".*")) == []
        for path in out.iterdir():
            assert labels(path).shape == (96, 128)

    @pytest.mark.parametrize("absent", ["tqdm", "PIL"])
    def test_without_an_optional_package(self, absent, tmp_path, checkpoint, monkeypatch, capsys):
        photos = [str(save(tmp_path / name)) for name in ("a.png", "b.png")]
        monkeypatch.setitem(sys.modules, absent, None)
        if absent == "PIL":
            forget(monkeypatch, "io.images", "io.decoding", "inference.segment", "inference.folders")
        code = cli.main(["segment", *photos, "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")])
        output = capsys.readouterr()
        if absent == "tqdm":
            assert code == 0
            assert "2 images, " in output.out
        else:
            assert code == 2
            assert "needs Pillow: pip install pillow" in output.err
            assert len(output.err.splitlines()) == 1
