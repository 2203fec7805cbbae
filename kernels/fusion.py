"""act(sum_k up(W_k x_k + b_k)) in one launch, as one matrix multiplication over the channels of all inputs.

A 1x1 convolution and the interpolation commute: inputs of another size than the result's are interpolated while they
are loaded, rounded to the maps' type, and multiplied like the others.
"""

import triton
import triton.language as tl
from torch import Tensor

from . import MOST_INPUTS, configs
from .launch import OPTIONS, Launch, cdiv, channels_last, empty_channels_last, matrix, power_of_two, precision
from .taps import MOST_INT32, between, taps, wide
from .values import comparable, float32, inline, rounded


@inline
def _load(places, inside, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(places, mask=inside, other=0.0)
    return tl.load(places)


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
    factors = _load(places, inside, MASKED or PLANES % BLOCK_PLANES != 0)
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
                operand = _load(places + channels[None, :], (channels < CHANNELS)[None, :], MASKED)
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
                a = float32(_load(top_left + channels[None, :], inside, MASKED))
                a = between(a, float32(_load(bottom_left + channels[None, :], inside, MASKED)), bottom_weight)
                b = float32(_load(top_right + channels[None, :], inside, MASKED))
                b = between(b, float32(_load(bottom_right + channels[None, :], inside, MASKED)), bottom_weight)
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
) -> Launch:
    """The launch that computes `lwrn_fast.fusion`, whose arguments these are."""
    count = len(inputs)
    batch, _, height, width = inputs[0].shape
    planes = weights[0].shape[0]
    pixels = batch * height * width
    maps = [channels_last(x) for x in inputs]
    out = empty_channels_last(maps[0], (batch, planes, height, width))
    if pixels == 0:
        return Launch(_fusion, 0, {}, out)
    how = precision(maps[0])
    if config is None:
        device = configs.device_key(out.device)
        config = configs.look_up(configs.Fusion, "fusion", device, configs.kind_of(out, how), pixels)
    # no tile larger than the problem, but 16, which is the least that can be multiplied
    channels = [x.shape[1] for x in maps]
    block_pixels = min(config.block_pixels, max(16, power_of_two(pixels)))
    block_planes = min(config.block_planes, max(16, power_of_two(planes)))
    block_depth = min(config.block_depth, max(16, power_of_two(max(channels))))
    if any(c % 8 for c in channels):  # loads of single values, which take more registers
        block_depth = 16
    sizes = [(x.shape[2], x.shape[3]) for x in maps]
    slots = range(MOST_INPUTS)
    arguments = {
        **{f"x{k}": maps[k] if k < count else None for k in slots},
        **{f"w{k}": matrix(weights[k]) if k < count else None for k in slots},
        **{f"b{k}": biases[k].contiguous() if k < len(biases) else None for k in slots},
        **{f"height{k}": sizes[k][0] if k < count else None for k in slots[1:]},
        **{f"width{k}": sizes[k][1] if k < count else None for k in slots[1:]},
        "out": out,
        "pixels": pixels,
        "height": height,
        "width": width,
        **{f"CHANNELS{k}": channels[k] if k < count else 0 for k in slots},
        **{f"SAME_SIZE{k}": k < count and sizes[k] == sizes[0] for k in slots[1:]},
        "PLANES": planes,
        "ACTIVATION": activation,
        "ALIGN_CORNERS": align_corners,
        "WIDE": any(x.numel() + block_pixels * x.shape[1] > MOST_INT32 for x in [*maps, out])
        or any(wide(h, height) or wide(w, width) for h, w in sizes),
        "PRECISION": how,
        "BLOCK_PIXELS": block_pixels,
        "BLOCK_PLANES": block_planes,
        "BLOCK_DEPTH": block_depth,
        "PIPELINE": config.pipeline,
        "TAP_PIPELINE": config.tap_pipeline,
        "num_warps": config.warps,
        **OPTIONS,
    }
    return Launch(_fusion, cdiv(pixels, block_pixels) * cdiv(planes, block_planes), arguments, out)
