"""A small network, images for it, and the comparison of label maps."""

import numpy as np
from torch import nn

import lwrn_fast

CLASSES = 5


def network() -> nn.Module:
    """Small, of our ops, with a batch normalisation that is worth folding, and strides as the published ones have."""
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


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blocks of colour, so that labels form areas."""
    coarse = np.random.RandomState(seed).randint(0, 256, (-(-height // 8), -(-width // 8), 3))
    return np.kron(coarse, np.ones((8, 8, 1), int))[:height, :width].astype(np.uint8)


def assert_same_labels(got: np.ndarray, wanted: np.ndarray) -> None:
    """Where two logits are nearly equal, their order is chance."""
    assert got.shape == wanted.shape
    assert got.dtype == np.uint8
    assert (got != wanted).mean() < 2e-3
