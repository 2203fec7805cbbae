"""The backward pass of chained residual pooling, stage by stage from the last: G_n = g; of stage i, from G_i,

    dP_i = W_i^T G_i,  dW_i = sum over pixels of G_i P_i^T,  db_i = sum of G_i,  G_{i-1} = g + unpool(dP_i),

where P_i is the pooled t_{i-1}; G_0 is the gradient of x. The launch that pools a stage stores the argmax of each
window, in a byte. In the launch of the stage before, each pixel sums over the windows whose argmax it is, so there are
no atomics. The matrix products lie between (products.py). The order of launches orders the work: pixels of a stage need
those around them of the stage after, and the products of one stage alone fill a GPU.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs, crp, products
from .launch import (
    OPTIONS,
    Launch,
    Launches,
    block_size,
    cdiv,
    channels_last,
    empty_gradients,
    memoized,
)
from .numerics import inline, load, round_to, sum_axis0, to_float32


@inline
def _position(y, x):
    """Return pixel (y, x) as one number. The difference of two is the offset in a window: 0 to 4 down and across."""
    return y * 8 + x


@triton.jit
def crp_backward_kernel(
    grad,
    next_pooled_grad,
    next_argmax,
    source,
    weight,
    stage_grad,
    pooled,
    argmax,
    pooled_grad,
    weight_partials,
    bias_partials,
    height,
    width,
    tiles_y,
    tiles_x,
    CHANNELS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute stage_grad = grad + unpool(next_pooled_grad), G_i, from the windows of the stage after, and pool source.

    All maps are (batch, height, width, CHANNELS); any but grad may be None. source: t_{i-1}. pooled, argmax: the
    maximum of each window, and its offset in the window. Where the weight, (CHANNELS,), is depthwise, pooled_grad is
    its product with stage_grad, and weight_partials the sums of its gradient. weight_partials, bias_partials: (tiles
    of all images, CHANNELS), sums over a tile, in float32.
    """
    BLOCK_M: tl.constexpr = BLOCK_H * BLOCK_W
    BLOCKS: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    MASKED: tl.constexpr = CHANNELS % BLOCK_C != 0
    tile = tl.program_id(0) // BLOCKS
    offs_c = (tl.program_id(0) % BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    mask_c = offs_c < CHANNELS
    offs_m = tl.arange(0, BLOCK_M)
    y = tile // tiles_x % tiles_y * BLOCK_H + offs_m // BLOCK_W
    x = tile % tiles_x * BLOCK_W + offs_m % BLOCK_W
    image_row = (tile // (tiles_y * tiles_x)).to(tl.int64) * height
    mask = ((y < height) & (x < width))[:, None] & mask_c

    acc = tl.zeros([BLOCK_M, BLOCK_C], dtype=tl.float32)
    if source is not None:
        window_max = tl.full([BLOCK_M, BLOCK_C], -float("inf"), tl.float32)
        max_position = tl.zeros([BLOCK_M, BLOCK_C], tl.int32)
        max_position += _position(tl.maximum(y - 2, 0), tl.maximum(x - 2, 0))[:, None]  # of -inf, the first
    for row in tl.range(0, 5, num_stages=1):
        # The window's pixels, clamped to the image: for a stride-1 5x5 maximum this equals padding with -inf.
        window_y = tl.minimum(tl.maximum(y + row - 2, 0), height - 1)
        row_offsets = (image_row + window_y) * (width * CHANNELS)
        row_in_image = window_y == y + row - 2
        for column in tl.static_range(5):
            window_x = tl.minimum(tl.maximum(x + column - 2, 0), width - 1)
            offsets = (row_offsets + window_x * CHANNELS)[:, None] + offs_c
            if source is not None:
                t = to_float32(load(source + offsets, mask_c, MASKED))
                is_max = (t > window_max) | (t != t)  # the first of the largest, or the last NaN
                window_max = tl.where(is_max, t, window_max)
                max_position = tl.where(is_max, _position(window_y, window_x)[:, None], max_position)
            if next_argmax is not None:
                # Here (window_y, window_x) is the centre of a window, and (4 - row, 4 - column) our pixel's offset.
                g = to_float32(load(next_pooled_grad + offsets, mask_c, MASKED))
                is_argmax = load(next_argmax + offsets, mask_c, MASKED) == _position(4 - row, 4 - column)
                in_image = row_in_image & (window_x == x + column - 2)
                acc += tl.where(is_argmax & in_image[:, None], g, 0.0)

    offsets = ((image_row + y) * width + x)[:, None] * CHANNELS + offs_c
    acc += to_float32(tl.load(grad + offsets, mask=mask, other=0.0))
    if stage_grad is not None:
        tl.store(stage_grad + offsets, round_to(acc, stage_grad.dtype.element_ty), mask=mask)
    if pooled is not None:
        tl.store(pooled + offsets, round_to(window_max, pooled.dtype.element_ty), mask=mask)
    if argmax is not None:
        argmax_ptrs = argmax + offsets
        window_offsets = max_position - _position(y - 2, x - 2)[:, None]
        tl.store(argmax_ptrs, window_offsets.to(tl.uint8), mask=mask)
    if pooled_grad is not None:
        scale = to_float32(tl.load(weight + offs_c, mask=mask_c, other=0.0))
        tl.store(pooled_grad + offsets, round_to(acc * scale, pooled_grad.dtype.element_ty), mask=mask)
    if weight_partials is not None:
        partial = sum_axis0(tl.where(mask, acc * window_max, 0.0))[None, :]
        tl.store(weight_partials + tile.to(tl.int64) * CHANNELS + offs_c, partial, mask=mask_c)
    if bias_partials is not None:
        partial = sum_axis0(tl.where(mask, acc, 0.0))[None, :]
        tl.store(bias_partials + tile.to(tl.int64) * CHANNELS + offs_c, partial, mask=mask_c)


def prepare(
    grad: Tensor,
    x: Tensor,
    stages: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    groups: int,
    needs_grad: list[bool],
    config: configs.Tile | None = None,
    products_config: configs.Products | None = None,
    traced: bool = False,
) -> Launches:
    """Prepare the launches of `torch.ops.lwrn_fast.crp_backward`, whose arguments these are."""
    count = len(weights)
    gradients = empty_gradients([x, *weights, *biases], needs_grad)
    out = [gradient for gradient in gradients if gradient is not None]
    if not out or x.numel() == 0:
        return Launches([], [gradient.zero_() for gradient in out])
    x_grad, weight_grads, bias_grads = gradients[0], gradients[1 : count + 1], gradients[count + 1 :] or [None] * count
    first = 0  # stage that a gradient is needed of
    while x_grad is None and weight_grads[first] is None and bias_grads[first] is None:
        first += 1
    x = channels_last(x)
    launches: list[Launch] = []
    if not stages and count > 1 and (first < count - 1 or weight_grads[first] is not None):
        launches.append(crp.prepare(x, weights, biases, groups, traced=traced))
        stages = list(launches[-1].kept)
    sources = [x, *map(channels_last, stages)]
    plan = memoized(_plan, traced)(*x.shape, configs.precision_of(x, "ieee"), x.device, config)
    shared = _Shared(channels_last(grad), weights, groups == x.shape[1], plan, products_config, traced)
    following = None
    for i in reversed(range(first, count)):
        windows = shared.windows(i) if i > first or x_grad is not None else None
        launches += shared.prepare_stage(i, sources[i], weight_grads[i], bias_grads[i], following, windows)
        following = windows
    if x_grad is not None:
        launches.append(shared.prepare_launch(following, stage_grad=x_grad))
    return Launches(launches, out)


@dataclass(frozen=True)
class _Windows:
    """The windows of a stage: the gradient of each one's maximum, and the maximum's offset in the window."""

    pooled_grad: Tensor
    argmax: Tensor


@dataclass(frozen=True)
class _Shared:
    """Arguments and scratch memory that the launches of all stages share."""

    grad: Tensor
    weights: list[Tensor]
    depthwise: bool
    plan: "_Plan"
    products_config: configs.Products | None
    traced: bool
    scratch: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def prepare_stage(
        self,
        i: int,
        source: Tensor,
        weight_grad: Tensor | None,
        bias_grad: Tensor | None,
        following: _Windows | None,
        windows: _Windows | None,
    ) -> list[Launch]:
        """Prepare the launches of stage i, which write those that are not None: the gradients of its weight and bias,
        and its own windows. following: the windows of the stage after it, if there is one."""
        written: dict[str, Tensor] = {}
        then: list[Launch] = []
        if bias_grad is not None:
            written["bias_partials"] = self.partials()
            then.append(products.reduce_partials(written["bias_partials"], bias_grad, self.traced))
        if windows is not None:
            written["argmax"] = windows.argmax
        if self.depthwise:
            if windows is not None:
                written["pooled_grad"] = windows.pooled_grad
            if weight_grad is not None:
                written["weight_partials"] = self.partials()
                then.append(products.reduce_partials(written["weight_partials"], weight_grad, self.traced))
        else:
            stage_grad = self.grad
            if following is not None and (windows is not None or weight_grad is not None):
                stage_grad = written["stage_grad"] = self.map("stage_grad")
            if windows is not None:
                arguments = (stage_grad, self.weights[i], windows.pooled_grad, self.products_config, self.traced)
                then.append(products.input_gradient(*arguments))
            if weight_grad is not None:
                pooled = written["pooled"] = self.map("pooled")
                arguments = (stage_grad, pooled, weight_grad, self.products_config, self.traced)
                then += products.weight_gradient(*arguments)
        return [self.prepare_launch(following, source, self.weights[i], **written), *then]

    def prepare_launch(
        self, following: _Windows | None, source: Tensor | None = None, weight: Tensor | None = None, **written: Tensor
    ) -> Launch:
        """Prepare the launch that writes these arguments of the kernel; the others are what they are computed from."""
        pools = any(name in written for name in ("argmax", "pooled", "weight_partials"))
        names = ("stage_grad", "pooled", "argmax", "pooled_grad", "weight_partials", "bias_partials")
        arguments = {
            "grad": self.grad,
            "next_pooled_grad": None if following is None else following.pooled_grad,
            "next_argmax": None if following is None else following.argmax,
            "source": source if pools else None,
            "weight": weight.contiguous() if weight is not None and "pooled_grad" in written else None,
            **{name: written.get(name) for name in names},
            **self.plan.arguments,
        }
        return Launch(crp_backward_kernel, self.plan.grid, arguments, self.grad, self.traced)

    def windows(self, i: int) -> _Windows:
        """Return memory for the windows of stage i: two in turn, for a launch reads those of the stage after."""
        return _Windows(self.map("pooled_grad", i % 2), self.map("argmax", i % 2, torch.uint8))

    def map(self, name: str, i: int = 0, dtype: torch.dtype | None = None) -> Tensor:
        """Return the i-th map of this name, of x's shape, which stages use one after another."""
        if (name, i) not in self.scratch:
            self.scratch[name, i] = torch.empty_like(self.grad, dtype=dtype)
        return self.scratch[name, i]

    def partials(self) -> Tensor:
        """Allocate a weight's or bias's partial sums: (tiles, channels)."""
        shape = (self.plan.tiles, self.grad.shape[1])
        return torch.empty(shape, dtype=torch.float32, device=self.grad.device)


@dataclass(frozen=True)
class _Plan:
    tiles: int  # of all images
    grid: tuple[int]
    arguments: dict[str, Any]


def _plan(
    batch: int,
    channels: int,
    height: int,
    width: int,
    precision: str,
    device: torch.device,
    config: configs.Tile | None,
) -> _Plan:
    """Compute all that does not depend on the tensors' addresses."""
    if config is None:
        pixels = batch * height * width
        config = configs.look_up(configs.Tile, "crp_backward", configs.device_key(device), precision, pixels)
    block_h, block_w = block_size(height, config.block_h), block_size(width, config.block_w)
    block_c = block_size(channels, config.block_c)
    tiles_y, tiles_x = cdiv(height, block_h), cdiv(width, block_w)
    arguments = {
        "height": height,
        "width": width,
        "tiles_y": tiles_y,
        "tiles_x": tiles_x,
        "CHANNELS": channels,
        "BLOCK_H": block_h,
        "BLOCK_W": block_w,
        "BLOCK_C": block_c,
        "num_warps": config.num_warps,
        **OPTIONS,
    }
    tiles = batch * tiles_y * tiles_x
    return _Plan(tiles, (tiles * cdiv(channels, block_c),), arguments)
