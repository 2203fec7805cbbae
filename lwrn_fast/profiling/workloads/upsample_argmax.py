"""Logits to a label map, against the same in plain PyTorch and as other engines run it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.upsample_argmax import upsample_argmax
from .. import peers
from ..accuracy import TOLERANCE, label_error
from ..cases import UpsampleArgmaxCase
from ..paired import Contest

CONTESTANTS = peers.ENGINES


class Plain(nn.Module):
    """The usual PyTorch code; its labels stay int64, so that it is not charged for a conversion."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, logits: Tensor) -> Tensor:
        return F.interpolate(logits, size=self.size, mode="bilinear", align_corners=True).argmax(1)


def set_up(case: UpsampleArgmaxCase, dtype: torch.dtype) -> Contest:
    """Set up random logits (1, classes, height, width)."""
    torch.manual_seed(0)
    logits = torch.randn(1, case.classes, case.height, case.width).to(dtype)
    return Contest(
        contestants=peers.field(
            Plain(case.to),
            [logits],
            ours=lambda x: upsample_argmax(x, case.to),
            names=CONTESTANTS,
        ),
        error=lambda got: label_error(got, logits, case.to),
        tolerance=TOLERANCE[dtype],
        operations=case.operations,
        bytes=case.bytes(dtype),
    )
