"""Preprocessing: from an image of any type to the input of a model."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ops.normalise import MEAN, STD, normalise

__all__ = ["MEAN", "STD", "preprocess", "pixels"]


def preprocess(image: Any, size: int | Sequence[int] | None = None) -> Tensor:
    """Normalise an image: RGB / 255, minus `MEAN`, over `STD`; `lwrn_fast.normalise` for one image of any type.

    image: uint8 (H, W, 3), RGB, as a NumPy array or a tensor on any device; a PIL image of any mode; or the path of an
    image file. In PIL images and files, 16-bit grey is scaled, transparency lies on white, EXIF's orientation is
    followed, ICC profiles are not.
    size: resize it to (h, w), or one number for both.
    Returns float32 (1, 3, h, w) with channels-last strides, on the image's device.
    Raises TypeError for another dtype, ValueError for another shape, OSError for a file that cannot be read.

    >>> tuple(preprocess(np.zeros((4, 6, 3), np.uint8)).shape)
    (1, 3, 4, 6)
    """
    image = pixels(image, "preprocess: image")
    if image.dim() != 3:
        raise ValueError(f"preprocess: image must be (H, W, 3), got {tuple(image.shape)}")
    return normalise(image, size)


def pixels(image: Any, argument: str) -> Tensor:
    """Return one or several images of any type as uint8 (..., H, W, 3). argument: its name in errors.

    image: as `preprocess` takes it, or (N, H, W, 3); every type gives the same pixels.
    """
    array = image if isinstance(image, Tensor) else _array(image, argument)
    dtype = str(array.dtype).removeprefix("torch.")
    if dtype != "uint8":
        raise TypeError(f"{argument} must be uint8, got {dtype}{_remedy(array)}")
    if array.ndim not in (3, 4) or array.shape[-1] != 3 or min(array.shape[-3:-1]) < 1:
        raise ValueError(f"{argument} must be (H, W, 3), got {tuple(array.shape)}{_remedy(array)}")
    if isinstance(array, Tensor):
        return array
    # PyTorch takes neither negative strides nor memory that may not be written
    usable = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if usable else array.copy())


def _array(image: Any, argument: str) -> np.ndarray:
    """Return a PIL image or a file as uint8 (H, W, 3), anything else as NumPy converts it."""
    pil = sys.modules.get("PIL.Image")  # without this import there can be no PIL image
    if pil is not None and isinstance(image, pil.Image):
        from ..io.decoding import to_rgb

        name = getattr(image, "filename", "")
        return to_rgb(image, f"{argument} {os.fsdecode(name)}" if name else argument)
    if isinstance(image, (str, os.PathLike)):
        from ..io import images

        try:
            return images.read(Path(image))
        except images.ImageError as error:
            raise images.ImageError(f"{argument} {error}") from error
    return np.asarray(image)


def _remedy(image: Any) -> str:
    """Return how the argument becomes an image, where that can be guessed, for the end of an error."""
    shape, tensor = tuple(image.shape), isinstance(image, Tensor)
    if len(shape) in (3, 4) and shape[-3] == 3 and shape[-1] != 3:
        axes = (1, 2, 0) if len(shape) == 3 else (0, 2, 3, 1)
        return f"; colours come last: image.{'permute' if tensor else 'transpose'}{axes}"
    if tensor or image.dtype == object or image.dtype.kind in "US":
        return ""
    if image.dtype.kind == "f":
        return "; (image * 255).round().astype(np.uint8) where 1 is white"
    if len(shape) == 2 or (len(shape) == 3 and shape[-1] in (2, 4)):
        return "; PIL.Image.fromarray(image) is taken, grey and with transparency"
    return ""
