"""act(sum_k up(W_k x_k + b_k)) in one launch, as one matrix multiplication over the channels of all inputs.

A 1x1 convolution and the interpolation commute: inputs of another size than the result's are interpolated while they
are loaded, rounded to the maps' type, and multiplied like the others.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import MOST_INPUTS, configs
from .launch import OPTIONS, Launch, cdiv, channels_last, empty_channels_last, no_larger_than, planned, precision
from .numerics import comparable, float32, inline, load, rounded
from .taps import MOST_INT32, between, taps, wide


@inline
def _multiply(
    sums,
    operand,
    weight,
    channels,
    planes,
    CHANNELS: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK_PLANES: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """sums + operand (pixels, channels) times these channels' weights of these planes."""
    inside = (channels < CHANNELS)[:, None] & (planes < PLANES)[None, :]
    places = weight + (planes * CHANNELS)[None, :] + channels[:, None]
    factors = load(places, inside, MASKED or PLANES % BLOCK_PLANES != 0)
    return tl.dot(comparable(operand), comparable(factors), sums, input_precision=PRECISION)


@inline
def _add_input(
    sums,
    x,
    weight,
    bias,
    source_height,
    source_width,
    height,
    width,
    pixel,
    planes,
    CHANNELS: tl.constexpr,
    PLANES: tl.constexpr,
    SAME_SIZE: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_PLANES: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    PIPELINE: tl.constexpr,
    TAP_PIPELINE: tl.constexpr,
):
    """sums + the convolution of an input, where there is one."""
    if x is not None:
        MASKED: tl.constexpr = CHANNELS % BLOCK_DEPTH != 0
        if SAME_SIZE:
            places = x + (pixel * CHANNELS)[:, None]
            for first in tl.range(0, CHANNELS, BLOCK_DEPTH, num_stages=PIPELINE):
                channels = first + tl.arange(0, BLOCK_DEPTH)
                operand = load(places + channels[None, :], (channels < CHANNELS)[None, :], MASKED)
                sums = _multiply(
                    sums, operand, weight, channels, planes, CHANNELS, PLANES, BLOCK_PLANES, MASKED, PRECISION
                )
        else:
            y = pixel // width % height
            image = pixel // width // height * source_height
            top, bottom, bottom_weight = taps(y, source_height, height, ALIGN_CORNERS, WIDE)
            left, right, right_weight = taps(pixel % width, source_width, width, ALIGN_CORNERS, WIDE)
            top_left = x + (((image + top) * source_width + left) * CHANNELS)[:, None]
            top_right = x + (((image + top) * source_width + right) * CHANNELS)[:, None]
            bottom_left = x + (((image + bottom) * source_width + left) * CHANNELS)[:, None]
            bottom_right = x + (((image + bottom) * source_width + right) * CHANNELS)[:, None]
            bottom_weight = bottom_weight[:, None]
            right_weight = right_weight[:, None]
            for first in tl.range(0, CHANNELS, BLOCK_DEPTH, num_stages=TAP_PIPELINE):
                channels = first + tl.arange(0, BLOCK_DEPTH)
                inside = (channels < CHANNELS)[None, :]
                a = float32(load(top_left + channels[None, :], inside, MASKED))
                a = between(a, float32(load(bottom_left + channels[None, :], inside, MASKED)), bottom_weight)
                b = float32(load(top_right + channels[None, :], inside, MASKED))
                b = between(b, float32(load(bottom_right + channels[None, :], inside, MASKED)), bottom_weight)
                operand = rounded(between(a, b, right_weight), x.dtype.element_ty)
                sums = _multiply(
                    sums, operand, weight, channels, planes, CHANNELS, PLANES, BLOCK_PLANES, MASKED, PRECISION
                )
        if bias is not None:
            sums += float32(tl.load(bias + planes, mask=planes < PLANES, other=0.0))[None, :]
    return sums


@triton.jit
def _fusion(
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
    PLANES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_PLANES: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    PIPELINE: tl.constexpr,
    TAP_PIPELINE: tl.constexpr,
):
    """x0, ...: (batch, height, width, CHANNELS) each. w0, ...: (PLANES, CHANNELS). b0, ...: (PLANES,). out: (pixels,
    PLANES), those of all images. WIDE: sizes or offsets may not fit int32."""
    BLOCKS: tl.constexpr = (PLANES + BLOCK_PLANES - 1) // BLOCK_PLANES
    # Blocks of planes first, so that programs side by side read the same pixels.
    program = tl.program_id(0)
    planes = program % BLOCKS * BLOCK_PLANES + tl.arange(0, BLOCK_PLANES)
    tile = program // BLOCKS
    if WIDE:
        tile = tile.to(tl.int64)
    pixel = tile * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    inside = (pixel < pixels)[:, None] & (planes < PLANES)[None, :]
    pixel = tl.minimum(pixel, pixels - 1)  # so that no load needs a mask for pixels
    sums = tl.zeros([BLOCK_PIXELS, BLOCK_PLANES], dtype=tl.float32)
    # fmt: off
    sums = _add_input(sums, x0, w0, b0, height, width, height, width, pixel, planes, CHANNELS0, PLANES, True,
                      ALIGN_CORNERS, WIDE, BLOCK_PLANES, BLOCK_DEPTH, PRECISION, PIPELINE, TAP_PIPELINE)
    sums = _add_input(sums, x1, w1, b1, height1, width1, height, width, pixel, planes, CHANNELS1, PLANES, SAME_SIZE1,
                      ALIGN_CORNERS, WIDE, BLOCK_PLANES, BLOCK_DEPTH, PRECISION, PIPELINE, TAP_PIPELINE)
    sums = _add_input(sums, x2, w2, b2, height2, width2, height, width, pixel, planes, CHANNELS2, PLANES, SAME_SIZE2,
                      ALIGN_CORNERS, WIDE, BLOCK_PLANES, BLOCK_DEPTH, PRECISION, PIPELINE, TAP_PIPELINE)
    # fmt: on
    if ACTIVATION != "none":
        sums = tl.maximum(sums, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if ACTIVATION == "relu6":
        sums = tl.minimum(sums, 6.0, propagate_nan=tl.PropagateNan.ALL)
    places = (pixel * PLANES)[:, None] + planes[None, :]
    tl.store(out + places, rounded(sums, out.dtype.element_ty), mask=inside)


def prepare(
    inputs: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    activation: str,
    align_corners: bool,
    config: configs.Fusion | None = None,
    traced: bool = False,
) -> Launch:
    """The launch that computes `lwrn_fast.fusion`, whose arguments these are."""
    count = len(inputs)
    batch, _, height, width = inputs[0].shape
    planes = weights[0].shape[0]
    maps = [channels_last(x) for x in inputs]
    out = empty_channels_last(maps[0], (batch, planes, height, width))
    if out.numel() == 0:
        return Launch(_fusion, 0, {}, out, traced)
    how = precision(maps[0])
    kind = configs.kind_of(out, how)
    shapes = tuple(x.shape[1:] for x in maps)
    plan = planned(_plan, traced)(batch, shapes, planes, align_corners, kind, out.device, config)
    slots = range(MOST_INPUTS)
    arguments = {
        **{f"x{k}": maps[k] if k < count else None for k in slots},
        **{f"w{k}": weights[k].contiguous() if k < count else None for k in slots},
        **{f"b{k}": biases[k].contiguous() if k < len(biases) else None for k in slots},
        "out": out,
        "ACTIVATION": activation,
        "PRECISION": how,
        **plan.arguments,
    }
    return Launch(_fusion, plan.programs, arguments, out, traced)


@dataclass(frozen=True)
class _Plan:
    programs: int
    arguments: dict[str, Any]


def _plan(
    batch: int,
    shapes: tuple[tuple[int, int, int], ...],
    planes: int,
    align_corners: bool,
    kind: str,
    device: torch.device,
    config: configs.Fusion | None,
) -> _Plan:
    """All that does not depend on where the tensors lie. shapes: (channels, height, width) of each input."""
    count = len(shapes)
    _, height, width = shapes[0]
    pixels = batch * height * width
    if config is None:
        config = configs.look_up(configs.Fusion, "fusion", configs.device_key(device), kind, pixels)
    channels = [c for c, _, _ in shapes]
    # no tile larger than the problem, but 16, which is the least that can be multiplied
    block_pixels = no_larger_than(max(16, pixels), config.block_pixels)
    block_planes = no_larger_than(max(16, planes), config.block_planes)
    block_depth = no_larger_than(max(16, *channels), config.block_depth)
    if any(c % 8 for c in channels):  # loads of single values, which take more registers
        block_depth = 16
    most = max((batch * h * w + block_pixels) * c for c, h, w in [*shapes, (planes, height, width)])
    slots = range(MOST_INPUTS)
    arguments = {
        **{f"height{k}": shapes[k][1] if k < count else None for k in slots[1:]},
        **{f"width{k}": shapes[k][2] if k < count else None for k in slots[1:]},
        "pixels": pixels,
        "height": height,
        "width": width,
        **{f"CHANNELS{k}": channels[k] if k < count else 0 for k in slots},
        **{f"SAME_SIZE{k}": k < count and shapes[k][1:] == shapes[0][1:] for k in slots[1:]},
        "PLANES": planes,
        "ALIGN_CORNERS": align_corners,
        "WIDE": most > MOST_INT32 or any(wide(h, height) or wide(w, width) for _, h, w in shapes),
        "BLOCK_PIXELS": block_pixels,
        "BLOCK_PLANES": block_planes,
        "BLOCK_DEPTH": block_depth,
        "PIPELINE": config.pipeline,
        "TAP_PIPELINE": config.tap_pipeline,
        "num_warps": config.warps,
        **OPTIONS,
    }
    return _Plan(cdiv(pixels, block_pixels) * cdiv(planes, block_planes), arguments)
