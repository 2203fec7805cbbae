"""Checks shared by the ops. Errors are ValueError or TypeError and name the op, the argument, the expected and the
given value."""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

# None where torch.jit.trace is not at work.
tracing_state = torch._C._get_tracing_state


def height_and_width(op: str, size: int | Sequence[int]) -> tuple[int, int]:
    """Return `size` as (height, width); one number stands for both.

    NumPy's integers and arrays of two are accepted. While torch.jit traces, sizes that it follows stay traced.
    """
    if tracing_state() is not None:
        untraced(height_and_width, op, untraced_size(size))
        return (size, size) if isinstance(size, (int, Tensor)) else (size[0], size[1])
    if _is_integer(size):
        size = (size, size)  # type: ignore[assignment]
    elif type(size).__module__ == "numpy":
        size = size.tolist()  # type: ignore[union-attr]
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        fail(op, "size", "an integer or (height, width)", repr(size))
    for length in size:
        if not _is_integer(length) or length < 1:
            fail(op, "size", "of integers >= 1", repr(size))
    return _plain_integer(size[0]), _plain_integer(size[1])


def integer(owner: str, name: str, value: Any) -> int:
    """Return `value` as Python's integer; NumPy's integers are accepted, a bool, a tensor or a float is not."""
    if not _is_integer(value):
        raise TypeError(f"{owner}: {name} must be an integer, got {value!r}, a {type(value).__name__}")
    return _plain_integer(value)


def integers(owner: str, name: str, values: Any) -> tuple[int, ...]:
    """Return a sequence of integers, or a NumPy array, as Python's integers."""
    values = values.tolist() if type(values).__module__ == "numpy" else values
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"{owner}: {name} must be a list of integers, got {values!r}, a {type(values).__name__}")
    return tuple(integer(owner, f"{name}[{i}]", value) for i, value in enumerate(values))


def _is_integer(value: object) -> bool:
    if type(value) is int:
        return True
    return isinstance(value, (Integral, torch.SymInt)) and not isinstance(value, bool)


def _plain_integer(value: Any) -> int:
    if isinstance(value, torch.SymInt):
        return cast(int, value)  # int() would make it a constant
    return int(value)


def not_scriptable(module: object) -> TypeError:
    """Return the error for torch.jit.script, which would name the first line that it cannot read."""
    return TypeError(f"{type(module).__name__}: torch.jit.script cannot read this module; use torch.jit.trace")


def untraced(check: Callable[..., Any], *arguments: Any) -> Any:
    """Run a check outside torch.jit.trace, which makes tensors of shapes and warns about each comparison."""
    state = tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        return check(*arguments)
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def untraced_size(size: Any) -> Any:
    """Return a size without the tensors that torch.jit.trace makes of it."""
    if isinstance(size, (list, tuple)):
        return tuple(untraced_size(length) for length in size)
    return untraced(size.item) if isinstance(size, Tensor) and size.dim() == 0 else size


def parameters(
    op: str,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    channels: int,
    in_channels: list[int],
) -> list[Tensor]:
    """Return weights and biases in one list, after checking their shapes, dtype and device.

    weights: (channels, in_channels[i], 1, 1). biases: (channels,). dtype and device: as of x.
    """
    for i, weight in enumerate(weights):
        name = f"weights[{i}]"
        tensor(op, name, weight)
        if weight.shape != (channels, in_channels[i], 1, 1):
            fail(op, name, (channels, in_channels[i], 1, 1), tuple(weight.shape))
        same(op, name, weight, x)
    if not biases:
        return list(weights)
    count(op, "biases", biases, len(weights))
    for i, bias in enumerate(biases):
        name = f"biases[{i}]"
        tensor(op, name, bias)
        if bias.shape != (channels,):
            fail(op, name, (channels,), tuple(bias.shape))
        same(op, name, bias, x)
    return [*weights, *biases]


def image(op: str, name: str, x: Tensor) -> None:
    tensor(op, name, x)
    if x.dim() != 4:
        fail(op, name, "(batch, channels, height, width)", tuple(x.shape))
    if not x.is_floating_point():
        fail(op, name, "of a floating-point dtype", x.dtype)
    if x.shape[1] < 1 or x.shape[2] < 1 or x.shape[3] < 1:
        fail(op, name, "of channels, height and width >= 1", tuple(x.shape))


def tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")


def count(op: str, name: str, tensors: object, count: int | None) -> None:
    if not isinstance(tensors, (list, tuple)):
        raise TypeError(f"{op}: {name} must be a list or tuple of tensors, got {type(tensors).__name__}")
    if count is None and not tensors:
        fail(op, name, "of at least one tensor", "none")
    if count is not None and len(tensors) != count:
        fail(op, name, f"{count} tensors", len(tensors))


def same(op: str, name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.dtype != x.dtype:
        fail(op, name, f"of dtype {x.dtype}, as the input", tensor.dtype)
    if tensor.device != x.device:
        fail(op, name, f"on {x.device}, as the input", tensor.device)


def fail(op: str, name: str, expected: object, got: object) -> NoReturn:
    raise ValueError(f"{op}: {name} must be {expected}, got {got}")
