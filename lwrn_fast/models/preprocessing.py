"""From a photograph to the input of a network."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..normalise import MEAN, STD, normalise

__all__ = ["MEAN", "STD", "preprocess", "pixels"]


def preprocess(image: Any, size: int | Sequence[int] | None = None) -> Tensor:
    """Normalise a photograph: RGB / 255, minus `MEAN`, over `STD`; `lwrn_fast.normalise` of one image of any kind.

    image: uint8 (H, W, 3), RGB, as a NumPy array or a tensor on any device; or a PIL image of any mode.
    size: resize it to (h, w), or one number for both.
    Returns float32 (1, 3, h, w) with channels-last strides, on the image's device.
    Raises TypeError for another dtype, ValueError for another shape.

    >>> tuple(preprocess(np.zeros((4, 6, 3), np.uint8)).shape)
    (1, 3, 4, 6)
    """
    image = pixels(image, "preprocess: image")
    if image.dim() != 3:
        raise ValueError(f"preprocess: image must be (H, W, 3), got {tuple(image.shape)}")
    return normalise(image, size)


def pixels(image: Any, what: str) -> Tensor:
    """A picture of any kind, or several, as uint8 (..., H, W, 3). what: how errors call it."""
    if not isinstance(image, Tensor):
        if hasattr(image, "convert"):  # a PIL image, without importing PIL
            image = image.convert("RGB")
        array = np.asarray(image)
        if array.dtype != np.uint8:
            raise TypeError(f"{what} must be uint8, got {array.dtype}")
        # PyTorch takes neither negative strides nor memory that may not be written
        usable = array.flags.writeable and all(stride >= 0 for stride in array.strides)
        image = torch.from_numpy(array if usable else array.copy())
    if image.dtype != torch.uint8:
        raise TypeError(f"{what} must be uint8, got {str(image.dtype).removeprefix('torch.')}")
    if image.dim() not in (3, 4) or image.shape[-1] != 3 or min(image.shape[-3:-1]) < 1:
        raise ValueError(f"{what} must be (H, W, 3), got {tuple(image.shape)}")
    return image
