"""The input of a network from pictures, resized and normalised, in one launch.

A program computes a block of pixels, each colour from the pixels that it covers: a triangle along each side, whose
weights are fractions of whole numbers.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import OPTIONS, Launch, cdiv
from .numerics import inline, rounded
from .taps import MOST_INT32

BLOCK = 256


@inline
def _part(j, index, source_size, size):
    """How much of pixel j of the source pixel `index` of `size` covers, at most 0 for nothing."""
    distance = tl.abs((2 * j + 1) * size - (2 * index + 1) * source_size)
    return tl.where(j < source_size, 2 * tl.maximum(source_size, size) - distance, 0)


@inline
def _first(index, source_size, size):
    """The first pixel of the source that pixel `index` of `size` covers."""
    before = (2 * index + 1) * source_size - 2 * tl.maximum(source_size, size) - size
    return tl.where(before < 0, 0, tl.maximum(before, 0) // (2 * size) + 1)


@inline
def _sum(first, count, index, source_size, size):
    total = tl.zeros_like(index)
    for k in range(count):
        total += tl.maximum(_part(first + k, index, source_size, size), 0)
    return total


@triton.jit
def _normalise(
    images,
    out,
    pixels,
    source_height,
    source_width,
    stride_n,
    stride_h,
    height,
    width,
    rows,
    columns,
    mean_0,
    mean_1,
    mean_2,
    std_0,
    std_1,
    std_2,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """images: bytes (batch, source_height, source_width, 3). out: (batch, height, width, 3), of so many pixels. rows,
    columns: how many of the source's a pixel covers, at most. WIDE: products of sizes may not fit int32."""
    item = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = item < pixels
    item = tl.minimum(item, pixels - 1)  # those outside repeat the last one
    row = item // width
    image = row // height
    kind: tl.constexpr = tl.int64 if WIDE else tl.int32
    y = (row - image * height).to(kind)
    x = (item - row * width).to(kind)
    first_y = _first(y, source_height, height)
    first_x = _first(x, source_width, width)
    sum_y = _sum(first_y, rows, y, source_height, height).to(tl.float32)
    sum_x = _sum(first_x, columns, x, source_width, width).to(tl.float32)
    red = tl.zeros([BLOCK], tl.float32)
    green = tl.zeros([BLOCK], tl.float32)
    blue = tl.zeros([BLOCK], tl.float32)
    for j in range(rows):
        source_y = first_y + j
        part_y = _part(source_y, y, source_height, height)
        weight_y = tl.div_rn(tl.maximum(part_y, 0).to(tl.float32), sum_y)
        from_row = images + image * stride_n + source_y.to(tl.int64) * stride_h
        for k in range(columns):
            source_x = first_x + k
            part_x = _part(source_x, x, source_width, width)
            weight = weight_y * tl.div_rn(tl.maximum(part_x, 0).to(tl.float32), sum_x)
            covered = (part_y > 0) & (part_x > 0)
            place = from_row + 3 * source_x
            red += weight * tl.load(place, mask=covered, other=0).to(tl.float32)
            green += weight * tl.load(place + 1, mask=covered, other=0).to(tl.float32)
            blue += weight * tl.load(place + 2, mask=covered, other=0).to(tl.float32)
    to = out + 3 * item
    dtype: tl.constexpr = out.dtype.element_ty
    tl.store(to, rounded(tl.div_rn(red - mean_0, tl.full([BLOCK], std_0, tl.float32)), dtype), mask=inside)
    tl.store(to + 1, rounded(tl.div_rn(green - mean_1, tl.full([BLOCK], std_1, tl.float32)), dtype), mask=inside)
    tl.store(to + 2, rounded(tl.div_rn(blue - mean_2, tl.full([BLOCK], std_2, tl.float32)), dtype), mask=inside)


def prepare(
    images: Tensor,
    height: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    traced: bool = False,
) -> Launch:
    """The launch that computes `lwrn_fast.normalise`, whose arguments these are; images: (N, H, W, 3)."""
    if images.stride(3) != 1 or images.stride(2) != 3:
        images = images.contiguous()
    batch, source_height, source_width, _ = images.shape
    shape = (batch, 3, height, width)
    out = torch.empty(shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)
    if out.numel() == 0:
        return Launch(_normalise, 0, {}, out, traced)
    arguments = {
        "images": images,
        "out": out,
        "pixels": batch * height * width,
        "source_height": source_height,
        "source_width": source_width,
        "stride_n": images.stride(0),
        "stride_h": images.stride(1),
        "height": height,
        "width": width,
        "rows": _most_covered(source_height, height),
        "columns": _most_covered(source_width, width),
        **{f"mean_{i}": 255 * value for i, value in enumerate(mean)},
        **{f"std_{i}": 255 * value for i, value in enumerate(std)},
        "WIDE": 8 * max(source_height * height, source_width * width) > MOST_INT32,
        "BLOCK": BLOCK,
        "num_warps": 4,
        **OPTIONS,
    }
    return Launch(_normalise, cdiv(batch * height * width, BLOCK), arguments, out, traced)


def _most_covered(source_size: int, size: int) -> int:
    return min(2 * cdiv(source_size, size) + 1, source_size)
