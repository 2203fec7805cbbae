"""Capture of a model by torch.export for its files, and the reason in one line where that fails."""

import copy
import io
import itertools
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from .. import backends
from ..log import log
from ..models import outputs
from ..ops.upsample_argmax import upsample_argmax

# The dtypes that the kernels take.
MAP_DTYPES = backends.KERNEL_DTYPES
# Packages whose exceptions are wrapped around the actual reason, and whose frames are not the user's code.
TOOLS = ("torch", "onnx", "onnxscript", "onnx_ir", "sympy")
# Modules that compute something else while training; other modules may stand in either mode.
TRAINS = (_BatchNorm, _DropoutNd, nn.RReLU)

# torch.export and torch.onnx keep their state in globals: one thread at a time.
_turn = threading.Lock()


class Told:
    """Results of a graph's forward while it is captured; an object of its own, because torch.export restores lists."""

    names: Sequence[str] = ()
    changed: Sequence[str] = ()


class Graph(nn.Module):
    """A model with the steps that a file adds before and after it.

    The model is a copy, so that attributes which its forward sets stay out of the original; its parameters are the
    original's, and nothing of it is altered. Its inputs are copies too: a model may write to them, and a file may not.
    labels: end with the label map. sizes: the `size` of `package_input` for each tensor (N, C, H, W), for AOTInductor.
    flat: return the tensors alone. After a capture, `told` holds the names of the results and of the buffers that
    change.
    """

    def __init__(
        self, op: str, model: nn.Module, labels: bool, sizes: Sequence[list[int]] | None = None, flat: bool = False
    ) -> None:
        super().__init__()
        self.op, self.labels, self.sizes, self.flat = op, labels, sizes, flat
        self.told = Told()
        self.model = _copy(model)
        self.training = False  # for this module alone, not its children

    def forward(self, *arguments: Any) -> Any:
        maps = [tensor for tensor in tensors(arguments) if tensor.dim() == 4]
        sizes = iter(self.sizes or ())
        before = {name: buffer._version for name, buffer in self.model.named_buffers()}
        result = self.model(*map_tensors(lambda tensor: self._own(tensor, sizes), arguments))
        self.told.changed = [n for n, buffer in self.model.named_buffers() if buffer._version != before.get(n)]
        if self.labels:
            result = upsample_argmax(outputs.logits(result, self.op), maps[0].shape[2:])
        leaves = outputs.leaves(result, self.op)
        self.told.names = [name for name, _ in leaves]
        if self.flat:
            return tuple(tensor for _, tensor in outputs.leaves(outputs.plain(result), self.op))
        return outputs.plain(result)

    def _own(self, tensor: Tensor, sizes: Iterator[list[int]]) -> Tensor:
        size = next(sizes, None) if tensor.dim() == 4 else None
        if size is None or tensor.dtype not in MAP_DTYPES:
            return tensor.clone()
        return torch.ops.lwrn_fast.package_input(tensor, size, tensor.dtype)


def capture(graph: Graph, arguments: tuple, dynamic: bool) -> torch.export.ExportedProgram:
    """Return the graph for inputs like these; with dynamic, for any batch, height and width of (N, C, H, W) tensors."""
    shapes = dimensions(arguments, lambda: (torch.export.Dim.DYNAMIC,) * 3) if dynamic else None
    program = torch.export.export(graph, _like(arguments, dynamic), dynamic_shapes=shapes)
    if graph.told.changed:
        names = ", ".join(graph.told.changed)
        log.warning("%s: the model changes %s; each call of the file begins with the present value", graph.op, names)
    for guard in getattr(program, "_guards_code", ()):
        # The other guards are about strides, and maps of one pixel.
        if "%" in guard:
            guard = re.sub(r"L\['arguments'\](.*?)\.size\(\)", r"arguments\1.shape", guard)
            log.warning("%s: the model decides by sizes; the file is only for %s", graph.op, guard)
    return program


@contextmanager
def exporting(op: str, backend: str | None = None) -> Iterator[None]:
    """Export within this context: without gradients, so that weights are folded, and without the exporters' messages.

    backend: of this thread. Any failure is raised as one error that begins with the reason; OSError, MemoryError and
    ImportError stay as they are.
    """
    torch_log = logging.getLogger("torch")
    level = torch_log.level
    with _turn, torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_log.setLevel(logging.CRITICAL)
        try:
            with backends.in_this_thread(backend), redirect_stderr(_Hush(sys.stderr)):
                yield
        except (OSError, MemoryError, ImportError):
            raise
        except Exception as error:
            error_class, text = reason(error)
            raise error_class(text if text.startswith(f"{op}: ") else f"{op}: {text}") from error
        finally:
            torch_log.setLevel(level)


class _Hush(io.TextIOBase):
    """Standard error without the output of this thread: torch.export prints whole graphs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


def reason(error: BaseException) -> tuple[type[Exception], str]:
    """Return the class to raise for a failed export, and the reason in one line that ends with the line of the model.

    >>> reason(ValueError("x must be (N, 3, H, W)\\nand more lines"))
    (<class 'ValueError'>, 'x must be (N, 3, H, W)')
    """
    chain: list[Any] = [error]
    while _is_wrapper(chain[-1]) and chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    root = chain[-1]
    text = _first_line(root)
    if "data-dependent" in text or type(root).__name__ == "GuardOnDataDependentSymNode":
        text = f"the model decides by the values of its input, which a file cannot: {text.split(' (unhinted')[0]}"
    location = next(filter(None, map(_location, reversed(chain))), "")
    return type(root) if type(root) in (ValueError, TypeError) else RuntimeError, text + location


def _is_wrapper(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in TOOLS


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # A compiler's error stands after its command.
    first = next((line for line in lines if " error: " in line), lines[0])
    # Messages of other classes are incomplete without the class: KeyError's is the key.
    plain = isinstance(error, (RuntimeError, ValueError, TypeError, NotImplementedError)) or _is_wrapper(error)
    return first if plain else f"{type(error).__name__}: {first}"


def _location(error: BaseException) -> str:
    """Return the line of the user's code that raised, " (net.py:12, in forward: if x.sum() > 0:)", or ""."""
    tools = [os.path.dirname(getattr(sys.modules.get(name), "__file__", None) or "/nowhere/-") for name in TOOLS]
    tools.append(os.path.dirname(os.path.dirname(__file__)))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename[0] != "<" and not any(frame.filename.startswith(folder + os.sep) for folder in tools):
            if frame.name == "<module>":
                return ""
            line = f": {frame.line}" if frame.line and not frame.line.startswith("raise ") else ""
            return f" ({os.path.basename(frame.filename)}:{frame.lineno}, in {frame.name}{line})"
    return ""


def check_model(op: str, model: nn.Module) -> nn.Module:
    """Return the model without torch.compile's wrapper; raise TypeError or ValueError if it cannot be exported."""
    from ..optimize import Optimized

    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)  # torch.compile's OptimizedModule
    if model.training and not isinstance(model, Optimized):
        raise ValueError(f"{op}: model must be in eval mode, got one in training mode: call model.eval()")
    for name, module in model.named_modules():
        where = f" at {name}" if name else ""
        if isinstance(module, Optimized):
            raise TypeError(f"{op}: model must be the model that was given to optimize, got its result{where}")
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f"{op}: model must be a torch.nn.Module in Python, got a TorchScript module{where}")
        if module.training and isinstance(module, TRAINS):
            got = f"{type(module).__name__} {name}"
            raise ValueError(f"{op}: model must be in eval mode, got {got} in training mode: call model.eval()")
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"{op}: model must have been called once, got {name} without a size")
        if tensor.is_meta:
            raise ValueError(f"{op}: model must hold its weights, got {name} on meta, without values")
    return model


def _copy(model: nn.Module) -> nn.Module:
    """Return the model with its own attributes and the same parameters and buffers."""
    memo: dict[int, Any] = {}
    inner_first = list(model.modules())[::-1]
    for module in inner_first:
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                memo[id(tensor)] = _normal(tensor) if tensor.is_inference() else tensor
        for value in vars(module).values():
            if isinstance(value, Tensor):
                memo[id(value)] = value.detach()  # weight_norm keeps its result, which has a graph
    for module in inner_first:
        if hasattr(module, "_orig_mod"):
            memo[id(module)] = copy.deepcopy(module._orig_mod, memo)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise TypeError(f"model cannot be copied: {_first_line(error)}") from error


def _normal(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor made in inference mode, which torch.export cannot take."""
    copied = tensor.detach().clone()
    return nn.Parameter(copied, requires_grad=False) if isinstance(tensor, nn.Parameter) else copied


def _like(arguments: tuple, dynamic: bool) -> tuple:
    """Return zeros like the arguments; for any size, so large that no inner map has size 1, a special case."""
    shortest = min((min(t.shape[2:]) for t in tensors(arguments) if t.dim() == 4), default=64)
    factor = -(-64 // max(1, shortest)) if dynamic else 1

    def zeros(tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        if dynamic and tensor.dim() == 4:
            shape = [max(2, shape[0]), shape[1], factor * shape[2], factor * shape[3]]
        return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)

    return map_tensors(zeros, arguments)


def dimensions(arguments: tuple, three: Callable[[], tuple]) -> tuple:
    """Return dynamic shapes for torch.export: for each (N, C, H, W) the `three` dimensions that may be any."""

    def of(tensor: Tensor) -> dict[int, Any] | None:
        return dict(zip((0, 2, 3), three(), strict=True)) if tensor.dim() == 4 else None

    return (map_tensors(of, arguments),)


def map_tensors(function: Callable[[Tensor], Any], item: Any) -> Any:
    return function(item) if isinstance(item, Tensor) else type(item)(map_tensors(function, each) for each in item)


def tensors(item: Any) -> list[Tensor]:
    return [item] if isinstance(item, Tensor) else [tensor for each in item for tensor in tensors(each)]
