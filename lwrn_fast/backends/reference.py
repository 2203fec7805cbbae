"""Plain PyTorch as a backend: the oracle and the fallback, which runs every op, dtype and device."""

from typing import Any

import torch
from torch import Tensor

from .base import Backend, Call


class Reference(Backend):
    """PyTorch's own operations, with the result in channels-last memory, as from every backend."""

    name = "reference"

    def why_not(self, call: Call) -> str | None:
        return None

    def run(self, call: Call) -> Any:
        return self.lay_out(call.op.reference(*call.arguments))

    def lay_out(self, out: Tensor) -> Tensor:
        """Return a map (N, C, H, W) in channels-last memory; a label map (N, H, W) as it is."""
        if out.dim() != 4 or torch._C._are_functorch_transforms_active():  # torch.vmap knows no memory formats
            return out
        return out.contiguous(memory_format=torch.channels_last)


class Plain(Reference):
    """PyTorch's own operations on whatever memory they choose; not for users to ask for."""

    name = "plain"

    def lay_out(self, out: Tensor) -> Tensor:
        return out
