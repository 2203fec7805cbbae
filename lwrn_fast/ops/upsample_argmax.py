"""Upsampling and argmax, from logits to a label map: function, module, argument checks, registration."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import backends
from ..backends import Call, Op
from . import checks, reference
from .registration import Definition, define

# Number of classes that labels of uint8 can tell apart.
MAX_CLASSES = 256


def upsample_argmax(logits: Tensor, size: int | Sequence[int], align_corners: bool = True) -> Tensor:
    """Return the class of the largest bilinearly upsampled logit, without the upsampled logits in memory.

    logits: (N, classes, h, w), of any strides, of a floating-point dtype; classes <= 256. size: (H, W), or one number
    for both. align_corners: as in torch.nn.functional.interpolate.
    Returns (N, H, W) uint8, contiguous. Ties go to the lowest class, and a NaN counts as the largest, as in argmax.
    Labels have no gradient. Autocast changes nothing: the logits are compared in the dtype in which they come.
    Raises ValueError or TypeError for invalid arguments, RuntimeError where the backend asked for cannot run.

    >>> import torch, lwrn_fast
    >>> lwrn_fast.upsample_argmax(torch.rand(1, 21, 6, 7), (24, 28)).shape
    torch.Size([1, 24, 28])
    """
    tensors = check(logits, size, align_corners)
    height, width = checks.height_and_width("upsample_argmax", size)
    call = Call(OP, tensors, (logits, height, width, align_corners))
    return backends.select(call).run(call)


class UpsampleArgmax(nn.Module):
    """`lwrn_fast.upsample_argmax` to a fixed size, as the last module of a model.

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
        """Return the label map, (N, H, W) uint8. logits: (N, classes, h, w)."""
        return upsample_argmax(logits, self.size, self.align_corners)

    def extra_repr(self) -> str:
        return f"size={self.size}, align_corners={self.align_corners}"

    def __prepare_scriptable__(self) -> nn.Module:
        raise checks.not_scriptable(self)


def check(logits: Tensor, size: int | Sequence[int], align_corners: bool = True) -> list[Tensor]:
    """Return all tensors of a call; raise ValueError or TypeError for invalid arguments."""
    if checks.tracing_state() is not None:
        return checks.untraced(check, logits, checks.untraced_size(size), align_corners)
    checks.image("upsample_argmax", "logits", logits)
    if logits.shape[1] > MAX_CLASSES:
        expected = f"of at most {MAX_CLASSES} classes, for labels are uint8"
        checks.fail("upsample_argmax", "logits", expected, logits.shape[1])
    checks.height_and_width("upsample_argmax", size)
    return [logits]


def _run(logits: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    return reference.upsample_argmax(logits, (height, width), align_corners)


def _fake(logits: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    return torch.empty((logits.shape[0], height, width), dtype=torch.uint8, device=logits.device)


OP = Op("upsample_argmax", check, _run)
define(
    Definition(
        "upsample_argmax(Tensor logits, SymInt height, SymInt width, bool align_corners) -> Tensor",
        run=_run,
        fake=_fake,
        batched=_run,
        kernel="upsample_argmax",
    )
)


# One node of a graph, as PyTorch's own functions.
torch.fx.wrap("upsample_argmax")
