"""Autocast: an op runs in the autocast dtype, and returns it, as a convolution does."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def is_on(x: object) -> bool:
    """Return whether autocast asks for a dtype on the device of x."""
    if not isinstance(x, Tensor):
        return False
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def call(function: Callable[..., Any], x: Tensor, *arguments: Any) -> Any:
    """Call a function with its tensors in the autocast dtype of x's device, and autocast off."""
    cast_arguments = cast(arguments, torch.get_autocast_dtype(x.device.type))
    with off(x):
        return function(*cast_arguments)


def off(x: Tensor) -> torch.autocast:
    """Return a context in which autocast does nothing on the device of x."""
    return torch.autocast(x.device.type, enabled=False)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Return a tensor, or each of a list, in `dtype`; float64 and non-tensors stay, as in PyTorch's autocast."""
    if isinstance(value, (list, tuple)):
        return [cast(item, dtype) for item in value]
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value


def first_tensor(arguments: Any) -> Tensor:
    """Return the first tensor among arguments, or in the list that is the first of them."""
    first = arguments[0]
    return first if isinstance(first, Tensor) else first[0]
