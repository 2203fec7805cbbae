"""The matrix products of backward passes: gradients of the input and of the weight of a 1x1 convolution.

A weight's gradient is a sum over all pixels: each program sums some of them in float32, in a place of its own, and a
second launch adds up the places in order. So results are the same bit for bit, and no program waits for another.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .launch import OPTIONS, Launch, cdiv, no_larger_than, planned, precision
from .numerics import comparable, load, rounded, sum_of_rows
from .taps import MOST_INT32

MOST_PLACES = 64  # of partial sums, which are as large as the weight
_AT_ONCE = 2048  # partial sums added up by a program


@triton.jit
def _input_gradient(
    grad,
    weight,
    out,
    pixels,
    PLANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    PIPELINE: tl.constexpr,
):
    """grad: (pixels, PLANES). weight: (PLANES, CHANNELS). out: (pixels, CHANNELS). WIDE: offsets may not fit int32."""
    BLOCKS: tl.constexpr = (CHANNELS + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    MASKED: tl.constexpr = PLANES % BLOCK_DEPTH != 0
    # Blocks of channels first, so that programs side by side read the same pixels.
    program = tl.program_id(0)
    channels = program % BLOCKS * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    tile = program // BLOCKS
    if WIDE:
        tile = tile.to(tl.int64)
    pixel = tile * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    inside = (pixel < pixels)[:, None] & (channels < CHANNELS)[None, :]
    pixel = tl.minimum(pixel, pixels - 1)  # so that no load needs a mask for pixels
    sums = tl.zeros([BLOCK_PIXELS, BLOCK_CHANNELS], dtype=tl.float32)
    for first in tl.range(0, PLANES, BLOCK_DEPTH, num_stages=PIPELINE):
        planes = first + tl.arange(0, BLOCK_DEPTH)
        grads = load(grad + (pixel * PLANES)[:, None] + planes[None, :], (planes < PLANES)[None, :], MASKED)
        of_weight = (planes < PLANES)[:, None] & (channels < CHANNELS)[None, :]
        places = weight + (planes * CHANNELS)[:, None] + channels[None, :]
        factors = load(places, of_weight, MASKED or CHANNELS % BLOCK_CHANNELS != 0)
        sums = tl.dot(comparable(grads), comparable(factors), sums, input_precision=PRECISION)
    places = (pixel * CHANNELS)[:, None] + channels[None, :]
    tl.store(out + places, rounded(sums, out.dtype.element_ty), mask=inside)


@triton.jit
def _weight_gradient(
    grad,
    x,
    sums,
    pixels,
    share,
    PLANES: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_PLANES: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    PIPELINE: tl.constexpr,
):
    """grad: (pixels, PLANES). x: (pixels, CHANNELS). sums: (places, PLANES, CHANNELS), each over `share` pixels. WIDE:
    offsets may not fit int32."""
    ACROSS: tl.constexpr = (CHANNELS + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    BLOCKS: tl.constexpr = ACROSS * ((PLANES + BLOCK_PLANES - 1) // BLOCK_PLANES)
    program = tl.program_id(0)
    planes = program % BLOCKS // ACROSS * BLOCK_PLANES + tl.arange(0, BLOCK_PLANES)
    channels = program % ACROSS * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    place = program // BLOCKS
    if WIDE:
        place = place.to(tl.int64)
    begin = place * share
    total = tl.zeros([BLOCK_PLANES, BLOCK_CHANNELS], dtype=tl.float32)
    for first in tl.range(0, share, BLOCK_DEPTH, num_stages=PIPELINE):
        pixel = begin + first + tl.arange(0, BLOCK_DEPTH)
        of_grad, of_x = (pixel < pixels)[None, :], (pixel < pixels)[:, None]
        if PLANES % BLOCK_PLANES != 0:
            of_grad = of_grad & (planes < PLANES)[:, None]
        if CHANNELS % BLOCK_CHANNELS != 0:
            of_x = of_x & (channels < CHANNELS)[None, :]
        grads = tl.load(grad + (pixel * PLANES)[None, :] + planes[:, None], mask=of_grad, other=0.0)
        values = tl.load(x + (pixel * CHANNELS)[:, None] + channels[None, :], mask=of_x, other=0.0)
        total = tl.dot(comparable(grads), comparable(values), total, input_precision=PRECISION)
    places = place * (PLANES * CHANNELS) + (planes * CHANNELS)[:, None] + channels[None, :]
    inside = (planes < PLANES)[:, None] & (channels < CHANNELS)[None, :]
    tl.store(sums + places, rounded(total, sums.dtype.element_ty), mask=inside)


@triton.jit
def _add_up(sums, out, places, VALUES: tl.constexpr, BLOCK_PLACES: tl.constexpr, BLOCK_VALUES: tl.constexpr):
    """sums: (places, VALUES), float32. out: (VALUES,)."""
    values = tl.program_id(0) * BLOCK_VALUES + tl.arange(0, BLOCK_VALUES)
    total = tl.zeros([BLOCK_VALUES], dtype=tl.float32)
    for first in tl.range(0, places, BLOCK_PLACES, num_stages=1):
        place = first + tl.arange(0, BLOCK_PLACES)
        inside = (place < places)[:, None] & (values < VALUES)[None, :]
        at = sums + place.to(tl.int64)[:, None] * VALUES + values[None, :]
        total += sum_of_rows(tl.load(at, mask=inside, other=0.0))
    tl.store(out + values, rounded(total, out.dtype.element_ty), mask=values < VALUES)


def input_gradient(
    grad: Tensor, weight: Tensor, out: Tensor, config: configs.Products | None = None, traced: bool = False
) -> Launch:
    """out = weight^T grad. grad, out: channels-last maps of as many pixels. weight: (planes, channels, 1, 1)."""
    how = precision(grad)
    plan = _planned(grad, out.shape[1], how, config, traced)
    blocks = cdiv(plan.pixels, plan.block_pixels) * cdiv(plan.channels, plan.block_channels)
    arguments = {
        "grad": grad,
        "weight": weight.contiguous(),
        "out": out,
        "pixels": plan.pixels,
        "PRECISION": how,
        "BLOCK_PIXELS": plan.block_pixels,
        "BLOCK_DEPTH": plan.block_depth,
        **plan.arguments,
    }
    return Launch(_input_gradient, blocks, arguments, out, traced)


def weight_gradient(
    grad: Tensor, x: Tensor, out: Tensor, config: configs.Products | None = None, traced: bool = False
) -> list[Launch]:
    """out = the sum over all pixels of grad x^T. grad, x: channels-last maps of as many pixels. out: as the weight."""
    how = precision(grad)
    plan = _planned(grad, x.shape[1], how, config, traced)
    sums = out
    if plan.places > 1:
        sums = torch.empty((plan.places, out.numel()), dtype=torch.float32, device=out.device)
    blocks = cdiv(plan.planes, plan.block_planes) * cdiv(plan.channels, plan.block_channels)
    arguments = {
        "grad": grad,
        "x": x,
        "sums": sums,
        "pixels": plan.pixels,
        "share": plan.share,
        "PRECISION": how,
        "BLOCK_PLANES": plan.block_planes,
        "BLOCK_DEPTH": plan.block_pixels_deep,
        **plan.arguments,
    }
    launch = Launch(_weight_gradient, plan.places * blocks, arguments, sums, traced)
    return [launch] if plan.places == 1 else [launch, add_up(sums, out, traced)]


def add_up(sums: Tensor, out: Tensor, traced: bool = False) -> Launch:
    """out = the sum of the rows of sums (places, values), in float32."""
    places, values = sums.shape
    block_places = no_larger_than(places, 128)
    block_values = no_larger_than(values, _AT_ONCE // block_places)
    arguments = {
        "sums": sums,
        "out": out,
        "places": places,
        "VALUES": values,
        "BLOCK_PLACES": block_places,
        "BLOCK_VALUES": block_values,
        "num_warps": 4,
        **OPTIONS,
    }
    return Launch(_add_up, cdiv(values, block_values), arguments, out, traced)


@dataclass(frozen=True)
class _Plan:
    pixels: int
    planes: int
    channels: int
    block_pixels: int
    block_planes: int
    block_channels: int
    block_depth: int
    block_pixels_deep: int  # of a weight's gradient, whose products are over the pixels
    share: int  # pixels summed in one place
    places: int
    arguments: dict[str, Any]


def _planned(grad: Tensor, channels: int, how: str, config: configs.Products | None, traced: bool) -> _Plan:
    kind = configs.kind_of(grad, how)
    return planned(_plan, traced)(*grad.shape, channels, kind, grad.device, config)


def _plan(
    batch: int,
    planes: int,
    height: int,
    width: int,
    channels: int,
    kind: str,
    device: torch.device,
    config: configs.Products | None,
) -> _Plan:
    """All that does not depend on where the tensors lie."""
    pixels = batch * height * width
    if config is None:
        config = configs.look_up(configs.Products, "products", configs.device_key(device), kind, pixels)
    # no tile larger than the problem, but 16, which is the least that can be multiplied
    block_pixels_deep = no_larger_than(max(16, pixels), config.block_depth)
    share = cdiv(max(config.share, cdiv(pixels, MOST_PLACES)), block_pixels_deep) * block_pixels_deep
    block_pixels = no_larger_than(max(16, pixels), config.block_pixels)
    block_channels = no_larger_than(max(16, channels), config.block_planes)
    arguments = {
        "PLANES": planes,
        "CHANNELS": channels,
        "WIDE": (pixels + max(block_pixels, share)) * max(planes, channels) > MOST_INT32,
        "BLOCK_CHANNELS": block_channels,
        "PIPELINE": config.pipeline,
        "num_warps": config.warps,
        **OPTIONS,
    }
    return _Plan(
        pixels,
        planes,
        channels,
        block_pixels,
        no_larger_than(max(16, planes), config.block_planes),
        block_channels,
        no_larger_than(max(16, planes), config.block_depth),
        block_pixels_deep,
        share,
        cdiv(pixels, share),
        arguments,
    )
