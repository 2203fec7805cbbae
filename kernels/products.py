"""Matrix products of backward passes: gradients of the input and of the weight of a 1x1 convolution.

A weight's gradient is a sum over all pixels, which are split (split-K): each program sums the pixels of one split in
float32 into a tensor of its own, and a second launch adds these partial sums in order. So results are the same bit for
bit, and no program waits for another.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .launch import OPTIONS, Launch, block_size, cdiv, input_precision, memoized
from .numerics import as_operand, load, round_to, sum_axis0
from .taps import MAX_INT32

# Splits of a weight's gradient, each of which takes memory as large as the weight.
MAX_SPLITS = 64
# Partial sums that a program of reduce_partials_kernel loads in a step.
_REDUCE_BLOCK = 2048


@triton.jit
def input_gradient_kernel(
    grad,
    weight,
    out,
    pixels,
    OUT_CHANNELS: tl.constexpr,
    IN_CHANNELS: tl.constexpr,
    USE_INT64: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """Compute out = grad weight. grad: (pixels, OUT_CHANNELS). weight: (OUT_CHANNELS, IN_CHANNELS). out: (pixels,
    IN_CHANNELS). USE_INT64: offsets may not fit int32."""
    BLOCKS: tl.constexpr = (IN_CHANNELS + BLOCK_N - 1) // BLOCK_N
    MASKED: tl.constexpr = OUT_CHANNELS % BLOCK_K != 0
    # Blocks of channels vary fastest, so that adjacent programs read the same pixels.
    pid = tl.program_id(0)
    offs_n = pid % BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
    pid_m = pid // BLOCKS
    if USE_INT64:
        pid_m = pid_m.to(tl.int64)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = (offs_m < pixels)[:, None] & (offs_n < IN_CHANNELS)[None, :]
    offs_m = tl.minimum(offs_m, pixels - 1)  # so that no load needs a mask for pixels
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for k in tl.range(0, OUT_CHANNELS, BLOCK_K, num_stages=NUM_STAGES):
        offs_k = k + tl.arange(0, BLOCK_K)
        a_ptrs = grad + (offs_m * OUT_CHANNELS)[:, None] + offs_k[None, :]
        a = load(a_ptrs, (offs_k < OUT_CHANNELS)[None, :], MASKED)
        b_mask = (offs_k < OUT_CHANNELS)[:, None] & (offs_n < IN_CHANNELS)[None, :]
        b_ptrs = weight + (offs_k * IN_CHANNELS)[:, None] + offs_n[None, :]
        b = load(b_ptrs, b_mask, MASKED or IN_CHANNELS % BLOCK_N != 0)
        acc = tl.dot(as_operand(a), as_operand(b), acc, input_precision=PRECISION)
    offsets = (offs_m * IN_CHANNELS)[:, None] + offs_n[None, :]
    tl.store(out + offsets, round_to(acc, out.dtype.element_ty), mask=mask)


@triton.jit
def weight_gradient_kernel(
    grad,
    x,
    partials,
    pixels,
    split_pixels,
    OUT_CHANNELS: tl.constexpr,
    IN_CHANNELS: tl.constexpr,
    USE_INT64: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """Compute partials = grad^T x of each split. grad: (pixels, OUT_CHANNELS). x: (pixels, IN_CHANNELS). partials:
    (splits, OUT_CHANNELS, IN_CHANNELS), each over split_pixels pixels. USE_INT64: offsets may not fit int32."""
    BLOCKS_N: tl.constexpr = (IN_CHANNELS + BLOCK_N - 1) // BLOCK_N
    BLOCKS: tl.constexpr = BLOCKS_N * ((OUT_CHANNELS + BLOCK_M - 1) // BLOCK_M)
    pid = tl.program_id(0)
    offs_m = pid % BLOCKS // BLOCKS_N * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid % BLOCKS_N * BLOCK_N + tl.arange(0, BLOCK_N)
    split = pid // BLOCKS
    if USE_INT64:
        split = split.to(tl.int64)
    first_pixel = split * split_pixels
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for k in tl.range(0, split_pixels, BLOCK_K, num_stages=NUM_STAGES):
        offs_k = first_pixel + k + tl.arange(0, BLOCK_K)
        a_mask, b_mask = (offs_k < pixels)[None, :], (offs_k < pixels)[:, None]
        if OUT_CHANNELS % BLOCK_M != 0:
            a_mask = a_mask & (offs_m < OUT_CHANNELS)[:, None]
        if IN_CHANNELS % BLOCK_N != 0:
            b_mask = b_mask & (offs_n < IN_CHANNELS)[None, :]
        a = tl.load(grad + (offs_k * OUT_CHANNELS)[None, :] + offs_m[:, None], mask=a_mask, other=0.0)
        b = tl.load(x + (offs_k * IN_CHANNELS)[:, None] + offs_n[None, :], mask=b_mask, other=0.0)
        acc = tl.dot(as_operand(a), as_operand(b), acc, input_precision=PRECISION)
    offsets = split * (OUT_CHANNELS * IN_CHANNELS) + (offs_m * IN_CHANNELS)[:, None] + offs_n[None, :]
    mask = (offs_m < OUT_CHANNELS)[:, None] & (offs_n < IN_CHANNELS)[None, :]
    tl.store(partials + offsets, round_to(acc, partials.dtype.element_ty), mask=mask)


@triton.jit
def reduce_partials_kernel(partials, out, rows, COLUMNS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sum the rows of partials, float32 (rows, COLUMNS), into out, (COLUMNS,)."""
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros([BLOCK_C], dtype=tl.float32)
    for first in tl.range(0, rows, BLOCK_R, num_stages=1):
        offs_r = first + tl.arange(0, BLOCK_R)
        mask = (offs_r < rows)[:, None] & (offs_c < COLUMNS)[None, :]
        ptrs = partials + offs_r.to(tl.int64)[:, None] * COLUMNS + offs_c[None, :]
        acc += sum_axis0(tl.load(ptrs, mask=mask, other=0.0))
    tl.store(out + offs_c, round_to(acc, out.dtype.element_ty), mask=offs_c < COLUMNS)


def input_gradient(
    grad: Tensor, weight: Tensor, out: Tensor, config: configs.Products | None = None, traced: bool = False
) -> Launch:
    """Prepare the launch of out = weight^T grad.

    grad, out: channels-last maps of as many pixels. weight: (output channels, input channels, 1, 1).
    """
    dot_precision = input_precision(grad)
    plan = _plan_of(grad, out.shape[1], dot_precision, config, traced)
    num_programs = cdiv(plan.pixels, plan.block_pixels) * cdiv(plan.in_channels, plan.block_in)
    arguments = {
        "grad": grad,
        "weight": weight.contiguous(),
        "out": out,
        "pixels": plan.pixels,
        "PRECISION": dot_precision,
        "BLOCK_M": plan.block_pixels,
        "BLOCK_K": plan.block_k_channels,
        **plan.arguments,
    }
    return Launch(input_gradient_kernel, (num_programs,), arguments, out, traced)


def weight_gradient(
    grad: Tensor, x: Tensor, out: Tensor, config: configs.Products | None = None, traced: bool = False
) -> list[Launch]:
    """Prepare the launches of out = the sum over all pixels of grad x^T.

    grad, x: channels-last maps of as many pixels. out: of the weight's shape.
    """
    dot_precision = input_precision(grad)
    plan = _plan_of(grad, x.shape[1], dot_precision, config, traced)
    partials = out
    if plan.splits > 1:
        partials = torch.empty((plan.splits, out.numel()), dtype=torch.float32, device=out.device)
    blocks = cdiv(plan.out_channels, plan.block_out) * cdiv(plan.in_channels, plan.block_in)
    arguments = {
        "grad": grad,
        "x": x,
        "partials": partials,
        "pixels": plan.pixels,
        "split_pixels": plan.split_pixels,
        "PRECISION": dot_precision,
        "BLOCK_M": plan.block_out,
        "BLOCK_K": plan.block_k_pixels,
        **plan.arguments,
    }
    launch = Launch(weight_gradient_kernel, (plan.splits * blocks,), arguments, partials, traced)
    return [launch] if plan.splits == 1 else [launch, reduce_partials(partials, out, traced)]


def reduce_partials(partials: Tensor, out: Tensor, traced: bool = False) -> Launch:
    """Prepare the launch of out = the sum of the rows of partials, (rows, columns), in float32."""
    rows, columns = partials.shape
    block_r = block_size(rows, 128)
    block_c = block_size(columns, _REDUCE_BLOCK // block_r)
    arguments = {
        "partials": partials,
        "out": out,
        "rows": rows,
        "COLUMNS": columns,
        "BLOCK_R": block_r,
        "BLOCK_C": block_c,
        "num_warps": 4,
        **OPTIONS,
    }
    return Launch(reduce_partials_kernel, (cdiv(columns, block_c),), arguments, out, traced)


@dataclass(frozen=True)
class _Plan:
    """Sizes of both products. The sum is over output channels for an input's gradient, over pixels for a weight's."""

    pixels: int
    out_channels: int
    in_channels: int
    block_pixels: int
    block_out: int
    block_in: int
    block_k_channels: int
    block_k_pixels: int
    split_pixels: int
    splits: int
    arguments: dict[str, Any]


def _plan_of(
    grad: Tensor, in_channels: int, dot_precision: str, config: configs.Products | None, traced: bool
) -> _Plan:
    precision = configs.precision_of(grad, dot_precision)
    return memoized(_plan, traced)(*grad.shape, in_channels, precision, grad.device, config)


def _plan(
    batch: int,
    out_channels: int,
    height: int,
    width: int,
    in_channels: int,
    precision: str,
    device: torch.device,
    config: configs.Products | None,
) -> _Plan:
    """Compute all that does not depend on the tensors' addresses."""
    pixels = batch * height * width
    if config is None:
        config = configs.look_up(configs.Products, "products", configs.device_key(device), precision, pixels)
    # A tile is no larger than the problem, but at least 16 in each dimension, the minimum of tl.dot.
    block_k_pixels = block_size(max(16, pixels), config.block_k)
    split_pixels = cdiv(max(config.split_pixels, cdiv(pixels, MAX_SPLITS)), block_k_pixels) * block_k_pixels
    block_pixels = block_size(max(16, pixels), config.block_m)
    block_in = block_size(max(16, in_channels), config.block_n)
    arguments = {
        "OUT_CHANNELS": out_channels,
        "IN_CHANNELS": in_channels,
        "USE_INT64": (pixels + max(block_pixels, split_pixels)) * max(out_channels, in_channels) > MAX_INT32,
        "BLOCK_N": block_in,
        "NUM_STAGES": config.num_stages,
        "num_warps": config.num_warps,
        **OPTIONS,
    }
    return _Plan(
        pixels,
        out_channels,
        in_channels,
        block_pixels,
        block_size(max(16, out_channels), config.block_n),
        block_in,
        block_size(max(16, out_channels), config.block_k),
        block_k_pixels,
        split_pixels,
        cdiv(pixels, split_pixels),
        arguments,
    )
