"""Autocast: an op runs in the autocast dtype, and returns it, as a convolution does."""

from typing import Any

import torch
from torch import Tensor


def dtype_for(x: object) -> torch.dtype | None:
    """The dtype that autocast asks of an op on the device of x, None where it is off."""
    if not isinstance(x, Tensor):
        return None
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def off(x: Tensor) -> torch.autocast:
    """A context in which autocast does nothing on the device of x."""
    return torch.autocast(x.device.type, enabled=False)


def cast(tensor: Any, dtype: torch.dtype) -> Any:
    """A tensor, or each of a list, in `dtype`; float64 stays, as in PyTorch's autocast, and what is no tensor."""
    if isinstance(tensor, (list, tuple)):
        return [cast(item, dtype) for item in tensor]
    if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64:
        return tensor.to(dtype)
    return tensor
