"""What a layer costs at least: multiplications and additions of convolutions, other arithmetic, bytes read and written.

`flops` are what torch.utils.flop_counter counts, which cannot look into the three ops. `others` are comparisons,
interpolations, normalisations and sums, one for each value or as many as the formula below says.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

# for each value of the result
PER_VALUE = {
    "add": 1,
    "clamp": 2,
    "hardtanh": 2,
    "maximum": 1,
    "mul": 1,
    "native_batch_norm": 2,
    "relu": 1,
    "upsample_bilinear2d": 8,
}
POOLS = ("max_pool2d_with_indices", "avg_pool2d")
INTERPOLATION = 8
"""Four multiplications and four additions for a value between four."""
POOL_5X5 = 8
"""Maxima for a value: four down the column, four along the row."""


class Cost(NamedTuple):
    """Of one layer, or of several added up."""

    flops: int = 0
    others: int = 0
    bytes: int = 0

    @property
    def operations(self) -> int:
        return self.flops + self.others

    def plus(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


def crp(x: Tensor, weights: Sequence[Tensor]) -> Cost:
    """Of chained residual pooling of x (N, C, H, W): per stage a pool, a convolution and a sum.

    >>> crp(torch.zeros(1, 8, 6, 7), [torch.zeros(8, 8, 1, 1)] * 4)
    Cost(flops=21504, others=12096, bytes=3712)
    """
    pixels = x.numel() // max(1, x.shape[1])
    flops = sum(2 * w.numel() * pixels for w in weights)
    return Cost(flops, len(weights) * x.numel() * (POOL_5X5 + 1), 2 * x.nbytes + _bytes(weights))


def fusion(inputs: Sequence[Tensor], weights: Sequence[Tensor], activation: str) -> Cost:
    """Of convolutions at the inputs' own sizes, upsampling to that of the first, sum and activation."""
    batch, _, height, width = inputs[0].shape
    planes = weights[0].shape[0]
    values = batch * planes * height * width
    flops = sum(2 * w.numel() * x.shape[0] * x.shape[2] * x.shape[3] for x, w in zip(inputs, weights, strict=True))
    smaller = sum(x.shape[2:] != inputs[0].shape[2:] for x in inputs)
    each = INTERPOLATION * smaller + len(inputs) - 1 + (activation != "none")
    return Cost(flops, each * values, _bytes(inputs) + _bytes(weights) + values * inputs[0].element_size())


def upsample_argmax(logits: Sequence[int], size: Sequence[int], dtype: torch.dtype) -> Cost:
    """One multiply-add and one comparison per class and label; the vertical interpolation is shared.

    logits: the shape (N, classes, h, w).
    """
    labels = logits[0] * math.prod(size)
    return Cost(0, 3 * logits[1] * labels, math.prod(logits) * dtype.itemsize + labels)


def normalise(photos: Sequence[int], dtype: torch.dtype) -> Cost:
    """A subtraction and a multiplication for each value. photos: the shape (N, H, W, 3) of uint8."""
    values = math.prod(photos)
    return Cost(0, 2 * values, values + values * dtype.itemsize)


def call(function: Any, arguments: Sequence[Any], result: Any) -> Cost:
    """Of one call of one of PyTorch's own operations, as a dispatch mode sees it; nothing for views and allocations."""
    name = stem(function)
    if function.is_view or name == "empty":
        return Cost()
    taken = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    given = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    values = given[0].numel() if given else 0
    flops = others = 0
    if name == "convolution":
        flops = 2 * values * math.prod(arguments[1].shape[1:])
    elif name in POOLS:
        others = values * math.prod(arguments[1])
    else:
        others = values * PER_VALUE.get(name, 0)
    return Cost(flops, others, _bytes(taken) + _bytes(given))


def stem(function: Any) -> str:
    """The name of an operation without its namespace, its overload and what says that it writes in place."""
    return function._schema.name.partition("::")[2].rstrip("_")


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.nbytes for t in tensors)
