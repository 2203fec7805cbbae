"""The class of the largest upsampled logit, per label, in one launch: upsampled logits exist only in registers.

A program finds the labels of a tile, walking over the classes with the best so far. Logits are compared as whole
numbers, in which there is an order of all values, NaN included. Neighbouring labels lie between the same few pixels, so
that a warp's loads meet in few cache lines.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .launch import OPTIONS, Launch, cdiv, channels_last, no_larger_than
from .numerics import float32, inline
from .taps import MOST_INT32, between, taps, wide

_LARGEST = tl.constexpr(MOST_INT32)
_SMALLEST = tl.constexpr(-MOST_INT32 - 1)


@inline
def _key(x):
    """Whole numbers in the order of the float32 numbers x, in which NaN is the largest, and both zeros are equal."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(x == x, bits ^ ((bits >> 31) & 0x7FFFFFFF), _LARGEST)


@triton.jit
def _upsample_argmax(
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
    WIDE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    """logits: (batch, source_height, source_width, CLASSES). labels: (batch, height, width). items: the tiles of all
    images. WIDE: sizes, items, or offsets within an image of logits may not fit int32."""
    pixels = tl.arange(0, BLOCK_H * BLOCK_W)
    item = tl.program_id(0)
    if WIDE:
        item = item.to(tl.int64)
    while item < items:
        tile = item % (tiles_y * tiles_x)
        image = (item // (tiles_y * tiles_x)).to(tl.int64)
        y = tile // tiles_x * BLOCK_H + pixels // BLOCK_W
        x = tile % tiles_x * BLOCK_W + pixels % BLOCK_W
        inside = (y < height) & (x < width)
        # labels outside repeat the border, so that no load needs a mask for them
        y = tl.minimum(y, height - 1)
        x = tl.minimum(x, width - 1)
        top, bottom, bottom_weight = taps(y, source_height, height, ALIGN_CORNERS, WIDE)
        left, right, right_weight = taps(x, source_width, width, ALIGN_CORNERS, WIDE)
        top_left = ((top * source_width + left) * CLASSES)[:, None]
        top_right = ((top * source_width + right) * CLASSES)[:, None]
        bottom_left = ((bottom * source_width + left) * CLASSES)[:, None]
        bottom_right = ((bottom * source_width + right) * CLASSES)[:, None]
        bottom_weight = bottom_weight[:, None]
        right_weight = right_weight[:, None]
        source = logits + image * source_height * source_width * CLASSES

        best = tl.full([BLOCK_H * BLOCK_W], _SMALLEST, tl.int32)
        label = tl.zeros([BLOCK_H * BLOCK_W], tl.int32)
        for first in tl.range(0, CLASSES, BLOCK_CLASSES, num_stages=1):
            classes = (first + tl.arange(0, BLOCK_CLASSES))[None, :]
            values = float32(tl.load(source + top_left + classes))
            if not SAME_SIZE:
                a = between(values, float32(tl.load(source + bottom_left + classes)), bottom_weight)
                b = float32(tl.load(source + top_right + classes))
                b = between(b, float32(tl.load(source + bottom_right + classes)), bottom_weight)
                values = between(a, b, right_weight)
            keys = _key(values)
            largest, which = tl.max(keys, axis=1, return_indices=True, return_indices_tie_break_left=True)
            label = tl.where(largest > best, first + which, label)
            best = tl.maximum(best, largest)
        places = (image * height + y) * width + x
        tl.store(labels + places, label.to(tl.uint8), mask=inside)
        item += tl.num_programs(0)


def prepare(
    logits: Tensor,
    height: int,
    width: int,
    align_corners: bool,
    config: configs.UpsampleArgmax | None = None,
    traced: bool = False,
) -> Launch:
    """The launch that computes `lwrn_fast.upsample_argmax`, whose arguments these are."""
    batch, classes, source_height, source_width = logits.shape
    logits = channels_last(logits)
    out = torch.empty((batch, height, width), dtype=torch.uint8, device=logits.device)
    if out.numel() == 0:
        return Launch(_upsample_argmax, 0, {}, out, traced)
    if config is None:
        device, kind = configs.device_key(logits.device), configs.kind_of(logits, "ieee")
        config = configs.look_up(configs.UpsampleArgmax, "upsample_argmax", device, kind, batch * height * width)
    block_h = no_larger_than(height, config.block_h)
    block_w = no_larger_than(width, config.block_w)
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
        "WIDE": wide(source_height, height)
        or wide(source_width, width)
        or max(classes * source_height * source_width, 2 * items) > MOST_INT32,
        "BLOCK_H": block_h,
        "BLOCK_W": block_w,
        "BLOCK_CLASSES": min(config.block_classes, classes & -classes),
        "num_warps": config.warps,
        **OPTIONS,
    }
    return Launch(_upsample_argmax, min(items, MOST_INT32), arguments, out, traced)
