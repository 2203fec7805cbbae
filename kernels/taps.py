"""Bilinear sample positions, as torch.nn.functional.interpolate computes them: for each pixel of an upsampled map, the
two source pixels around it along a side, and their weights."""

import triton.language as tl

from .launch import cdiv
from .numerics import inline

# The largest int32.
MAX_INT32 = 2**31 - 1


@inline
def taps(index, source_size, size, ALIGN_CORNERS: tl.constexpr, USE_INT64: tl.constexpr):
    """Return the source pixels before and after pixel `index` of `size` pixels, and the float32 weight of the latter.

    The position is a fraction of whole numbers, so only its division is rounded, and the weight is right to the last
    bit where the denominator is below 2**24. USE_INT64: see `needs_int64`.
    """
    index = tl.cast(index, tl.int64 if USE_INT64 else tl.int32)
    if ALIGN_CORNERS:
        numerator = index * (source_size - 1)
        denominator = tl.maximum(size - 1, 1)
    else:
        numerator = tl.maximum((2 * index + 1) * source_size - size, 0)
        denominator = 2 * size
    low = numerator // denominator
    remainder = numerator - low * denominator
    high_weight = tl.div_rn(tl.cast(remainder, tl.float32), tl.cast(denominator, tl.float32))
    return low, tl.minimum(low + 1, source_size - 1), high_weight


@inline
def first_beyond(index, source_size, size, ALIGN_CORNERS: tl.constexpr, USE_INT64: tl.constexpr):
    """Return the first of `size` pixels that `taps` puts at or after source pixel `index`, else `size`."""
    index = tl.cast(index, tl.int64 if USE_INT64 else tl.int32)
    if ALIGN_CORNERS:
        numerator = index * tl.maximum(size - 1, 1)
        denominator = tl.maximum(source_size - 1, 1)
    else:
        numerator = (2 * index + 1) * size - source_size
        denominator = 2 * source_size
    first = (tl.maximum(numerator, 0) + denominator - 1) // denominator
    return tl.where(index <= 0, 0, tl.where(index >= source_size, size, tl.minimum(first, size)))


@inline
def interpolate(a, b, b_weight):
    """Return a * (1 - b_weight) + b * b_weight. A weight of 0 counts: it makes an infinity NaN, as in PyTorch."""
    return a * (1.0 - b_weight) + b * b_weight


def max_between(source_size: int, size: int, align_corners: bool) -> int:
    """Return an upper bound of how many of `size` pixels lie between the two neighbours of a source pixel."""
    if align_corners:
        return size if source_size == 1 else max(1, cdiv(2 * (size - 1), source_size - 1))
    return min(size, cdiv(5 * size, 2 * source_size))  # around the second pixel, with those before the first


def needs_int64(source_size: int, size: int) -> bool:
    """Return whether the numerators of `taps` exceed int32."""
    return 2 * source_size * size > MAX_INT32
