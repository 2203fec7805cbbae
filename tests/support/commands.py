"""Commands in a process of their own, images for them, and their results."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lwrn_fast
from lwrn_fast import models

COMMAND = [sys.executable, "-m", "lwrn_fast"]
MARK = "lwrn-fast: error: "


def random_image(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    coarse = np.random.RandomState(seed).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def save(path: Path, array: np.ndarray | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_image() if array is None else array).save(path, **options)
    return path


def expected_labels(checkpoint: Path, image: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    with torch.no_grad():
        logits = models.load(checkpoint)(models.preprocess(image, size))
        return lwrn_fast.upsample_argmax(logits, image.shape[:2])[0].numpy()


def assert_labels(path: Path, expected: np.ndarray) -> None:
    """Where two logits are nearly equal, their order is chance."""
    found = labels(path)
    assert found.shape == expected.shape
    assert (found != expected).mean() < 2e-3


def labels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "P"
        palette = np.array(image.getpalette()).reshape(-1, 3)
        np.testing.assert_array_equal(palette, models.PALETTE[: len(palette)])
        return np.array(image)


def forget(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have the next import of these modules of the package run them anew, as in a fresh process."""
    for name in names:
        package, _, module = f"lwrn_fast.{name}".rpartition(".")
        monkeypatch.delitem(sys.modules, f"lwrn_fast.{name}", raising=False)
        monkeypatch.delattr(sys.modules[package], module, raising=False)
