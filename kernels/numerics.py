"""Loads, conversions and sums of values. Triton's interpreter gets conversions wrong for bfloat16: it computes with the
bits of such values, and cuts off where it should round. Compiled kernels see plain conversions here."""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))

# For the functions that kernels call. The interpreter takes them as they are, and spends a millisecond on each call of
# one that was decorated.
inline = (lambda function: function) if INTERPRETED.value else triton.jit


@inline
def load(places, inside, MASKED: tl.constexpr):
    """The values there, 0 where they are not inside; without a mask where all are."""
    if MASKED:
        return tl.load(places, mask=inside, other=0.0)
    return tl.load(places)


@inline
def comparable(x):
    """x in a type that can be compared and multiplied."""
    if INTERPRETED:
        return float32(x)
    return x


@inline
def float32(x):
    """x as float32."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@inline
def sum_of_rows(x):
    """The sum over the first axis of float32 x. A GPU adds in a tree, numpy one by one: in double, that is no worse."""
    if INTERPRETED:
        return tl.sum(x.to(tl.float64), axis=0).to(tl.float32)
    return tl.sum(x, axis=0)


@inline
def rounded(x, dtype: tl.constexpr):
    """float32 x as `dtype`, rounded to the nearest value, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16)
        return tl.where(x == x, nearest, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)
