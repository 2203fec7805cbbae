"""The backward pass of fusion: g, stopped where the activation is flat, then for each input

    g_k = up^T g,  dx_k = W_k^T g_k,  dW_k = sum over pixels of g_k x_k^T,  and db = sum of g, the same for all.

The interpolation's adjoint up^T is a gather: each pixel of the smaller map sums over the few pixels that lie between it
and its neighbours. What it reads is complete, and products come after, by the order of launches.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs, products
from .launch import (
    OPTIONS,
    Launch,
    Launches,
    cdiv,
    channels_last,
    empty_channels_last,
    gradients_of,
    no_larger_than,
    planned,
)
from .numerics import float32, inline, load, rounded, sum_of_rows
from .taps import first_beyond, most_between, taps, wide


@triton.jit
def _stop(
    grad,
    out,
    stopped,
    sums,
    pixels,
    PLANES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_PLANES: tl.constexpr,
):
    """grad, out, stopped: (pixels, PLANES). out: the result of the activation; stopped: grad where that is not flat, as
    at NaN; both None where there is none. sums: (tiles, PLANES) of stopped in float32, or None."""
    BLOCKS: tl.constexpr = (PLANES + BLOCK_PLANES - 1) // BLOCK_PLANES
    tile = tl.program_id(0) // BLOCKS
    planes = tl.program_id(0) % BLOCKS * BLOCK_PLANES + tl.arange(0, BLOCK_PLANES)
    pixel = tile.to(tl.int64) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    inside = (pixel < pixels)[:, None] & (planes < PLANES)[None, :]
    places = (pixel * PLANES)[:, None] + planes[None, :]
    value = float32(tl.load(grad + places, mask=inside, other=0.0))
    if stopped is not None:
        result = float32(tl.load(out + places, mask=inside, other=0.0))
        flat = result <= 0.0
        if ACTIVATION == "relu6":
            flat = flat | (result >= 6.0)
        value = tl.where(flat, 0.0, value)
        tl.store(stopped + places, rounded(value, stopped.dtype.element_ty), mask=inside)
    if sums is not None:
        tl.store(sums + tile.to(tl.int64) * PLANES + planes, sum_of_rows(value), mask=planes < PLANES)


@inline
def _back(value, at, low, high, high_weight, real):
    """What a value between `low` and `high` gives to the pixel `at`. A weight of 0 counts, as in `taps.between`."""
    return tl.where(real & (low == at), value * (1.0 - high_weight), 0.0) + tl.where(
        real & (high == at), value * high_weight, 0.0
    )


@triton.jit
def _shrink(
    grad,
    out,
    height,
    width,
    low_height,
    low_width,
    rows,
    columns,
    tiles_y,
    tiles_x,
    PLANES: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_PLANES: tl.constexpr,
):
    """grad: (batch, height, width, PLANES). out: (batch, low_height, low_width, PLANES), the interpolation's adjoint.
    rows, columns: at most so many of grad reach a pixel of out. WIDE: count pixels of a side in int64."""
    BLOCKS: tl.constexpr = (PLANES + BLOCK_PLANES - 1) // BLOCK_PLANES
    MASKED: tl.constexpr = PLANES % BLOCK_PLANES != 0
    tile = tl.program_id(0) // BLOCKS
    planes = (tl.program_id(0) % BLOCKS * BLOCK_PLANES + tl.arange(0, BLOCK_PLANES))[None, :]
    of_planes = planes < PLANES
    pixels = tl.arange(0, BLOCK_H * BLOCK_W)
    y = tile // tiles_x % tiles_y * BLOCK_H + pixels // BLOCK_W
    x = tile % tiles_x * BLOCK_W + pixels % BLOCK_W
    image = (tile // (tiles_y * tiles_x)).to(tl.int64)
    top = first_beyond(y - 1, low_height, height, ALIGN_CORNERS, WIDE)
    bottom = first_beyond(y + 1, low_height, height, ALIGN_CORNERS, WIDE)
    left = first_beyond(x - 1, low_width, width, ALIGN_CORNERS, WIDE)
    right = first_beyond(x + 1, low_width, width, ALIGN_CORNERS, WIDE)

    total = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_PLANES], dtype=tl.float32)
    for row in tl.range(0, rows, num_stages=1):
        real_row = top + row < bottom
        from_y = tl.minimum(top + row, height - 1)
        of_row = grad + (((image * height + from_y) * width) * PLANES)[:, None] + planes
        of_columns = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_PLANES], dtype=tl.float32)
        for column in tl.range(0, columns, num_stages=1):
            real = left + column < right
            from_x = tl.minimum(left + column, width - 1)
            value = float32(load(of_row + (from_x * PLANES)[:, None], of_planes, MASKED))
            low, high, high_weight = taps(from_x, low_width, width, ALIGN_CORNERS, WIDE)
            of_columns += _back(value, x[:, None], low[:, None], high[:, None], high_weight[:, None], real[:, None])
        low, high, high_weight = taps(from_y, low_height, height, ALIGN_CORNERS, WIDE)
        total += _back(of_columns, y[:, None], low[:, None], high[:, None], high_weight[:, None], real_row[:, None])
    places = (((image * low_height + y) * low_width + x) * PLANES)[:, None] + planes
    inside = ((y < low_height) & (x < low_width))[:, None] & of_planes
    tl.store(out + places, rounded(total, out.dtype.element_ty), mask=inside)


def prepare(
    grad: Tensor,
    out: Tensor | None,
    inputs: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    activation: str,
    align_corners: bool,
    needs: list[bool],
    config: configs.Tile | None = None,
    of_products: configs.Products | None = None,
    traced: bool = False,
) -> Launches:
    """The launches that compute `torch.ops.lwrn_fast.fusion_backward`, whose arguments these are."""
    count = len(inputs)
    found = gradients_of([*inputs, *weights, *biases], needs)
    results = [gradient for gradient in found if gradient is not None]
    if not results or grad.numel() == 0:
        return Launches([], [gradient.zero_() for gradient in results])
    of_inputs, of_weights = found[:count], found[count : 2 * count]
    of_biases = [gradient for gradient in found[2 * count :] if gradient is not None]
    grad = channels_last(grad)
    launches: list[Launch] = []
    if of_biases or activation != "none":
        launch = _stopping(grad, out, activation, bool(of_biases), config, traced)
        launches.append(launch)
        launches += [products.add_up(launch.arguments["sums"], gradient, traced) for gradient in of_biases]
        grad = launch.out
    for x, weight, of_input, of_weight in zip(inputs, weights, of_inputs, of_weights, strict=True):
        if of_input is None and of_weight is None:
            continue
        low_grad = grad
        if x.shape[2:] != grad.shape[2:]:
            low_grad = empty_channels_last(grad, (*grad.shape[:2], *x.shape[2:]))
            launches.append(_shrinking(grad, low_grad, align_corners, config, traced))
        if of_input is not None:
            launches.append(products.input_gradient(low_grad, weight, of_input, of_products, traced))
        if of_weight is not None:
            launches += products.weight_gradient(low_grad, channels_last(x), of_weight, of_products, traced)
    return Launches(launches, results)


def _stopping(
    grad: Tensor, out: Tensor | None, activation: str, summed: bool, config: configs.Tile | None, traced: bool
) -> Launch:
    """Its result is the gradient before the activation; its sums, over each tile, are those of a bias."""
    batch, planes, height, width = grad.shape
    plan = planned(_stop_plan, traced)(
        batch * height * width, planes, configs.kind_of(grad, "ieee"), grad.device, config
    )
    stopped = None if activation == "none" else torch.empty_like(grad)
    arguments = {
        "grad": grad,
        "out": None if out is None else channels_last(out),
        "stopped": stopped,
        "sums": torch.empty((plan.tiles, planes), dtype=torch.float32, device=grad.device) if summed else None,
        "ACTIVATION": activation,
        **plan.arguments,
    }
    return Launch(_stop, plan.programs, arguments, grad if stopped is None else stopped, traced)


def _shrinking(grad: Tensor, out: Tensor, align_corners: bool, config: configs.Tile | None, traced: bool) -> Launch:
    kind = configs.kind_of(grad, "ieee")
    plan = planned(_shrink_plan, traced)(*out.shape, *grad.shape[2:], align_corners, kind, grad.device, config)
    return Launch(_shrink, plan.programs, {"grad": grad, "out": out, **plan.arguments}, out, traced)


@dataclass(frozen=True)
class _Plan:
    tiles: int
    programs: int
    arguments: dict[str, Any]


def _stop_plan(pixels: int, planes: int, kind: str, device: torch.device, config: configs.Tile | None) -> _Plan:
    """All that does not depend on where the tensors lie."""
    if config is None:
        config = configs.look_up(configs.Tile, "fusion_backward", configs.device_key(device), kind, pixels)
    block_pixels = no_larger_than(pixels, config.block_h * config.block_w)
    block_planes = no_larger_than(planes, config.block_planes)
    arguments = {
        "pixels": pixels,
        "PLANES": planes,
        "BLOCK_PIXELS": block_pixels,
        "BLOCK_PLANES": block_planes,
        "num_warps": config.warps,
        **OPTIONS,
    }
    tiles = cdiv(pixels, block_pixels)
    return _Plan(tiles, tiles * cdiv(planes, block_planes), arguments)


def _shrink_plan(
    batch: int,
    planes: int,
    low_height: int,
    low_width: int,
    height: int,
    width: int,
    align_corners: bool,
    kind: str,
    device: torch.device,
    config: configs.Tile | None,
) -> _Plan:
    """The same."""
    if config is None:
        pixels = batch * low_height * low_width
        config = configs.look_up(configs.Tile, "fusion_backward", configs.device_key(device), kind, pixels)
    block_h, block_w = no_larger_than(low_height, config.block_h), no_larger_than(low_width, config.block_w)
    block_planes = no_larger_than(planes, config.block_planes)
    tiles_y, tiles_x = cdiv(low_height, block_h), cdiv(low_width, block_w)
    arguments = {
        "height": height,
        "width": width,
        "low_height": low_height,
        "low_width": low_width,
        "rows": most_between(low_height, height, align_corners),
        "columns": most_between(low_width, width, align_corners),
        "tiles_y": tiles_y,
        "tiles_x": tiles_x,
        "PLANES": planes,
        "ALIGN_CORNERS": align_corners,
        "WIDE": wide(low_height + 1, height) or wide(low_width + 1, width),
        "BLOCK_H": block_h,
        "BLOCK_W": block_w,
        "BLOCK_PLANES": block_planes,
        "num_warps": config.warps,
        **OPTIONS,
    }
    tiles = batch * tiles_y * tiles_x
    return _Plan(tiles, tiles * cdiv(planes, block_planes), arguments)
