"""From logits to a label map: the function and the module."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import backends
from ..backends import triton
from . import checks, reference


def upsample_argmax(logits: Tensor, size: int | Sequence[int], align_corners: bool = True) -> Tensor:
    """The class of the largest bilinearly upsampled logit, without the upsampled logits in memory.

    logits: (N, classes, h, w), of any strides, of a floating-point dtype; classes <= 256. size: (H, W), or one number
    for both. align_corners: as in torch.nn.functional.interpolate.
    Returns (N, H, W) uint8, contiguous. Ties go to the lowest class, and a NaN counts as the largest, as in argmax.
    Labels have no gradient. Autocast changes nothing: the logits are compared in the dtype in which they come.
    Raises ValueError or TypeError for what does not fit, RuntimeError where the backend asked for cannot run.

    >>> import torch, lwrn_fast
    >>> lwrn_fast.upsample_argmax(torch.rand(1, 21, 6, 7), (24, 28)).shape
    torch.Size([1, 24, 28])
    """
    tensors = checks.upsample_argmax(logits, size, align_corners)
    backend = backends.select("upsample_argmax", tensors)
    height, width = checks.height_and_width("upsample_argmax", size)
    if backend in ("reference", backends.PLAIN):
        return reference.upsample_argmax(logits, (height, width), align_corners)
    if backend == "triton":
        return triton.run("upsample_argmax", tensors, logits, height, width, align_corners)
    return torch.ops.lwrn_fast.upsample_argmax(logits, height, width, align_corners)


class UpsampleArgmax(nn.Module):
    """`lwrn_fast.upsample_argmax` to a fixed size, as the last module of a network.

    size: (H, W), or one number for both. align_corners: as in torch.nn.functional.interpolate.

    >>> import torch, lwrn_fast
    >>> lwrn_fast.UpsampleArgmax(24)(torch.rand(1, 21, 6, 7)).shape
    torch.Size([1, 24, 24])
    """

    def __init__(self, size: int | Sequence[int], align_corners: bool = True) -> None:
        super().__init__()
        self.size = checks.height_and_width("UpsampleArgmax", size)
        self.align_corners = bool(align_corners)

    def forward(self, logits: Tensor) -> Tensor:
        """(N, classes, h, w) to (N, H, W) uint8."""
        return upsample_argmax(logits, self.size, self.align_corners)

    def extra_repr(self) -> str:
        return f"size={self.size}, align_corners={self.align_corners}"

    def __prepare_scriptable__(self) -> nn.Module:
        raise checks.not_scriptable(self)


torch.fx.wrap("upsample_argmax")  # one node of a graph, as PyTorch's own functions
