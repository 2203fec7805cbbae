"""act(sum_k up(W_k x_k + b_k)) in one launch, as one matrix multiplication over the channels of all inputs.

A 1x1 convolution and the interpolation commute: inputs of another size than the result's are interpolated while they
are loaded, rounded to the maps' dtype, and multiplied like the others.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import MAX_INPUTS, configs
from .launch import OPTIONS, Launch, block_size, cdiv, channels_last, empty_channels_last, input_precision, memoized
from .numerics import as_operand, inline, load, round_to, to_float32
from .taps import MAX_INT32, interpolate, needs_int64, taps


@inline
def _dot(
    acc,
    a,
    weight,
    offs_k,
    offs_n,
    IN_CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add to acc the product of a, (pixels, input channels offs_k), and their weights for output channels offs_n."""
    mask = (offs_k < IN_CHANNELS)[:, None] & (offs_n < OUT_CHANNELS)[None, :]
    b_ptrs = weight + (offs_n * IN_CHANNELS)[None, :] + offs_k[:, None]
    b = load(b_ptrs, mask, MASKED or OUT_CHANNELS % BLOCK_N != 0)
    return tl.dot(as_operand(a), as_operand(b), acc, input_precision=PRECISION)


@inline
def _add_input(
    acc,
    x,
    weight,
    bias,
    source_height,
    source_width,
    height,
    width,
    offs_m,
    offs_n,
    IN_CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    SAME_SIZE: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    USE_INT64: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    INTERP_NUM_STAGES: tl.constexpr,
):
    """Add to acc the convolution of an input, where there is one."""
    if x is not None:
        MASKED: tl.constexpr = IN_CHANNELS % BLOCK_K != 0
        if SAME_SIZE:
            row_ptrs = x + (offs_m * IN_CHANNELS)[:, None]
            for k in tl.range(0, IN_CHANNELS, BLOCK_K, num_stages=NUM_STAGES):
                offs_k = k + tl.arange(0, BLOCK_K)
                a = load(row_ptrs + offs_k[None, :], (offs_k < IN_CHANNELS)[None, :], MASKED)
                acc = _dot(acc, a, weight, offs_k, offs_n, IN_CHANNELS, OUT_CHANNELS, BLOCK_N, MASKED, PRECISION)
        else:
            y = offs_m // width % height
            image_row = offs_m // width // height * source_height
            top, bottom, bottom_weight = taps(y, source_height, height, ALIGN_CORNERS, USE_INT64)
            left, right, right_weight = taps(offs_m % width, source_width, width, ALIGN_CORNERS, USE_INT64)
            top_left = x + (((image_row + top) * source_width + left) * IN_CHANNELS)[:, None]
            top_right = x + (((image_row + top) * source_width + right) * IN_CHANNELS)[:, None]
            bottom_left = x + (((image_row + bottom) * source_width + left) * IN_CHANNELS)[:, None]
            bottom_right = x + (((image_row + bottom) * source_width + right) * IN_CHANNELS)[:, None]
            bottom_weight = bottom_weight[:, None]
            right_weight = right_weight[:, None]
            for k in tl.range(0, IN_CHANNELS, BLOCK_K, num_stages=INTERP_NUM_STAGES):
                offs_k = k + tl.arange(0, BLOCK_K)
                mask = (offs_k < IN_CHANNELS)[None, :]
                left_column = to_float32(load(top_left + offs_k[None, :], mask, MASKED))
                lower = to_float32(load(bottom_left + offs_k[None, :], mask, MASKED))
                left_column = interpolate(left_column, lower, bottom_weight)
                right_column = to_float32(load(top_right + offs_k[None, :], mask, MASKED))
                lower = to_float32(load(bottom_right + offs_k[None, :], mask, MASKED))
                right_column = interpolate(right_column, lower, bottom_weight)
                a = round_to(interpolate(left_column, right_column, right_weight), x.dtype.element_ty)
                acc = _dot(acc, a, weight, offs_k, offs_n, IN_CHANNELS, OUT_CHANNELS, BLOCK_N, MASKED, PRECISION)
        if bias is not None:
            acc += to_float32(tl.load(bias + offs_n, mask=offs_n < OUT_CHANNELS, other=0.0))[None, :]
    return acc


@triton.jit
def fusion_kernel(
    x0,
    x1,
    x2,
    w0,
    w1,
    w2,
    b0,
    b1,
    b2,
    height1,
    width1,
    height2,
    width2,
    out,
    pixels,
    height,
    width,
    CHANNELS0: tl.constexpr,
    CHANNELS1: tl.constexpr,
    CHANNELS2: tl.constexpr,
    SAME_SIZE1: tl.constexpr,
    SAME_SIZE2: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    USE_INT64: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    INTERP_NUM_STAGES: tl.constexpr,
):
    """Compute fusion. x0, ...: (batch, height, width, CHANNELS) each. w0, ...: (OUT_CHANNELS, CHANNELS). b0, ...:
    (OUT_CHANNELS,). out: (pixels, OUT_CHANNELS), the pixels of all images. USE_INT64: sizes or offsets may not fit
    int32."""
    BLOCKS: tl.constexpr = (OUT_CHANNELS + BLOCK_N - 1) // BLOCK_N
    # Blocks of channels vary fastest, so that adjacent programs read the same pixels.
    pid = tl.program_id(0)
    offs_n = pid % BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
    pid_m = pid // BLOCKS
    if USE_INT64:
        pid_m = pid_m.to(tl.int64)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = (offs_m < pixels)[:, None] & (offs_n < OUT_CHANNELS)[None, :]
    offs_m = tl.minimum(offs_m, pixels - 1)  # so that no load needs a mask for pixels
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    # fmt: off
    acc = _add_input(acc, x0, w0, b0, height, width, height, width, offs_m, offs_n, CHANNELS0, OUT_CHANNELS, True,
                     ALIGN_CORNERS, USE_INT64, BLOCK_N, BLOCK_K, PRECISION, NUM_STAGES, INTERP_NUM_STAGES)
    acc = _add_input(acc, x1, w1, b1, height1, width1, height, width, offs_m, offs_n, CHANNELS1, OUT_CHANNELS,
                     SAME_SIZE1, ALIGN_CORNERS, USE_INT64, BLOCK_N, BLOCK_K, PRECISION, NUM_STAGES, INTERP_NUM_STAGES)
    acc = _add_input(acc, x2, w2, b2, height2, width2, height, width, offs_m, offs_n, CHANNELS2, OUT_CHANNELS,
                     SAME_SIZE2, ALIGN_CORNERS, USE_INT64, BLOCK_N, BLOCK_K, PRECISION, NUM_STAGES, INTERP_NUM_STAGES)
    # fmt: on
    if ACTIVATION != "none":
        acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if ACTIVATION == "relu6":
        acc = tl.minimum(acc, 6.0, propagate_nan=tl.PropagateNan.ALL)
    offsets = (offs_m * OUT_CHANNELS)[:, None] + offs_n[None, :]
    tl.store(out + offsets, round_to(acc, out.dtype.element_ty), mask=mask)


def prepare(
    inputs: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    activation: str,
    align_corners: bool,
    config: configs.Fusion | None = None,
    traced: bool = False,
) -> Launch:
    """Prepare the launch of `lwrn_fast.fusion`, whose arguments these are."""
    count = len(inputs)
    batch, _, height, width = inputs[0].shape
    out_channels = weights[0].shape[0]
    maps = [channels_last(x) for x in inputs]
    out = empty_channels_last(maps[0], (batch, out_channels, height, width))
    if out.numel() == 0:
        return Launch(fusion_kernel, (0,), {}, out, traced)
    dot_precision = input_precision(maps[0])
    precision = configs.precision_of(out, dot_precision)
    shapes = tuple(x.shape[1:] for x in maps)
    plan = memoized(_plan, traced)(batch, shapes, out_channels, align_corners, precision, out.device, config)
    slots = range(MAX_INPUTS)
    arguments = {
        **{f"x{k}": maps[k] if k < count else None for k in slots},
        **{f"w{k}": weights[k].contiguous() if k < count else None for k in slots},
        **{f"b{k}": biases[k].contiguous() if k < len(biases) else None for k in slots},
        "out": out,
        "ACTIVATION": activation,
        "PRECISION": dot_precision,
        **plan.arguments,
    }
    return Launch(fusion_kernel, plan.grid, arguments, out, traced)


@dataclass(frozen=True)
class _Plan:
    grid: tuple[int]
    arguments: dict[str, Any]


def _plan(
    batch: int,
    shapes: tuple[tuple[int, int, int], ...],
    out_channels: int,
    align_corners: bool,
    precision: str,
    device: torch.device,
    config: configs.Fusion | None,
) -> _Plan:
    """Compute all that does not depend on the tensors' addresses. shapes: (channels, height, width) of each input."""
    count = len(shapes)
    _, height, width = shapes[0]
    pixels = batch * height * width
    if config is None:
        config = configs.look_up(configs.Fusion, "fusion", configs.device_key(device), precision, pixels)
    channels = [c for c, _, _ in shapes]
    # A tile is no larger than the problem, but at least 16 in each dimension, the minimum of tl.dot.
    block_m = block_size(max(16, pixels), config.block_m)
    block_n = block_size(max(16, out_channels), config.block_n)
    block_k = block_size(max(16, *channels), config.block_k)
    if any(c % 8 for c in channels):  # unaligned loads, one value each, take more registers
        block_k = 16
    max_offset = max((batch * h * w + block_m) * c for c, h, w in [*shapes, (out_channels, height, width)])
    slots = range(MAX_INPUTS)
    arguments = {
        **{f"height{k}": shapes[k][1] if k < count else None for k in slots[1:]},
        **{f"width{k}": shapes[k][2] if k < count else None for k in slots[1:]},
        "pixels": pixels,
        "height": height,
        "width": width,
        **{f"CHANNELS{k}": channels[k] if k < count else 0 for k in slots},
        **{f"SAME_SIZE{k}": k < count and shapes[k][1:] == shapes[0][1:] for k in slots[1:]},
        "OUT_CHANNELS": out_channels,
        "ALIGN_CORNERS": align_corners,
        "USE_INT64": max_offset > MAX_INT32
        or any(needs_int64(h, height) or needs_int64(w, width) for _, h, w in shapes),
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "NUM_STAGES": config.num_stages,
        "INTERP_NUM_STAGES": config.interp_num_stages,
        "num_warps": config.num_warps,
        **OPTIONS,
    }
    return _Plan((cdiv(pixels, block_m) * cdiv(out_channels, block_n),), arguments)
