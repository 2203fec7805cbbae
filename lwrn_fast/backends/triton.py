"""The Triton kernels, backend "triton". Triton itself is imported when first asked for."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .base import Backend, Call, no_kernel, too_many

# Versions of the oldest Triton, and compute capability of the oldest GPUs, that the kernels run on.
MIN_TRITON = (3, 4)
MIN_CAPABILITY = (8, 0)
# Called before the first kernel runs: `lwrn_fast.ops` registers the kernels with PyTorch's dispatcher then.
on_first_use: list[Callable[[], None]] = []


def missing() -> str | None:
    """Return why this installation can run the Triton kernels on no device, in one line; None where it can on some.

    >>> from lwrn_fast.backends import triton
    >>> triton.missing() is None or "\\n" not in triton.missing()
    True
    """
    return _missing()


def why_not_on(device: torch.device) -> str | None:
    """Return why the kernels cannot run on this device; None where they can."""
    if missing() is not None:
        return missing()
    if _interpreted():
        return None if device.type == "cpu" else f"Triton's interpreter runs on the CPU, the tensors are on {device}"
    if device.type != "cuda":
        return f"the tensors are on {device}"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < MIN_CAPABILITY:
        return f"{device} has compute capability {_dotted(capability)}, the kernels need {_dotted(MIN_CAPABILITY)}"
    return None


def limits() -> tuple[int, int]:
    """Return the maximum numbers of stages of a crp and of inputs of a fusion that the kernels take."""
    kernels = importlib.import_module("lwrn_fast.kernels")
    return kernels.MAX_STAGES, kernels.MAX_INPUTS


class Triton(Backend):
    """Triton: tensors on a GPU, float32, bfloat16 or float16, of any strides. It takes some arguments one by one."""

    name = "triton"
    unproven = "has not yet run on a GPU, and runs only when asked for by name"

    def missing(self) -> str | None:
        return missing()

    def unsupported(self, call: Call) -> str | None:
        reason = why_not_on(call.tensors[0].device) or no_kernel(call.tensors)
        return reason or too_many(call, *limits())

    def run(self, call: Call) -> Any:
        if call.op.keeps_stages and call.trains():
            out, _ = run(f"{call.op.name}_training", call.tensors, *call.arguments)
            return out
        return run(call.op.name, call.tensors, *call.arguments)


def run(op: str, tensors: Sequence[Tensor], *arguments: Any) -> Any:
    """Run an op ("crp", ...) on these arguments, whose tensors are `tensors`.

    The call goes through PyTorch's dispatcher where autograd, torch.compile, a dispatch mode or a tensor subclass has
    to see it; else straight to the kernel, which takes less time.
    """
    load()
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        or any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors)
    ):
        return getattr(torch.ops.lwrn_fast, f"triton_{op}")(*arguments)
    return _prepare(op)(*arguments).run()


def load() -> bool:
    """Import the kernels and register their ops; return True, because torch.compile wants a constant."""
    return _first_use() is None


@cache
def _first_use() -> None:
    for register in on_first_use:
        register()


def _prepare(op: str) -> Any:
    """Return the function that makes a launch of an op."""
    return importlib.import_module(f"lwrn_fast.kernels.{op}").prepare


@cache
def _missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        version = importlib.import_module("triton").__version__
        interpreted = _interpreted()
    except Exception as error:  # a broken installation may raise anything
        return f"Triton cannot be imported: {type(error).__name__}: {error}".splitlines()[0]
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < MIN_TRITON:
        return f"the kernels need Triton >= {_dotted(MIN_TRITON)}, and this is Triton {version}"
    if not interpreted and not torch.cuda.is_available():
        return "PyTorch finds no GPU"
    return None


def _interpreted() -> bool:
    """Return whether the kernels run in Triton's interpreter, on the CPU: TRITON_INTERPRET when they are first used."""
    return bool(importlib.import_module("lwrn_fast.kernels.numerics").INTERPRETED.value)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


# torch.compile cannot trace these; see log.py.
for _function in (missing, why_not_on, limits, load):
    _function._dynamo_marked_constant = True  # type: ignore[union-attr]
