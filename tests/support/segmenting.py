"""A small model, images for it, and the comparison of label maps."""

import numpy as np
from torch import nn

import lwrn_fast

CLASSES = 5


def network() -> nn.Module:
    """Return a small model of our ops, with a batch normalisation to fold and the published models' strides."""
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        lwrn_fast.CRP(8, 8),
        nn.Conv2d(8, CLASSES, 3, padding=1),
    )
    layers[1].running_mean.uniform_(-0.2, 0.2)
    layers[1].running_var.uniform_(0.5, 2)
    return layers.eval()


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return blocks of colour, uint8 (H, W, 3), so that labels form areas."""
    coarse = np.random.RandomState(seed).randint(0, 256, (-(-height // 8), -(-width // 8), 3))
    return np.kron(coarse, np.ones((8, 8, 1), int))[:height, :width].astype(np.uint8)


def assert_same_labels(got: np.ndarray, wanted: np.ndarray) -> None:
    """Compare labels, of which up to 0.2 % may differ: where two logits are nearly equal, their order is chance."""
    assert got.shape == wanted.shape
    assert got.dtype == np.uint8
    assert (got != wanted).mean() < 2e-3
