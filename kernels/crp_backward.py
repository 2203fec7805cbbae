"""The backward pass of chained residual pooling, stage by stage from the last: G_n = g; of stage i, from G_i,

    dP_i = W_i^T G_i,  dW_i = sum over pixels of G_i P_i^T,  db_i = sum of G_i,  G_{i-1} = g + unpool(dP_i),

where P_i is the pooled t_{i-1}; G_0 is the gradient of x. A launch pools a stage and remembers which pixel of each
window won, in a byte; the launch of the stage before lets each pixel sum over the windows that it won, so there are no
atomics. Products lie between (products.py). The order of launches is what orders the work: pixels of a stage need those
around them of the one after, and products of a whole stage fill a GPU.
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
    cdiv,
    channels_last,
    gradients_of,
    no_larger_than,
    planned,
)
from .numerics import float32, inline, load, rounded, sum_of_rows


@inline
def _place(y, x):
    """A pixel in a number, of which differences tell where in a window it is: 0 to 4 down, and as many across."""
    return y * 8 + x


@triton.jit
def _stage(
    grad,
    later_pooled_grads,
    later_winners,
    source,
    weight,
    grads,
    pooled,
    winners,
    pooled_grads,
    weight_sums,
    bias_sums,
    height,
    width,
    tiles_y,
    tiles_x,
    PLANES: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_PLANES: tl.constexpr,
):
    """All maps are (batch, height, width, PLANES); any but grad may be None.

    Gathers grads = grad + unpool(later_pooled_grads), pools source into pooled and winners, and, where the weight is
    depthwise, multiplies: pooled_grads, (PLANES,) weights. weight_sums, bias_sums: (tiles of all images, PLANES), of
    the gradients of such weights and of biases, in float32.
    """
    TILE: tl.constexpr = BLOCK_H * BLOCK_W
    BLOCKS: tl.constexpr = (PLANES + BLOCK_PLANES - 1) // BLOCK_PLANES
    MASKED: tl.constexpr = PLANES % BLOCK_PLANES != 0
    tile = tl.program_id(0) // BLOCKS
    planes = (tl.program_id(0) % BLOCKS * BLOCK_PLANES + tl.arange(0, BLOCK_PLANES))[None, :]
    of_planes = planes < PLANES
    pixels = tl.arange(0, TILE)
    y = tile // tiles_x % tiles_y * BLOCK_H + pixels // BLOCK_W
    x = tile % tiles_x * BLOCK_W + pixels % BLOCK_W
    first_row = (tile // (tiles_y * tiles_x)).to(tl.int64) * height
    inside = ((y < height) & (x < width))[:, None] & of_planes

    total = tl.zeros([TILE, BLOCK_PLANES], dtype=tl.float32)
    if source is not None:
        best = tl.full([TILE, BLOCK_PLANES], -float("inf"), tl.float32)
        winner = tl.zeros([TILE, BLOCK_PLANES], tl.int32)
        winner += _place(tl.maximum(y - 2, 0), tl.maximum(x - 2, 0))[:, None]  # of -inf, the first
    for row in tl.range(0, 5, num_stages=1):
        # The window's pixels. What lies outside repeats the border, which is in every window that reaches out.
        window_y = tl.minimum(tl.maximum(y + row - 2, 0), height - 1)
        of_row = (first_row + window_y) * (width * PLANES)
        real_row = window_y == y + row - 2
        for column in tl.static_range(5):
            window_x = tl.minimum(tl.maximum(x + column - 2, 0), width - 1)
            places = (of_row + window_x * PLANES)[:, None] + planes
            if source is not None:
                value = float32(load(source + places, of_planes, MASKED))
                larger = (value > best) | (value != value)  # the first of the largest, or the last NaN
                best = tl.where(larger, value, best)
                winner = tl.where(larger, _place(window_y, window_x)[:, None], winner)
            if later_winners is not None:
                # Now this is the window's centre, seen from which our pixel is the winner or not.
                value = float32(load(later_pooled_grads + places, of_planes, MASKED))
                won = load(later_winners + places, of_planes, MASKED) == _place(4 - row, 4 - column)
                real = real_row & (window_x == x + column - 2)
                total += tl.where(won & real[:, None], value, 0.0)

    places = ((first_row + y) * width + x)[:, None] * PLANES + planes
    total += float32(tl.load(grad + places, mask=inside, other=0.0))
    if grads is not None:
        tl.store(grads + places, rounded(total, grads.dtype.element_ty), mask=inside)
    if pooled is not None:
        tl.store(pooled + places, rounded(best, pooled.dtype.element_ty), mask=inside)
    if winners is not None:
        tl.store(winners + places, (winner - _place(y - 2, x - 2)[:, None]).to(tl.uint8), mask=inside)
    if pooled_grads is not None:
        factors = float32(tl.load(weight + planes, mask=of_planes, other=0.0))
        tl.store(pooled_grads + places, rounded(total * factors, pooled_grads.dtype.element_ty), mask=inside)
    if weight_sums is not None:
        sums = sum_of_rows(tl.where(inside, total * best, 0.0))[None, :]
        tl.store(weight_sums + tile.to(tl.int64) * PLANES + planes, sums, mask=of_planes)
    if bias_sums is not None:
        sums = sum_of_rows(tl.where(inside, total, 0.0))[None, :]
        tl.store(bias_sums + tile.to(tl.int64) * PLANES + planes, sums, mask=of_planes)


def prepare(
    grad: Tensor,
    x: Tensor,
    stages: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    groups: int,
    needs: list[bool],
    config: configs.Tile | None = None,
    of_products: configs.Products | None = None,
    traced: bool = False,
) -> Launches:
    """The launches that compute `torch.ops.lwrn_fast.crp_backward`, whose arguments these are."""
    count = len(weights)
    found = gradients_of([x, *weights, *biases], needs)
    out = [gradient for gradient in found if gradient is not None]
    if not out or x.numel() == 0:
        return Launches([], [gradient.zero_() for gradient in out])
    grad_x, of_weights, of_biases = found[0], found[1 : count + 1], found[count + 1 :] or [None] * count
    first = 0
    while grad_x is None and of_weights[first] is None and of_biases[first] is None:
        first += 1
    x = channels_last(x)
    launches: list[Launch] = []
    if not stages and count > 1 and (first < count - 1 or of_weights[first] is not None):
        launches.append(crp.prepare(x, weights, biases, groups, traced=traced))
        stages = list(launches[-1].kept)
    sources = [x, *map(channels_last, stages)]
    plan = planned(_plan, traced)(*x.shape, configs.kind_of(x, "ieee"), x.device, config)
    work = _Work(channels_last(grad), weights, groups == x.shape[1], plan, of_products, traced)
    later = None
    for i in reversed(range(first, count)):
        passed_on = work.windows(i) if i > first or grad_x is not None else None
        launches += work.of_stage(i, sources[i], of_weights[i], of_biases[i], later, passed_on)
        later = passed_on
    if grad_x is not None:
        launches.append(work.launch(later, grads=grad_x))
    return Launches(launches, out)


@dataclass(frozen=True)
class _Windows:
    """What the windows of a stage hand on: the gradient of their maximum, and which pixel it is."""

    pooled_grads: Tensor
    winners: Tensor


@dataclass(frozen=True)
class _Work:
    """What the launches of all stages share."""

    grad: Tensor
    weights: list[Tensor]
    depthwise: bool
    plan: "_Plan"
    of_products: configs.Products | None
    traced: bool
    scratch: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def of_stage(
        self,
        i: int,
        source: Tensor,
        of_weight: Tensor | None,
        of_bias: Tensor | None,
        later: _Windows | None,
        windows: _Windows | None,
    ) -> list[Launch]:
        """From the windows of the stage after it, where there is one, the gradients of its weight and bias and its own
        windows, those that are not None."""
        written: dict[str, Tensor] = {}
        following: list[Launch] = []
        if of_bias is not None:
            written["bias_sums"] = self.sums()
            following.append(products.add_up(written["bias_sums"], of_bias, self.traced))
        if windows is not None:
            written["winners"] = windows.winners
        if self.depthwise:
            if windows is not None:
                written["pooled_grads"] = windows.pooled_grads
            if of_weight is not None:
                written["weight_sums"] = self.sums()
                following.append(products.add_up(written["weight_sums"], of_weight, self.traced))
        else:
            grads = self.grad
            if later is not None and (windows is not None or of_weight is not None):
                grads = written["grads"] = self.map("grads")
            if windows is not None:
                arguments = (grads, self.weights[i], windows.pooled_grads, self.of_products, self.traced)
                following.append(products.input_gradient(*arguments))
            if of_weight is not None:
                pooled = written["pooled"] = self.map("pooled")
                following += products.weight_gradient(grads, pooled, of_weight, self.of_products, self.traced)
        return [self.launch(later, source, self.weights[i], **written), *following]

    def launch(
        self, later: _Windows | None, source: Tensor | None = None, weight: Tensor | None = None, **written: Tensor
    ) -> Launch:
        """The launch that writes these arguments of the kernel, from what else they are made of."""
        pools = any(name in written for name in ("winners", "pooled", "weight_sums"))
        names = ("grads", "pooled", "winners", "pooled_grads", "weight_sums", "bias_sums")
        arguments = {
            "grad": self.grad,
            "later_pooled_grads": None if later is None else later.pooled_grads,
            "later_winners": None if later is None else later.winners,
            "source": source if pools else None,
            "weight": weight.contiguous() if weight is not None and "pooled_grads" in written else None,
            **{name: written.get(name) for name in names},
            **self.plan.arguments,
        }
        return Launch(_stage, self.plan.programs, arguments, self.grad, self.traced)

    def windows(self, i: int) -> _Windows:
        """Two in turn, for a launch reads those of the stage after."""
        return _Windows(self.map("pooled_grads", i % 2), self.map("winners", i % 2, torch.uint8))

    def map(self, name: str, i: int = 0, dtype: torch.dtype | None = None) -> Tensor:
        """Memory like that of x, which stages use one after another."""
        if (name, i) not in self.scratch:
            self.scratch[name, i] = torch.empty_like(self.grad, dtype=dtype)
        return self.scratch[name, i]

    def sums(self) -> Tensor:
        shape = (self.plan.tiles, self.grad.shape[1])
        return torch.empty(shape, dtype=torch.float32, device=self.grad.device)


@dataclass(frozen=True)
class _Plan:
    tiles: int  # of all images
    programs: int
    arguments: dict[str, Any]


def _plan(
    batch: int, planes: int, height: int, width: int, kind: str, device: torch.device, config: configs.Tile | None
) -> _Plan:
    """All that does not depend on where the tensors lie."""
    if config is None:
        pixels = batch * height * width
        config = configs.look_up(configs.Tile, "crp_backward", configs.device_key(device), kind, pixels)
    block_h, block_w = no_larger_than(height, config.block_h), no_larger_than(width, config.block_w)
    block_planes = no_larger_than(planes, config.block_planes)
    tiles_y, tiles_x = cdiv(height, block_h), cdiv(width, block_w)
    arguments = {
        "height": height,
        "width": width,
        "tiles_y": tiles_y,
        "tiles_x": tiles_x,
        "PLANES": planes,
        "BLOCK_H": block_h,
        "BLOCK_W": block_w,
        "BLOCK_PLANES": block_planes,
        "num_warps": config.warps,
        **OPTIONS,
    }
    tiles = batch * tiles_y * tiles_x
    return _Plan(tiles, tiles * cdiv(planes, block_planes), arguments)
