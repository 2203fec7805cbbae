"""From a photograph to the input of a network."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def preprocess(image: Any) -> Tensor:
    """Normalise a photograph: RGB / 255, minus `MEAN`, over `STD`.

    image: uint8 (H, W, 3), RGB, as a NumPy array or a tensor on any device; or a PIL image of any mode.
    Returns float32 (1, 3, H, W) with channels-last strides, on the image's device.
    Raises TypeError for another dtype, ValueError for another shape.

    >>> tuple(preprocess(np.zeros((4, 6, 3), np.uint8)).shape)
    (1, 3, 4, 6)
    """
    if not isinstance(image, Tensor):
        if hasattr(image, "convert"):  # a PIL image, without importing PIL
            image = image.convert("RGB")
        array = np.asarray(image)
        if array.dtype != np.uint8:
            raise TypeError(f"preprocess: image must be uint8, got {array.dtype}")
        image = torch.from_numpy(np.array(array))  # a copy: the array may be read-only or have negative strides
    if image.dtype != torch.uint8:
        raise TypeError(f"preprocess: image must be uint8, got {str(image.dtype).removeprefix('torch.')}")
    if image.dim() != 3 or image.shape[2] != 3:
        raise ValueError(f"preprocess: image must be (H, W, 3), got {tuple(image.shape)}")
    height, width, _ = image.shape
    # by rows of the image, in which the three channels take turns: the whole row is one vector operation
    mean = torch.tensor(MEAN * width, device=image.device).mul_(255)
    std = torch.tensor(STD * width, device=image.device).mul_(255)
    rows = image.reshape(height, 3 * width).float().sub_(mean).div_(std)
    # (H, W, 3) in memory is channels-last already: the permuted view needs no copy
    return rows.view(1, height, width, 3).permute(0, 3, 1, 2)
