"""Resize and normalise images to a model's input, in one launch.

A program computes a block of pixels, each colour from the source pixels that it covers: a triangle filter along each
side, whose weights are fractions of whole numbers.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import OPTIONS, Launch, cdiv
from .numerics import inline, round_to
from .taps import MAX_INT32

# Pixels of a program.
BLOCK = 256


@inline
def _coverage(j, index, source_size, size):
    """Return how much of source pixel j pixel `index` of `size` covers, at most 0 for nothing."""
    distance = tl.abs((2 * j + 1) * size - (2 * index + 1) * source_size)
    return tl.where(j < source_size, 2 * tl.maximum(source_size, size) - distance, 0)


@inline
def _first_covered(index, source_size, size):
    """Return the first source pixel that pixel `index` of `size` covers."""
    before = (2 * index + 1) * source_size - 2 * tl.maximum(source_size, size) - size
    return tl.where(before < 0, 0, tl.maximum(before, 0) // (2 * size) + 1)


@inline
def _total_coverage(first, count, index, source_size, size):
    """Sum the coverage of `count` source pixels from the first on."""
    total = tl.zeros_like(index)
    for k in range(count):
        total += tl.maximum(_coverage(first + k, index, source_size, size), 0)
    return total


@triton.jit
def normalise_kernel(
    images,
    out,
    pixels,
    source_height,
    source_width,
    stride_n,
    stride_h,
    height,
    width,
    max_rows,
    max_columns,
    mean_0,
    mean_1,
    mean_2,
    std_0,
    std_1,
    std_2,
    USE_INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute normalise. images: uint8 (batch, source_height, source_width, 3). out: (batch, height, width, 3), of so
    many pixels. max_rows, max_columns: of the source that a pixel covers. USE_INT64: products of sizes may not fit
    int32."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < pixels
    offs = tl.minimum(offs, pixels - 1)  # those outside repeat the last pixel
    row = offs // width
    image = row // height
    int_dtype: tl.constexpr = tl.int64 if USE_INT64 else tl.int32
    y = (row - image * height).to(int_dtype)
    x = (offs - row * width).to(int_dtype)
    first_y = _first_covered(y, source_height, height)
    first_x = _first_covered(x, source_width, width)
    total_y = _total_coverage(first_y, max_rows, y, source_height, height).to(tl.float32)
    total_x = _total_coverage(first_x, max_columns, x, source_width, width).to(tl.float32)
    red = tl.zeros([BLOCK], tl.float32)
    green = tl.zeros([BLOCK], tl.float32)
    blue = tl.zeros([BLOCK], tl.float32)
    for j in range(max_rows):
        source_y = first_y + j
        coverage_y = _coverage(source_y, y, source_height, height)
        weight_y = tl.div_rn(tl.maximum(coverage_y, 0).to(tl.float32), total_y)
        row_ptrs = images + image * stride_n + source_y.to(tl.int64) * stride_h
        for k in range(max_columns):
            source_x = first_x + k
            coverage_x = _coverage(source_x, x, source_width, width)
            weight = weight_y * tl.div_rn(tl.maximum(coverage_x, 0).to(tl.float32), total_x)
            covered = (coverage_y > 0) & (coverage_x > 0)
            ptrs = row_ptrs + 3 * source_x
            red += weight * tl.load(ptrs, mask=covered, other=0).to(tl.float32)
            green += weight * tl.load(ptrs + 1, mask=covered, other=0).to(tl.float32)
            blue += weight * tl.load(ptrs + 2, mask=covered, other=0).to(tl.float32)
    out_ptrs = out + 3 * offs
    dtype: tl.constexpr = out.dtype.element_ty
    tl.store(out_ptrs, round_to(tl.div_rn(red - mean_0, tl.full([BLOCK], std_0, tl.float32)), dtype), mask=mask)
    tl.store(out_ptrs + 1, round_to(tl.div_rn(green - mean_1, tl.full([BLOCK], std_1, tl.float32)), dtype), mask=mask)
    tl.store(out_ptrs + 2, round_to(tl.div_rn(blue - mean_2, tl.full([BLOCK], std_2, tl.float32)), dtype), mask=mask)


def prepare(
    images: Tensor,
    height: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    traced: bool = False,
) -> Launch:
    """Prepare the launch of `lwrn_fast.normalise`, whose arguments these are; images: (N, H, W, 3)."""
    if images.stride(3) != 1 or images.stride(2) != 3:
        images = images.contiguous()
    batch, source_height, source_width, _ = images.shape
    shape = (batch, 3, height, width)
    out = torch.empty(shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)
    if out.numel() == 0:
        return Launch(normalise_kernel, (0,), {}, out, traced)
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
        "max_rows": _max_covered(source_height, height),
        "max_columns": _max_covered(source_width, width),
        **{f"mean_{i}": 255 * value for i, value in enumerate(mean)},
        **{f"std_{i}": 255 * value for i, value in enumerate(std)},
        "USE_INT64": 8 * max(source_height * height, source_width * width) > MAX_INT32,
        "BLOCK": BLOCK,
        "num_warps": 4,
        **OPTIONS,
    }
    return Launch(normalise_kernel, (cdiv(batch * height * width, BLOCK),), arguments, out, traced)


def _max_covered(source_size: int, size: int) -> int:
    """Return an upper bound of the source pixels that a pixel covers along a side."""
    return min(2 * cdiv(source_size, size) + 1, source_size)
