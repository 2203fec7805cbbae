"""Where an upsampled pixel lies between the pixels of the source, as torch.nn.functional.interpolate places it."""

import triton.language as tl

from .launch import cdiv
from .numerics import inline

MOST_INT32 = 2**31 - 1


@inline
def taps(index, source_size, size, ALIGN_CORNERS: tl.constexpr, WIDE: tl.constexpr):
    """The source's pixels before and after pixel `index` of `size` pixels, and the weight of the latter in float32.

    The place is a fraction of whole numbers, so only its division is rounded, and the weight is right to the last bit
    where the denominator is below 2**24. WIDE: count in int64, see `wide`.
    """
    index = tl.cast(index, tl.int64 if WIDE else tl.int32)
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
def first_beyond(index, source_size, size, ALIGN_CORNERS: tl.constexpr, WIDE: tl.constexpr):
    """The first of `size` pixels that `taps` places at or after the source's pixel `index`; `size` where none is."""
    index = tl.cast(index, tl.int64 if WIDE else tl.int32)
    if ALIGN_CORNERS:
        numerator = index * tl.maximum(size - 1, 1)
        denominator = tl.maximum(source_size - 1, 1)
    else:
        numerator = (2 * index + 1) * size - source_size
        denominator = 2 * source_size
    first = (tl.maximum(numerator, 0) + denominator - 1) // denominator
    return tl.where(index <= 0, 0, tl.where(index >= source_size, size, tl.minimum(first, size)))


@inline
def between(a, b, high_weight):
    """a and b weighted. A weight of 0 counts, so that it makes an infinity NaN, as in PyTorch."""
    return a * (1.0 - high_weight) + b * high_weight


def most_between(source_size: int, size: int, align_corners: bool) -> int:
    """At most so many of `size` pixels lie between the neighbours of a pixel of the source."""
    if align_corners:
        return size if source_size == 1 else max(1, cdiv(2 * (size - 1), source_size - 1))
    return min(size, cdiv(5 * size, 2 * source_size))  # around the second pixel, with those before the first


def wide(source_size: int, size: int) -> bool:
    """Whether `taps` needs int64."""
    return 2 * source_size * size > MOST_INT32
