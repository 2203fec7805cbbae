"""Cases of a measurement: one kind per op, and whole models, with the work that each needs at least.

Shapes are written channels x height x width, as PyTorch does without the batch; images are height x width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import costs
from .costs import Cost

CLASSES = 21
STAGES = 4


class OpCase:
    """A case of one op, for a batch of one."""

    def cost(self, dtype: torch.dtype) -> Cost:
        raise NotImplementedError

    @property
    def operations(self) -> int:
        """Operations of the convolutions, each at its own resolution; without any, comparisons and interpolation."""
        cost = self.cost(torch.float32)
        return cost.flops or cost.others

    def bytes(self, dtype: torch.dtype) -> int:
        """Bytes read and written at least: inputs, weights and the result."""
        return self.cost(dtype).bytes


@dataclass(frozen=True)
class CrpCase(OpCase):
    """One chained residual pooling of `STAGES` stages: x (1, channels, height, width).

    >>> CrpCase(8, 6, 7).operations, CrpCase(8, 6, 7).bytes(torch.bfloat16)
    (21504, 1856)
    """

    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.channels}x{self.height}x{self.width}"

    def cost(self, dtype: torch.dtype) -> Cost:
        weight = _empty(dtype, self.channels, self.channels, 1, 1)
        return costs.crp(_empty(dtype, 1, self.channels, self.height, self.width), [weight] * STAGES)


@dataclass(frozen=True)
class FusionCase(OpCase):
    """One fusion: inputs are (channels, height, width), the first has the result's size."""

    inputs: tuple[tuple[int, int, int], ...]
    out_channels: int
    activation: str

    def __str__(self) -> str:
        return "+".join("x".join(map(str, shape)) for shape in self.inputs) + f"-{self.out_channels}-{self.activation}"

    def cost(self, dtype: torch.dtype) -> Cost:
        inputs = [_empty(dtype, 1, *shape) for shape in self.inputs]
        weights = [_empty(dtype, self.out_channels, channels, 1, 1) for channels, _, _ in self.inputs]
        return costs.fusion(inputs, weights, self.activation)


@dataclass(frozen=True)
class UpsampleArgmaxCase(OpCase):
    """Logits (1, classes, height, width) to labels (1, to[0], to[1])."""

    classes: int
    height: int
    width: int
    to: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.classes}x{self.height}x{self.width}-{self.to[0]}x{self.to[1]}"

    def cost(self, dtype: torch.dtype) -> Cost:
        return costs.upsample_argmax((1, self.classes, self.height, self.width), self.to, dtype)


@dataclass(frozen=True)
class ModelCase:
    """A whole model on an image (1, 3, height, width); `labels` adds upsample_argmax to the image's size."""

    network: str
    height: int
    width: int
    labels: bool = False

    def __str__(self) -> str:
        return f"{self.network}-{self.height}x{self.width}" + ("-labels" if self.labels else "")


Case = CrpCase | FusionCase | UpsampleArgmaxCase | ModelCase


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without "torch.".

    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def _empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
