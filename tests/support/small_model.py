"""A small model that uses every op."""

import torch
import torch._dynamo.testing
from torch import Tensor

import lwrn_fast


class Model(torch.nn.Module):
    """All three ops, as a decoder uses them."""

    def __init__(self) -> None:
        super().__init__()
        self.fusion = lwrn_fast.Fusion([6, 4], 8)
        self.crp = lwrn_fast.CRP(8, 8)

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.crp(self.fusion(fine, coarse))
        return logits, lwrn_fast.upsample_argmax(logits, (2 * fine.shape[2], 2 * fine.shape[3]))


def inputs(height: int = 8, width: int = 10) -> tuple[Tensor, Tensor]:
    return torch.randn(1, 6, height, width), torch.randn(1, 4, height // 2, width // 2)
