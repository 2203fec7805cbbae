"""Chained residual pooling of one map, against the same in plain PyTorch and as other engines run it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import reference
from ...ops.crp import crp
from .. import peers
from ..accuracy import TOLERANCE, largest_error
from ..cases import STAGES, CrpCase
from ..paired import Contest

CONTESTANTS = peers.ALL


class Plain(nn.Module):
    """The reference with its weights, as a module for the peers."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def forward(self, x: Tensor) -> Tensor:
        return reference.crp(x, list(self.weights))


def set_up(case: CrpCase, dtype: torch.dtype) -> Contest:
    """Set up random x (1, channels, height, width) and weights that keep its scale."""
    torch.manual_seed(0)
    channels = case.channels
    x = torch.randn(1, channels, case.height, case.width).to(dtype)
    weights = [(torch.randn(channels, channels, 1, 1) / channels**0.5).to(dtype) for _ in range(STAGES)]
    nhwc = x.contiguous(memory_format=torch.channels_last)
    expected = reference.crp(nhwc.float(), [w.float() for w in weights])
    return Contest(
        contestants=peers.field(
            Plain(weights),
            [x],
            ours=lambda x: crp(x, weights),
            names=CONTESTANTS,
            floor=lambda: [F.conv2d(nhwc, w) for w in weights],
        ),
        error=lambda got: largest_error(got, expected),
        tolerance=TOLERANCE[dtype],
        unchecked=(peers.FLOOR,),
        operations=case.operations,
        bytes=case.bytes(dtype),
    )
