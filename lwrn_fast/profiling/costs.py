"""Cost model: the convolutions' operations, other arithmetic, and bytes read and written of a layer, at least.

`flops` are what torch.utils.flop_counter counts, by the formulas registered there. `others` are comparisons,
interpolations, normalisations and sums, one for each value or as many as the constants below say.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Operations for a value between four: four multiplications and four additions.
INTERPOLATION = 8
# Maxima for a value of a 5x5 pool: four down the column, four along the row.
POOL_5X5 = 8
# Operations for each value of the result.
PER_VALUE = {
    "add": 1,
    "clamp": 2,
    "hardtanh": 2,
    "maximum": 1,
    "mul": 1,
    "native_batch_norm": 2,
    "relu": 1,
    "upsample_bilinear2d": INTERPOLATION,
}
POOLS = ("max_pool2d_with_indices", "avg_pool2d")


class Cost(NamedTuple):
    """Work of one layer, or of several added up."""

    flops: int = 0
    others: int = 0
    bytes: int = 0

    @property
    def operations(self) -> int:
        return self.flops + self.others

    def plus(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


def crp(x: Tensor, weights: Sequence[Tensor]) -> Cost:
    """Return the cost of chained residual pooling of x (N, C, H, W): per stage a pool, a convolution and a sum.

    >>> crp(torch.zeros(1, 8, 6, 7), [torch.zeros(8, 8, 1, 1)] * 4)
    Cost(flops=21504, others=12096, bytes=3712)
    """
    flops = _flops(torch.ops.lwrn_fast.crp, (x, weights, [], 1), x)
    return Cost(flops, len(weights) * x.numel() * (POOL_5X5 + 1), 2 * x.nbytes + _bytes(weights))


def fusion(inputs: Sequence[Tensor], weights: Sequence[Tensor], activation: str) -> Cost:
    """Return the cost of convolutions at the inputs' own sizes, upsampling to that of the first, sum and activation."""
    batch, _, height, width = inputs[0].shape
    values = batch * weights[0].shape[0] * height * width
    flops = _flops(torch.ops.lwrn_fast.fusion, (inputs, weights, [], activation, True), None)
    upsampled = sum(x.shape[2:] != inputs[0].shape[2:] for x in inputs)
    each = INTERPOLATION * upsampled + len(inputs) - 1 + (activation != "none")
    return Cost(flops, each * values, _bytes(inputs) + _bytes(weights) + values * inputs[0].element_size())


def upsample_argmax(logits: Sequence[int], size: Sequence[int], dtype: torch.dtype) -> Cost:
    """Return the cost of one multiply-add and one comparison per class and label.

    The vertical interpolation is shared. logits: the shape (N, classes, h, w).
    """
    labels = logits[0] * math.prod(size)
    return Cost(0, 3 * logits[1] * labels, math.prod(logits) * dtype.itemsize + labels)


def normalise(images: Sequence[int], dtype: torch.dtype) -> Cost:
    """Return the cost of a subtraction and a multiplication per value. images: the shape (N, H, W, 3) of uint8."""
    values = math.prod(images)
    return Cost(0, 2 * values, values + values * dtype.itemsize)


def call(function: Any, arguments: Sequence[Any], result: Any) -> Cost:
    """Return the cost of one call of one of PyTorch's own operations, as a dispatch mode sees it.

    Views and allocations cost nothing.
    """
    name = stem(function)
    if function.is_view or name == "empty":
        return Cost()
    read = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    values = written[0].numel() if written else 0
    others = values * (math.prod(arguments[1]) if name in POOLS else PER_VALUE.get(name, 0))
    return Cost(_flops(function.overloadpacket, arguments, result), others, _bytes(read) + _bytes(written))


def stem(function: Any) -> str:
    """Return an operation's name without its namespace, its overload and the mark of those that write in place."""
    return function._schema.name.partition("::")[2].rstrip("_")


def _flops(op: Any, arguments: Sequence[Any], result: Any) -> int:
    """Return what the flop counter counts for a call; 0 where it knows no formula for it."""
    formula = flop_registry.get(op)
    return formula(*arguments, out_val=result) if formula else 0


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.nbytes for t in tensors)
