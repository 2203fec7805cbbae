"""The choice of the backend that runs a call, and the reasons against the others.

The choice is that of `use_backend`, else that of the environment variable LWRN_FAST_BACKEND when lwrn_fast was
imported, else "auto": the fastest proven backend that can run the call, and `reference` where none can, which the
logger `lwrn_fast` tells once per reason.
A backend asked for by name runs the call or raises. Under torch.compile the choice is made while tracing;
torch.jit.trace and torch.onnx.export get PyTorch's own operations, unless another backend is asked for.
"""

import os
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from ..log import warn_once
from .base import Backend, Call, Op
from .cuda import Cuda
from .native import Native
from .reference import Plain, Reference
from .triton import Triton

REFERENCE, PLAIN = Reference(), Plain()
# The backends to ask for by name. A new backend is added here.
ALL: tuple[Backend, ...] = (REFERENCE, Native(), Triton(), Cuda())
BACKENDS = ("auto", *(backend.name for backend in ALL))
# The environment variable, and its value when lwrn_fast was imported.
VARIABLE = "LWRN_FAST_BACKEND"
ENVIRONMENT = os.environ.get(VARIABLE) or "auto"
_BY_NAME = {backend.name: backend for backend in (*ALL, PLAIN)}
# The backends that "auto" tries, the fastest first.
_ORDER = {"cpu": (_BY_NAME["cpu"],), "gpu": (_BY_NAME["cuda"], _BY_NAME["triton"])}


class _ThreadChoice(threading.local):
    name: str | None = None


_thread = _ThreadChoice()
_process: str | None = None


def checked_name(name: str, argument: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{argument} must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


class use_backend:  # noqa: N801  a function to its users, and a context manager as torch.no_grad is
    """Set the backend: "auto", "reference", "cpu", "triton" or "cuda"; as a context manager, until its end.

    In the main thread it holds for every thread that has not chosen for itself, in any other thread for that one alone.
    Raises ValueError for an unknown name. A backend that cannot run raises RuntimeError at each call, not here.

    >>> import lwrn_fast
    >>> with lwrn_fast.use_backend("reference"): lwrn_fast.info()["backend"]
    'reference'
    """

    def __init__(self, name: str) -> None:
        self._name = checked_name(name, "use_backend: name")
        self._set()

    def __enter__(self) -> "use_backend":
        if not self._active:
            self._set()
        return self

    def __exit__(self, *_: object) -> None:
        global _process
        if self._for_all:
            _process = self._before
        else:
            _thread.name = self._before
        self._active = False

    def _set(self) -> None:
        global _process
        self._for_all = _in_main_thread()
        if self._for_all:
            self._before, _process = _process, self._name
        else:
            self._before, _thread.name = _thread.name, self._name
        self._active = True


class in_this_thread:  # noqa: N801  as above
    """Set a backend within a context for this thread alone, the main thread too; None leaves it as it is."""

    def __init__(self, name: str | None) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._before = _thread.name
        _thread.name = self._name or self._before

    def __exit__(self, *_: object) -> None:
        _thread.name = self._before


def requested() -> str:
    """Return the backend asked for in this thread; raise ValueError where LWRN_FAST_BACKEND names none."""
    chosen = _thread.name or _process
    if chosen is not None:
        return chosen
    return checked_name(ENVIRONMENT, VARIABLE)


def select(call: Call) -> Backend:
    """Return the backend that runs this call on all its tensors; raise RuntimeError where the one asked for cannot."""
    name = requested()
    if name != "auto":
        backend = _BY_NAME[name]
        reason = backend.why_not(call)
        if reason is not None:
            raise RuntimeError(f"{call.op.name}: the backend {name!r} cannot run this call: {reason}")
        return backend
    if torch._C._get_tracing_state() is not None:
        return REFERENCE  # for files that run anywhere: torch.jit.trace
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
        return REFERENCE
    reasons = []
    for backend in _ORDER["cpu" if call.tensors[0].device.type == "cpu" else "gpu"]:
        reason = backend.why_not(call) or backend.unproven
        if reason is None:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    warn_once(f"{call.op.name} runs on the reference backend, plain PyTorch ({'; '.join(reasons)})")
    return REFERENCE


def fall_back(op: Op, tensors: Sequence[Tensor], reason: str) -> Reference:
    """Return the backend of a call that only PyTorch's own operations can do, for this reason, which is logged once.

    Raises RuntimeError where another backend is asked for by name.
    """
    backend = select(Call(op, tensors, must_use_reference=reason))
    assert isinstance(backend, Reference)
    return backend


def missing(name: str) -> str | None:
    """Return why the backend of this name cannot run any call at all; None where it can."""
    return None if name == "auto" else _BY_NAME[name].missing()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


# torch.compile asks while it traces, and cannot trace this; see log.py.
_in_main_thread._dynamo_marked_constant = True  # type: ignore[attr-defined]
