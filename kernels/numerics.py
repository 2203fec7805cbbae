"""Loads, dtype conversions and sums that give the same values compiled and in Triton's interpreter.

The interpreter converts bfloat16 incorrectly: it computes with the bits of such values, and truncates where it should
round. Compiled kernels get plain conversions from these functions.
"""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))

# Decorates the functions that kernels call. The interpreter takes them undecorated: each call of a decorated one costs
# it a millisecond.
inline = (lambda function: function) if INTERPRETED.value else triton.jit


@inline
def load(ptrs, mask, MASKED: tl.constexpr):
    """Load from ptrs, with 0 where mask is false; without the mask unless MASKED."""
    if MASKED:
        return tl.load(ptrs, mask=mask, other=0.0)
    return tl.load(ptrs)


@inline
def as_operand(x):
    """Return x in a dtype that can be compared and multiplied."""
    if INTERPRETED:
        return to_float32(x)
    return x


@inline
def to_float32(x):
    """Convert x to float32."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@inline
def round_to(x, dtype: tl.constexpr):
    """Round float32 x to the nearest value of dtype, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16)
        return tl.where(x == x, nearest, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@inline
def sum_axis0(x):
    """Sum float32 x over its first axis.

    A GPU adds in a tree, numpy one by one: in double, the interpreter's sum is at least as exact.
    """
    if INTERPRETED:
        return tl.sum(x.to(tl.float64), axis=0).to(tl.float32)
    return tl.sum(x, axis=0)
