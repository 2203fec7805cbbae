"""The demonstration, at a small size: the main job in one command."""

import numpy as np
import pytest
import torch
from PIL import Image

from lwrn_fast import demo, models


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    small = demo.picture(96, 128)
    monkeypatch.setattr(demo, "INPUT", (64, 64))
    monkeypatch.setattr(demo, "RUNS", 1)
    monkeypatch.setattr(demo, "picture", lambda: small)


def test_bundled_picture_and_generated_weights(tmp_path, capsys):
    assert demo.main(["--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.count("UNTRAINED") == 2
    for part in ("rf_lw_mbv2, 21 classes", "plain PyTorch, NCHW", "speed-up", " x", "1 image, "):
        assert part in text
    difference = float(text.split("logits ")[1].split(" ")[0])
    assert difference < 1e-4
    with Image.open(tmp_path / "labels" / "drawn_picture.png") as labels:
        assert len(np.unique(np.array(labels))) > 5
    assert (tmp_path / "labels" / "drawn_picture_overlay.png").exists()
    assert models.load(tmp_path / demo.WEIGHTS).num_classes == 21


def test_the_weight_file_is_the_same_every_time(tmp_path):
    for seed, name in enumerate(["a", "b"]):
        torch.manual_seed(seed)
        demo.generate_weights(str(tmp_path / name))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_photographs_and_checkpoint(tmp_path, capsys):
    torch.save(models.rf_lw_mbv2(num_classes=5).state_dict(), tmp_path / "five.pth")
    Image.fromarray(demo.picture()).save(tmp_path / "photo.jpg")
    arguments = [str(tmp_path / "photo.jpg"), str(tmp_path / "no.jpg"), "--checkpoint", str(tmp_path / "five.pth")]
    assert demo.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    output = capsys.readouterr()
    assert "UNTRAINED" not in output.out
    assert "speed-up" in output.out
    assert output.err.startswith("lwrn-fast: error: ")
    assert output.err.endswith("no.jpg: cannot be read (no such file or folder)\n")
    assert sorted(path.name for path in (tmp_path / "out" / "labels").iterdir()) == ["photo.png", "photo_overlay.png"]


def test_what_stops_it_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert demo.main(["--out", str(tmp_path / "file")]) == 2
    assert demo.main(["--out", str(tmp_path), "--checkpoint", str(tmp_path / "file")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_the_drawn_picture():
    picture = demo.picture()
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert picture.std() > 30
