"""Error metrics of the benchmarks. A result above TOLERANCE is not timed; tests are stricter, element by element."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Largest error that is timed, relative to the largest value: a handful of roundings of the dtype.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 5e-3}


def largest_error(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value; infinite for another shape."""
    if got.shape != expected.shape:
        return float("inf")
    return float((got.float() - expected).abs().max() / expected.abs().max())


def overall_error(got: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference, relative to the expected norm; infinite for another shape."""
    if got.shape != expected.shape:
        return float("inf")
    return float((got.float() - expected).norm() / expected.norm())


def label_error(labels: Tensor, logits: Tensor, size: tuple[int, int]) -> float:
    """Return how far the chosen class is below the best one at the worst pixel, relative to the largest logit.

    labels (N, *size) of any integer type, logits (N, classes, h, w). So near-ties may be decided either way.
    """
    if labels.shape != (logits.shape[0], *size):
        return float("inf")
    full = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=True)
    chosen = full.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    return float((full.amax(1) - chosen).max() / full.abs().max())
