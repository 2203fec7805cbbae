"""Convolutions, upsampling, sum and activation, against the same in plain PyTorch and as other engines run it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import reference
from ...ops.fusion import fusion
from .. import peers
from ..accuracy import TOLERANCE, largest_error
from ..cases import FusionCase
from ..paired import Contest

CONTESTANTS = peers.ALL


class Plain(nn.Module):
    """The reference with its weights, as a module for the peers."""

    def __init__(self, weights: list[Tensor], activation: str) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)
        self.activation = activation

    def forward(self, *inputs: Tensor) -> Tensor:
        return reference.fusion(list(inputs), list(self.weights), activation=self.activation)


def set_up(case: FusionCase, dtype: torch.dtype) -> Contest:
    """Set up random inputs (1, channels, height, width) and weights that keep their scale."""
    torch.manual_seed(0)
    inputs = [torch.randn(1, *shape).to(dtype) for shape in case.inputs]
    weights = [(torch.randn(case.out_channels, c, 1, 1) / c**0.5).to(dtype) for c, _, _ in case.inputs]
    nhwc = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
    expected = reference.fusion([x.float() for x in nhwc], [w.float() for w in weights], activation=case.activation)
    return Contest(
        contestants=peers.field(
            Plain(weights, case.activation),
            inputs,
            ours=lambda *xs: fusion(xs, weights, activation=case.activation),
            names=CONTESTANTS,
            floor=lambda: [F.conv2d(x, w) for x, w in zip(nhwc, weights, strict=True)],
        ),
        error=lambda got: largest_error(got, expected),
        tolerance=TOLERANCE[dtype],
        unchecked=(peers.FLOOR,),
        operations=case.operations,
        bytes=case.bytes(dtype),
    )
