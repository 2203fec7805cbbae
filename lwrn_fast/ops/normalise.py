"""Resizing and normalisation, from images to the input of a model: function, argument checks, registration."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backends
from ..backends import Call, Op
from . import checks, reference
from .reference import MEAN, STD
from .registration import Definition, define


def normalise(
    images: Tensor,
    size: int | Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Tensor:
    """Resize images and normalise them, (x / 255 - mean) / std, in one pass over memory.

    images: uint8 (N, H, W, 3) or (H, W, 3), RGB; adjacent pixels are read as they lie. size: (h, w), or one number for
    both; None: their own. Resizing is bilinear; where it shrinks, all pixels that an output pixel covers count, as in
    torch.nn.functional.interpolate(antialias=True) and in Pillow, which rounds to whole numbers in between.
    mean, std: of pixels from 0 to 1, by colour; default: ImageNet's, which the published models expect.
    Returns (N, 3, h, w) of dtype, channels-last; sums are in float32. There is no gradient.
    Raises ValueError or TypeError for invalid arguments, RuntimeError where the backend asked for cannot run.

    >>> import torch, lwrn_fast
    >>> lwrn_fast.normalise(torch.zeros(90, 120, 3, dtype=torch.uint8), (60, 80)).shape
    torch.Size([1, 3, 60, 80])
    """
    tensors = check(images, size, dtype, mean, std)
    images = images if images.dim() == 4 else images[None]
    height, width = images.shape[1:3] if size is None else checks.height_and_width("normalise", size)
    call = Call(OP, tensors, (images, height, width, [float(x) for x in mean], [float(x) for x in std], dtype))
    return backends.select(call).run(call)


def check(
    images: Tensor,
    size: int | Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> list[Tensor]:
    """Return all tensors of a call; raise ValueError or TypeError for invalid arguments."""
    checks.tensor("normalise", "images", images)
    if images.dtype != torch.uint8:
        raise TypeError(f"normalise: images must be uint8, got {str(images.dtype).removeprefix('torch.')}")
    if images.dim() not in (3, 4) or images.shape[-1] != 3:
        checks.fail("normalise", "images", "(N, H, W, 3) or (H, W, 3)", tuple(images.shape))
    if images.shape[-3] < 1 or images.shape[-2] < 1:
        checks.fail("normalise", "images", "of height and width >= 1", tuple(images.shape))
    if size is not None:
        checks.height_and_width("normalise", size)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        checks.fail("normalise", "dtype", "a floating-point torch.dtype", dtype)
    for name, numbers in (("mean", mean), ("std", std)):
        if not isinstance(numbers, Sequence) or len(numbers) != 3:
            checks.fail("normalise", name, "3 numbers, one for each colour", repr(numbers))
    if not all(number > 0 for number in std):
        checks.fail("normalise", "std", "above 0", repr(std))
    return [torch.empty(0, dtype=dtype, device=images.device), images]  # backends look at the dtype of the result


def _plain(
    images: Tensor, height: int, width: int, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> Tensor:
    return reference.normalise(images, (height, width), dtype, mean, std)


def _run(
    images: Tensor, height: int, width: int, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> Tensor:
    return _plain(images, height, width, mean, std, dtype).clone(memory_format=torch.channels_last)


def _fake(
    images: Tensor, height: int, width: int, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> Tensor:
    shape = (images.shape[0], 3, height, width)
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)


OP = Op("normalise", check, _plain)
define(
    Definition(
        "normalise(Tensor images, SymInt height, SymInt width, float[] mean, float[] std, ScalarType dtype) -> Tensor",
        run=_run,
        fake=_fake,
        batched=_plain,
        kernel="normalise",
    )
)
