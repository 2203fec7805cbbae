"""The backward pass of fusion: g, with zeros where the activation is flat, then for each input

    g_k = up^T g,  dx_k = W_k^T g_k,  dW_k = sum over pixels of g_k x_k^T,  and db = sum of g, the same for all.

The interpolation's adjoint up^T is a gather: each pixel of the smaller map sums over the few pixels that lie between it
and its neighbours. The order of launches orders the work: what a kernel reads is complete, and products come last.
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
    block_size,
    cdiv,
    channels_last,
    empty_channels_last,
    empty_gradients,
    memoized,
)
from .numerics import inline, load, round_to, sum_axis0, to_float32
from .taps import first_beyond, max_between, needs_int64, taps


@triton.jit
def activation_backward_kernel(
    grad,
    out,
    pre_activation_grad,
    bias_partials,
    pixels,
    CHANNELS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute the gradient before the activation. grad, out, pre_activation_grad: (pixels, CHANNELS).

    out: the result of the activation; pre_activation_grad: grad where that is not flat, as at NaN; both None where
    there is none. bias_partials: (tiles, CHANNELS), sums of the latter over a tile in float32, or None.
    """
    BLOCKS: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    pid_m = tl.program_id(0) // BLOCKS
    offs_c = tl.program_id(0) % BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_m = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = (offs_m < pixels)[:, None] & (offs_c < CHANNELS)[None, :]
    offsets = (offs_m * CHANNELS)[:, None] + offs_c[None, :]
    g = to_float32(tl.load(grad + offsets, mask=mask, other=0.0))
    if pre_activation_grad is not None:
        activated = to_float32(tl.load(out + offsets, mask=mask, other=0.0))
        flat = activated <= 0.0
        if ACTIVATION == "relu6":
            flat = flat | (activated >= 6.0)
        g = tl.where(flat, 0.0, g)
        tl.store(pre_activation_grad + offsets, round_to(g, pre_activation_grad.dtype.element_ty), mask=mask)
    if bias_partials is not None:
        tl.store(bias_partials + pid_m.to(tl.int64) * CHANNELS + offs_c, sum_axis0(g), mask=offs_c < CHANNELS)


@inline
def _interpolate_adjoint(g, index, low, high, high_weight, mask):
    """Return what the gradient g of a pixel between `low` and `high` adds to source pixel `index`. A weight of 0
    counts, as in `taps.interpolate`."""
    return tl.where(mask & (low == index), g * (1.0 - high_weight), 0.0) + tl.where(
        mask & (high == index), g * high_weight, 0.0
    )


@triton.jit
def upsample_backward_kernel(
    grad,
    out,
    height,
    width,
    source_height,
    source_width,
    max_rows,
    max_columns,
    tiles_y,
    tiles_x,
    CHANNELS: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    USE_INT64: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute the interpolation's adjoint. grad: (batch, height, width, CHANNELS). out: (batch, source_height,
    source_width, CHANNELS). max_rows, max_columns: of grad that a pixel of out sums. USE_INT64: count pixels of a side
    in int64."""
    BLOCKS: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    MASKED: tl.constexpr = CHANNELS % BLOCK_C != 0
    tile = tl.program_id(0) // BLOCKS
    offs_c = (tl.program_id(0) % BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    mask_c = offs_c < CHANNELS
    offs_m = tl.arange(0, BLOCK_H * BLOCK_W)
    y = tile // tiles_x % tiles_y * BLOCK_H + offs_m // BLOCK_W
    x = tile % tiles_x * BLOCK_W + offs_m % BLOCK_W
    image = (tile // (tiles_y * tiles_x)).to(tl.int64)
    top = first_beyond(y - 1, source_height, height, ALIGN_CORNERS, USE_INT64)
    bottom = first_beyond(y + 1, source_height, height, ALIGN_CORNERS, USE_INT64)
    left = first_beyond(x - 1, source_width, width, ALIGN_CORNERS, USE_INT64)
    right = first_beyond(x + 1, source_width, width, ALIGN_CORNERS, USE_INT64)

    acc = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], dtype=tl.float32)
    for row in tl.range(0, max_rows, num_stages=1):
        row_mask = top + row < bottom
        grad_y = tl.minimum(top + row, height - 1)
        row_ptrs = grad + (((image * height + grad_y) * width) * CHANNELS)[:, None] + offs_c
        row_acc = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], dtype=tl.float32)
        for column in tl.range(0, max_columns, num_stages=1):
            mask = left + column < right
            grad_x = tl.minimum(left + column, width - 1)
            g = to_float32(load(row_ptrs + (grad_x * CHANNELS)[:, None], mask_c, MASKED))
            low, high, high_weight = taps(grad_x, source_width, width, ALIGN_CORNERS, USE_INT64)
            # fmt: off
            row_acc += _interpolate_adjoint(g, x[:, None], low[:, None], high[:, None], high_weight[:, None],
                                            mask[:, None])
            # fmt: on
        low, high, high_weight = taps(grad_y, source_height, height, ALIGN_CORNERS, USE_INT64)
        # fmt: off
        acc += _interpolate_adjoint(row_acc, y[:, None], low[:, None], high[:, None], high_weight[:, None],
                                    row_mask[:, None])
        # fmt: on
    offsets = (((image * source_height + y) * source_width + x) * CHANNELS)[:, None] + offs_c
    mask = ((y < source_height) & (x < source_width))[:, None] & mask_c
    tl.store(out + offsets, round_to(acc, out.dtype.element_ty), mask=mask)


def prepare(
    grad: Tensor,
    out: Tensor | None,
    inputs: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    activation: str,
    align_corners: bool,
    needs_grad: list[bool],
    config: configs.Tile | None = None,
    products_config: configs.Products | None = None,
    traced: bool = False,
) -> Launches:
    """Prepare the launches of `torch.ops.lwrn_fast.fusion_backward`, whose arguments these are."""
    count = len(inputs)
    gradients = empty_gradients([*inputs, *weights, *biases], needs_grad)
    results = [gradient for gradient in gradients if gradient is not None]
    if not results or grad.numel() == 0:
        return Launches([], [gradient.zero_() for gradient in results])
    input_grads, weight_grads = gradients[:count], gradients[count : 2 * count]
    bias_grads = [gradient for gradient in gradients[2 * count :] if gradient is not None]
    grad = channels_last(grad)
    launches: list[Launch] = []
    if bias_grads or activation != "none":
        launch = _activation_backward(grad, out, activation, bool(bias_grads), config, traced)
        launches.append(launch)
        partials = launch.arguments["bias_partials"]
        launches += [products.reduce_partials(partials, gradient, traced) for gradient in bias_grads]
        grad = launch.out
    for x, weight, input_grad, weight_grad in zip(inputs, weights, input_grads, weight_grads, strict=True):
        if input_grad is None and weight_grad is None:
            continue
        source_grad = grad
        if x.shape[2:] != grad.shape[2:]:
            source_grad = empty_channels_last(grad, (*grad.shape[:2], *x.shape[2:]))
            launches.append(_upsample_backward(grad, source_grad, align_corners, config, traced))
        if input_grad is not None:
            launches.append(products.input_gradient(source_grad, weight, input_grad, products_config, traced))
        if weight_grad is not None:
            x = channels_last(x)
            launches += products.weight_gradient(source_grad, x, weight_grad, products_config, traced)
    return Launches(launches, results)


def _activation_backward(
    grad: Tensor, out: Tensor | None, activation: str, needs_bias: bool, config: configs.Tile | None, traced: bool
) -> Launch:
    """Prepare the launch whose result is the gradient before the activation, and with needs_bias a bias's partial
    sums."""
    batch, channels, height, width = grad.shape
    plan = memoized(_activation_plan, traced)(
        batch * height * width, channels, configs.precision_of(grad, "ieee"), grad.device, config
    )
    pre_activation_grad = None if activation == "none" else torch.empty_like(grad)
    bias_partials = None
    if needs_bias:
        bias_partials = torch.empty((plan.tiles, channels), dtype=torch.float32, device=grad.device)
    arguments = {
        "grad": grad,
        "out": None if out is None else channels_last(out),
        "pre_activation_grad": pre_activation_grad,
        "bias_partials": bias_partials,
        "ACTIVATION": activation,
        **plan.arguments,
    }
    result = grad if pre_activation_grad is None else pre_activation_grad
    return Launch(activation_backward_kernel, plan.grid, arguments, result, traced)


def _upsample_backward(
    grad: Tensor, out: Tensor, align_corners: bool, config: configs.Tile | None, traced: bool
) -> Launch:
    """Prepare the launch of out = up^T grad."""
    precision = configs.precision_of(grad, "ieee")
    plan = memoized(_upsample_plan, traced)(*out.shape, *grad.shape[2:], align_corners, precision, grad.device, config)
    return Launch(upsample_backward_kernel, plan.grid, {"grad": grad, "out": out, **plan.arguments}, out, traced)


@dataclass(frozen=True)
class _Plan:
    tiles: int
    grid: tuple[int]
    arguments: dict[str, Any]


def _activation_plan(
    pixels: int, channels: int, precision: str, device: torch.device, config: configs.Tile | None
) -> _Plan:
    """Compute all that does not depend on the tensors' addresses, for the activation."""
    if config is None:
        config = configs.look_up(configs.Tile, "fusion_backward", configs.device_key(device), precision, pixels)
    block_m = block_size(pixels, config.block_h * config.block_w)
    block_c = block_size(channels, config.block_c)
    arguments = {
        "pixels": pixels,
        "CHANNELS": channels,
        "BLOCK_M": block_m,
        "BLOCK_C": block_c,
        "num_warps": config.num_warps,
        **OPTIONS,
    }
    tiles = cdiv(pixels, block_m)
    return _Plan(tiles, (tiles * cdiv(channels, block_c),), arguments)


def _upsample_plan(
    batch: int,
    channels: int,
    source_height: int,
    source_width: int,
    height: int,
    width: int,
    align_corners: bool,
    precision: str,
    device: torch.device,
    config: configs.Tile | None,
) -> _Plan:
    """Compute all that does not depend on the tensors' addresses, for the interpolation."""
    if config is None:
        pixels = batch * source_height * source_width
        config = configs.look_up(configs.Tile, "fusion_backward", configs.device_key(device), precision, pixels)
    block_h, block_w = block_size(source_height, config.block_h), block_size(source_width, config.block_w)
    block_c = block_size(channels, config.block_c)
    tiles_y, tiles_x = cdiv(source_height, block_h), cdiv(source_width, block_w)
    arguments = {
        "height": height,
        "width": width,
        "source_height": source_height,
        "source_width": source_width,
        "max_rows": max_between(source_height, height, align_corners),
        "max_columns": max_between(source_width, width, align_corners),
        "tiles_y": tiles_y,
        "tiles_x": tiles_x,
        "CHANNELS": channels,
        "ALIGN_CORNERS": align_corners,
        "USE_INT64": needs_int64(source_height + 1, height) or needs_int64(source_width + 1, width),
        "BLOCK_H": block_h,
        "BLOCK_W": block_w,
        "BLOCK_C": block_c,
        "num_warps": config.num_warps,
        **OPTIONS,
    }
    tiles = batch * tiles_y * tiles_x
    return _Plan(tiles, (tiles * cdiv(channels, block_c),), arguments)
