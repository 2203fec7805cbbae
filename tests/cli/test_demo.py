"""The demonstration, at a small size: the main job in one command."""

import numpy as np
import pytest
import torch
from PIL import Image

from lwrn_fast import demo, models
from lwrn_fast.training import generate


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "INPUT", (64, 64))
    monkeypatch.setattr(demo, "RUNS", 1)


def test_drawn_images_and_the_weights_of_the_package(tmp_path, capsys):
    assert demo.main(["--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for part in ("rf_lw_mbv2, 8 classes", "they know drawn shapes", "3 images, ", "plain PyTorch, NCHW", "speed-up"):
        assert part in text
    difference = float(text.split("logits ")[1].split(" ")[0])
    assert difference < 1e-4
    assert float(text.split("% of the pixels are right")[0].split()[-1]) > 93
    with Image.open(tmp_path / demo.COMPARISON) as comparison:
        assert comparison.size == (3 * demo.SIZE[1], demo.IMAGES * demo.SIZE[0])
    assert (tmp_path / "labels" / "shapes_1_overlay.png").exists()


def test_the_comparison_counts_what_is_right(tmp_path):
    image, truth = generate.draw_image(0, "test", 0, (32, 40))
    wrong = truth.copy()
    wrong[:8] = 7 - wrong[:8]  # a quarter, and never equal
    demo.images.write_labels(tmp_path / "a.png", wrong)
    assert demo.compare({"elsewhere/a.png": (image, truth)}, tmp_path, tmp_path / "c.png") == 0.75
    with Image.open(tmp_path / "c.png") as comparison:
        parts = np.hsplit(np.array(comparison), 3)
    for part, expected in zip(parts, (image, models.PALETTE[wrong], models.PALETTE[truth]), strict=True):
        assert np.array_equal(part, expected)


@pytest.mark.slow
def test_images_and_checkpoint(tmp_path, capsys):
    torch.save(models.rf_lw_mbv2(num_classes=5).state_dict(), tmp_path / "five.pth")
    Image.fromarray(generate.draw_image(0, "test", 0)[0]).save(tmp_path / "photo.jpg")
    arguments = [str(tmp_path / "photo.jpg"), str(tmp_path / "no.jpg"), "--checkpoint", str(tmp_path / "five.pth")]
    assert demo.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    output = capsys.readouterr()
    assert "drawn shapes" not in output.out
    assert "speed-up" in output.out
    assert output.err.startswith("lwrn-fast: error: ")
    assert output.err.endswith("no.jpg: cannot be read (no such file or folder)\n")
    assert sorted(path.name for path in (tmp_path / "out" / "labels").iterdir()) == ["photo.png", "photo_overlay.png"]


def test_what_stops_it_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert demo.main(["--out", str(tmp_path / "file")]) == 2
    assert demo.main(["--out", str(tmp_path), "--checkpoint", str(tmp_path / "file")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
