"""Logits to a label map of the image's size. How to run: `pytest bench/bench_upsample_argmax.py`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lwrn_fast
import peers
from paired import Contest
from shapes import UPSAMPLE_ARGMAX, UPSAMPLE_ARGMAX_TARGET, UpsampleArgmaxCase
from wrong import TOLERANCE, label_error

CASES = UPSAMPLE_ARGMAX
CONTESTANTS = peers.ENGINES
DTYPES = peers.DTYPES
USUAL = (UPSAMPLE_ARGMAX_TARGET,)


class Plain(nn.Module):
    """What users write today; its labels stay int64, so that it is not charged for a conversion."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, logits: Tensor) -> Tensor:
        return F.interpolate(logits, size=self.size, mode="bilinear", align_corners=True).argmax(1)


def set_up(case: UpsampleArgmaxCase, dtype: torch.dtype) -> Contest:
    """Random logits (1, classes, height, width)."""
    torch.manual_seed(0)
    logits = torch.randn(1, case.classes, case.height, case.width).to(dtype)
    return Contest(
        contestants=peers.field(
            Plain(case.to),
            [logits],
            ours=lambda x: lwrn_fast.upsample_argmax(x, case.to),
            names=CONTESTANTS,
        ),
        error=lambda got: label_error(got, logits, case.to),
        tolerance=TOLERANCE[dtype],
        operations=case.operations,
        bytes=case.bytes(dtype.itemsize),
    )


def test_upsample_argmax(measure) -> None:
    measure(set_up)
