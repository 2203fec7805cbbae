"""From pictures to the input of a network."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backends
from ..backends import triton
from . import checks, reference
from .reference import MEAN, STD


def normalise(
    images: Tensor,
    size: int | Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Tensor:
    """Resize pictures and normalise them, (x / 255 - mean) / std, in one pass over memory.

    images: uint8 (N, H, W, 3) or (H, W, 3), RGB; adjacent pixels are read as they lie. size: (h, w), or one number for
    both; None: their own. It is bilinear, over all pixels that an output pixel covers where it shrinks: what
    torch.nn.functional.interpolate(antialias=True) does, and Pillow, which rounds to whole numbers in between.
    mean, std: of pixels from 0 to 1, by colour; default: ImageNet's, which the published networks expect.
    Returns (N, 3, h, w) of dtype, channels-last; sums are in float32. There is no gradient.
    Raises ValueError or TypeError for what does not fit, RuntimeError where the backend asked for cannot run.

    >>> import torch, lwrn_fast
    >>> lwrn_fast.normalise(torch.zeros(90, 120, 3, dtype=torch.uint8), (60, 80)).shape
    torch.Size([1, 3, 60, 80])
    """
    tensors = checks.normalise(images, size, dtype, mean, std)
    backend = backends.select("normalise", tensors)
    images = images if images.dim() == 4 else images[None]
    height, width = images.shape[1:3] if size is None else checks.height_and_width("normalise", size)
    if backend in ("reference", backends.PLAIN):
        return reference.channels_last(reference.normalise(images, (height, width), dtype, mean, std))
    arguments = (images, height, width, [float(x) for x in mean], [float(x) for x in std], dtype)
    if backend == "triton":
        return triton.run("normalise", tensors, *arguments)
    return torch.ops.lwrn_fast.normalise(*arguments)
