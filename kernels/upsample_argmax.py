"""Argmax over classes of bilinearly upsampled logits, in one launch: upsampled logits exist only in registers.

A program computes the labels of a tile, in a loop over the classes that keeps the maximum so far. Logits are compared
as whole numbers that order all values, NaN included. Neighbouring labels lie between the same few source pixels, so
that a warp's loads share few cache lines.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .launch import OPTIONS, Launch, block_size, cdiv, channels_last
from .numerics import inline, to_float32
from .taps import MAX_INT32, interpolate, needs_int64, taps

_MAX_KEY = tl.constexpr(MAX_INT32)
_MIN_KEY = tl.constexpr(-MAX_INT32 - 1)


@inline
def _sort_key(x):
    """Map float32 x to int32 in the same order, in which NaN is the largest, and both zeros are equal."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(x == x, bits ^ ((bits >> 31) & 0x7FFFFFFF), _MAX_KEY)


@triton.jit
def upsample_argmax_kernel(
    logits,
    labels,
    items,
    tiles_y,
    tiles_x,
    source_height,
    source_width,
    height,
    width,
    CLASSES: tl.constexpr,
    SAME_SIZE: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    USE_INT64: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    """Compute upsample_argmax. logits: (batch, source_height, source_width, CLASSES). labels: (batch, height, width).
    items: the tiles of all images. USE_INT64: sizes, items, or offsets within an image of logits may not fit int32."""
    offs_m = tl.arange(0, BLOCK_H * BLOCK_W)
    item = tl.program_id(0)
    if USE_INT64:
        item = item.to(tl.int64)
    while item < items:
        tile = item % (tiles_y * tiles_x)
        image = (item // (tiles_y * tiles_x)).to(tl.int64)
        y = tile // tiles_x * BLOCK_H + offs_m // BLOCK_W
        x = tile % tiles_x * BLOCK_W + offs_m % BLOCK_W
        mask = (y < height) & (x < width)
        # Labels outside repeat the border, so that no load needs a mask for them.
        y = tl.minimum(y, height - 1)
        x = tl.minimum(x, width - 1)
        top, bottom, bottom_weight = taps(y, source_height, height, ALIGN_CORNERS, USE_INT64)
        left, right, right_weight = taps(x, source_width, width, ALIGN_CORNERS, USE_INT64)
        top_left = ((top * source_width + left) * CLASSES)[:, None]
        top_right = ((top * source_width + right) * CLASSES)[:, None]
        bottom_left = ((bottom * source_width + left) * CLASSES)[:, None]
        bottom_right = ((bottom * source_width + right) * CLASSES)[:, None]
        bottom_weight = bottom_weight[:, None]
        right_weight = right_weight[:, None]
        source = logits + image * source_height * source_width * CLASSES

        max_key = tl.full([BLOCK_H * BLOCK_W], _MIN_KEY, tl.int32)
        label = tl.zeros([BLOCK_H * BLOCK_W], tl.int32)
        for first in tl.range(0, CLASSES, BLOCK_CLASSES, num_stages=1):
            classes = (first + tl.arange(0, BLOCK_CLASSES))[None, :]
            upsampled = to_float32(tl.load(source + top_left + classes))
            if not SAME_SIZE:
                lower = to_float32(tl.load(source + bottom_left + classes))
                left_column = interpolate(upsampled, lower, bottom_weight)
                right_column = to_float32(tl.load(source + top_right + classes))
                lower = to_float32(tl.load(source + bottom_right + classes))
                right_column = interpolate(right_column, lower, bottom_weight)
                upsampled = interpolate(left_column, right_column, right_weight)
            keys = _sort_key(upsampled)
            block_max, argmax = tl.max(keys, axis=1, return_indices=True, return_indices_tie_break_left=True)
            label = tl.where(block_max > max_key, first + argmax, label)
            max_key = tl.maximum(max_key, block_max)
        offsets = (image * height + y) * width + x
        tl.store(labels + offsets, label.to(tl.uint8), mask=mask)
        item += tl.num_programs(0)


def prepare(
    logits: Tensor,
    height: int,
    width: int,
    align_corners: bool,
    config: configs.UpsampleArgmax | None = None,
    traced: bool = False,
) -> Launch:
    """Prepare the launch of `lwrn_fast.upsample_argmax`, whose arguments these are."""
    batch, classes, source_height, source_width = logits.shape
    logits = channels_last(logits)
    out = torch.empty((batch, height, width), dtype=torch.uint8, device=logits.device)
    if out.numel() == 0:
        return Launch(upsample_argmax_kernel, (0,), {}, out, traced)
    if config is None:
        key, precision = configs.device_key(logits.device), configs.precision_of(logits, "ieee")
        config = configs.look_up(configs.UpsampleArgmax, "upsample_argmax", key, precision, batch * height * width)
    block_h = block_size(height, config.block_h)
    block_w = block_size(width, config.block_w)
    tiles_y, tiles_x = cdiv(height, block_h), cdiv(width, block_w)
    items = batch * tiles_y * tiles_x
    arguments = {
        "logits": logits,
        "labels": out,
        "items": items,
        "tiles_y": tiles_y,
        "tiles_x": tiles_x,
        "source_height": source_height,
        "source_width": source_width,
        "height": height,
        "width": width,
        "CLASSES": classes,
        "SAME_SIZE": (source_height, source_width) == (height, width),
        "ALIGN_CORNERS": align_corners,
        "USE_INT64": needs_int64(source_height, height)
        or needs_int64(source_width, width)
        or max(classes * source_height * source_width, 2 * items) > MAX_INT32,
        "BLOCK_H": block_h,
        "BLOCK_W": block_w,
        "BLOCK_CLASSES": min(config.block_classes, classes & -classes),
        "num_warps": config.num_warps,
        **OPTIONS,
    }
    return Launch(upsample_argmax_kernel, (min(items, MAX_INT32),), arguments, out, traced)
