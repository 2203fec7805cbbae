"""What each op accepts. Every function has the signature of its op, raises ValueError or TypeError with the op, the
argument, what was expected and what came, and returns all tensors of the call, the one that sets the dtype first."""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from .reference import ACTIVATIONS, MEAN, STD

MOST_CLASSES = 256  # labels are uint8
tracing_state = torch._C._get_tracing_state  # None where torch.jit.trace is not at work


def crp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None, groups: int = 1) -> list[Tensor]:
    if tracing_state() is not None:
        return _untraced(crp, x, weights, biases, groups)
    _image("crp", "x", x)
    planes = x.shape[1]
    if type(groups) is not int:
        integer("crp", "groups", groups)
    # one plane: both readings are the same
    if groups not in (1, planes):
        _fail("crp", "groups", f"1 or the number of planes ({planes})", groups)
    _count("crp", "weights", weights, None)
    per_group = 1 if groups == planes else planes
    return [x, *_parameters("crp", x, weights, biases, planes, [per_group] * len(weights))]


def fusion(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    activation: str = "relu",
    align_corners: bool = True,
) -> list[Tensor]:
    if tracing_state() is not None:
        return _untraced(fusion, inputs, weights, biases, activation, align_corners)
    _count("fusion", "inputs", inputs, None)
    first = inputs[0]
    for k, x in enumerate(inputs):
        _image("fusion", f"inputs[{k}]", x)
        if x.shape[0] != first.shape[0]:
            _fail("fusion", f"inputs[{k}]", f"of batch size {first.shape[0]}, as inputs[0]", x.shape[0])
        _same("fusion", f"inputs[{k}]", x, first)
    _count("fusion", "weights", weights, len(inputs))
    _tensor("fusion", "weights[0]", weights[0])
    planes = weights[0].shape[0] if weights[0].dim() else 0
    if planes < 1:
        _fail("fusion", "weights[0]", "(planes, channels, 1, 1) with planes >= 1", tuple(weights[0].shape))
    if activation not in ACTIVATIONS:
        _fail("fusion", "activation", '"relu", "relu6" or "none"', repr(activation))
    return [*inputs, *_parameters("fusion", first, weights, biases, planes, [x.shape[1] for x in inputs])]


def upsample_argmax(logits: Tensor, size: int | Sequence[int], align_corners: bool = True) -> list[Tensor]:
    if tracing_state() is not None:
        return _untraced(upsample_argmax, logits, _numbers(size), align_corners)
    _image("upsample_argmax", "logits", logits)
    if logits.shape[1] > MOST_CLASSES:
        _fail("upsample_argmax", "logits", f"of at most {MOST_CLASSES} classes, for labels are uint8", logits.shape[1])
    height_and_width("upsample_argmax", size)
    return [logits]


def normalise(
    images: Tensor,
    size: int | Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> list[Tensor]:
    _tensor("normalise", "images", images)
    if images.dtype != torch.uint8:
        raise TypeError(f"normalise: images must be uint8, got {str(images.dtype).removeprefix('torch.')}")
    if images.dim() not in (3, 4) or images.shape[-1] != 3:
        _fail("normalise", "images", "(N, H, W, 3) or (H, W, 3)", tuple(images.shape))
    if images.shape[-3] < 1 or images.shape[-2] < 1:
        _fail("normalise", "images", "of height and width >= 1", tuple(images.shape))
    if size is not None:
        height_and_width("normalise", size)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        _fail("normalise", "dtype", "a floating-point torch.dtype", dtype)
    for name, numbers in (("mean", mean), ("std", std)):
        if not isinstance(numbers, Sequence) or len(numbers) != 3:
            _fail("normalise", name, "3 numbers, one for each colour", repr(numbers))
    if not all(number > 0 for number in std):
        _fail("normalise", "std", "above 0", repr(std))
    return [torch.empty(0, dtype=dtype, device=images.device), images]  # backends go by the dtype of the result


def height_and_width(op: str, size: int | Sequence[int]) -> tuple[int, int]:
    """`size` as (height, width): one number stands for both. NumPy's integers and arrays of two will do. While
    torch.jit traces, sizes that it follows stay so.
    """
    if tracing_state() is not None:
        _untraced(height_and_width, op, _numbers(size))
        return (size, size) if isinstance(size, (int, Tensor)) else (size[0], size[1])
    if _is_integer(size):
        size = (size, size)  # type: ignore[assignment]
    elif type(size).__module__ == "numpy":
        size = size.tolist()  # type: ignore[union-attr]
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        _fail(op, "size", "an integer or (height, width)", repr(size))
    for length in size:
        if not _is_integer(length) or length < 1:
            _fail(op, "size", "of integers >= 1", repr(size))
    return _plain_integer(size[0]), _plain_integer(size[1])


def integer(owner: str, name: str, value: Any) -> int:
    """`value` as Python's integer; it may be one of NumPy's, and neither a bool, a tensor nor a float."""
    if not _is_integer(value):
        raise TypeError(f"{owner}: {name} must be an integer, got {value!r}, a {type(value).__name__}")
    return _plain_integer(value)


def integers(owner: str, name: str, values: Any) -> tuple[int, ...]:
    """A sequence of integers, or an array of NumPy's, as Python's integers."""
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
    """What torch.jit.script is told, in place of the first line that it cannot read."""
    return TypeError(f"{type(module).__name__}: torch.jit.script cannot read this module; use torch.jit.trace")


def _untraced(check: Callable[..., Any], *arguments: Any) -> Any:
    """A check as without torch.jit.trace, which makes tensors of shapes, and warns about each comparison."""
    state = tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        return check(*arguments)
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def _numbers(size: Any) -> Any:
    """A size without the tensors that torch.jit.trace makes of it."""
    if isinstance(size, (list, tuple)):
        return tuple(_numbers(length) for length in size)
    return _untraced(size.item) if isinstance(size, Tensor) and size.dim() == 0 else size


def _parameters(
    op: str, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None, planes: int, channels: list[int]
) -> list[Tensor]:
    """Weights (planes, channels[i], 1, 1), biases (planes,), all of the dtype and device of x."""
    for i, weight in enumerate(weights):
        name = f"weights[{i}]"
        _tensor(op, name, weight)
        if weight.shape != (planes, channels[i], 1, 1):
            _fail(op, name, (planes, channels[i], 1, 1), tuple(weight.shape))
        _same(op, name, weight, x)
    if not biases:
        return list(weights)
    _count(op, "biases", biases, len(weights))
    for i, bias in enumerate(biases):
        name = f"biases[{i}]"
        _tensor(op, name, bias)
        if bias.shape != (planes,):
            _fail(op, name, (planes,), tuple(bias.shape))
        _same(op, name, bias, x)
    return [*weights, *biases]


def _image(op: str, name: str, x: Tensor) -> None:
    _tensor(op, name, x)
    if x.dim() != 4:
        _fail(op, name, "(batch, channels, height, width)", tuple(x.shape))
    if not x.is_floating_point():
        _fail(op, name, "of a floating-point dtype", x.dtype)
    if x.shape[1] < 1 or x.shape[2] < 1 or x.shape[3] < 1:
        _fail(op, name, "of channels, height and width >= 1", tuple(x.shape))


def _tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")


def _count(op: str, name: str, tensors: object, count: int | None) -> None:
    if not isinstance(tensors, (list, tuple)):
        raise TypeError(f"{op}: {name} must be a list or tuple of tensors, got {type(tensors).__name__}")
    if count is None and not tensors:
        _fail(op, name, "of at least one tensor", "none")
    if count is not None and len(tensors) != count:
        _fail(op, name, f"{count} tensors", len(tensors))


def _same(op: str, name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.dtype != x.dtype:
        _fail(op, name, f"of dtype {x.dtype}, as the input", tensor.dtype)
    if tensor.device != x.device:
        _fail(op, name, f"on {x.device}, as the input", tensor.device)


def _fail(op: str, name: str, expected: object, got: object) -> NoReturn:
    raise ValueError(f"{op}: {name} must be {expected}, got {got}")
