"""Which backend runs a call, and why the others cannot.

The choice is `use_backend`'s, else that of the environment variable LWRN_FAST_BACKEND when lwrn_fast was imported, else
"auto": the fastest proven backend that can run the call, and `reference` where none can, which is said once per reason
through the logger `lwrn_fast`.
A backend asked for by name runs the call or raises. Under torch.compile the choice is made while tracing;
torch.jit.trace and torch.onnx.export get PyTorch's own operations, unless another backend is asked for.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..ops import checks
from . import cuda, native, triton

BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")
VARIABLE = "LWRN_FAST_BACKEND"
ENVIRONMENT = os.environ.get(VARIABLE) or "auto"
CHECKS: dict[str, Callable[..., list[Tensor]]] = {
    "crp": checks.crp,
    "fusion": checks.fusion,
    "upsample_argmax": checks.upsample_argmax,
    "normalise": checks.normalise,
}
# Plain PyTorch, whose results stay in the memory that it chooses; not for users to ask for.
PLAIN = "plain"
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

log = logging.getLogger("lwrn_fast")


class _ThreadChoice(threading.local):
    name: str | None = None


_thread = _ThreadChoice()
_process: str | None = None
_said: set[str] = set()


def checked_name(name: str, argument: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{argument} must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


class use_backend:  # noqa: N801  a function to its users, and a context manager as torch.no_grad is
    """Set the backend: "auto", "reference", "cpu", "triton" or "cuda"; as a context manager, until its end.

    In the main thread it holds for every thread that has not chosen for itself, in any other thread for that one alone.
    Raises ValueError for an unknown name. Whether the backend can run is found out by each call.

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
    """A context with a backend for this thread alone, the main thread too; None leaves it as it is."""

    def __init__(self, name: str | None) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._before = _thread.name
        _thread.name = self._name or self._before

    def __exit__(self, *_: object) -> None:
        _thread.name = self._before


def requested() -> str:
    """The backend asked for in this thread; ValueError where LWRN_FAST_BACKEND names none."""
    chosen = _thread.name or _process
    if chosen is not None:
        return chosen
    return checked_name(ENVIRONMENT, VARIABLE)


def select(op: str, tensors: Sequence[Tensor], hindrance: str | None = None) -> str:
    """The backend that runs this call of `op` ("crp", ...) on all its tensors, as `checks` returns them.

    hindrance: why only PyTorch's own operations will do, if so. RuntimeError where a backend asked for cannot run.
    """
    name = requested()
    if name != "auto":
        reason = why_not(name, op, tensors, hindrance)
        if reason is not None:
            raise RuntimeError(f"{op}: the backend {name!r} cannot run this call: {reason}")
        return name
    if checks.tracing_state() is not None or (torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()):
        return "reference"  # for files that run anywhere: torch.jit.trace and torch.onnx.export
    reasons = []
    for name in _fastest_first(tensors[0]):
        reason = why_not(name, op, tensors, hindrance) or UNPROVEN.get(name)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    _say_once(f"{op} runs on the reference backend, plain PyTorch ({'; '.join(reasons)})")
    return "reference"


def explain(op: str, *args: object, **kwargs: object) -> dict[str, str]:
    """For a call of `op`, by its name, with these arguments: "ready" or why not, per backend.

    Raises what the call itself would raise for wrong arguments.

    >>> import torch, lwrn_fast
    >>> lwrn_fast.explain("upsample_argmax", torch.zeros(1, 2, 3, 3), 6)["reference"]
    'ready'
    """
    if op not in CHECKS:
        raise ValueError(f"explain: op must be one of {', '.join(CHECKS)}, got {op!r}")
    tensors = CHECKS[op](*args, **kwargs)
    return {name: why_not(name, op, tensors) or "ready" for name in BACKENDS if name != "auto"}


def why_not(name: str, op: str, tensors: Sequence[Tensor], hindrance: str | None = None) -> str | None:
    """Why the backend cannot run this call, None where it can."""
    if name in ("reference", PLAIN):
        return can_run_reference(op, tensors)
    if hindrance is not None:
        return hindrance
    if name == "cpu":
        return can_run_cpu(op, tensors)
    if name == "triton":
        return can_run_triton(op, tensors)
    return can_run_cuda(op, tensors)


def can_run_reference(op: str, tensors: Sequence[Tensor]) -> str | None:
    """Plain PyTorch runs everything."""
    return None


def can_run_cpu(op: str, tensors: Sequence[Tensor]) -> str | None:
    """The C++ engine: tensors on the CPU, float32, bfloat16 or float16, of any strides."""
    if NATIVE_MISSING is not None:
        return NATIVE_MISSING
    if tensors[0].device.type != "cpu":
        return f"the tensors are on {tensors[0].device}"
    return _why_no_kernel(tensors)


def can_run_triton(op: str, tensors: Sequence[Tensor]) -> str | None:
    """Triton: tensors on a GPU, float32, bfloat16 or float16, of any strides. It takes some arguments one by one."""
    reason = triton.why_not_on(tensors[0].device) or _why_no_kernel(tensors)
    return reason or _why_too_many(op, tensors, *triton.limits())


def can_run_cuda(op: str, tensors: Sequence[Tensor]) -> str | None:
    """CUDA C++: tensors on a GPU, float32, bfloat16 or float16, of any strides."""
    reason = cuda.why_not_on(tensors[0].device) or _why_no_kernel(tensors)
    reason = reason or _why_too_many(op, tensors, cuda.MOST_STAGES, cuda.MOST_INPUTS)
    if reason is None and op == "crp" and len(tensors) > 1 and tensors[1].shape[1] > 1:
        planes, most = tensors[0].shape[1], cuda.most_planes(tensors[0].device, tensors[0].dtype)
        if planes > most:
            return f"shared memory holds at most {most} planes of {tensors[0].dtype}, not {planes}"
    return reason


def _why_no_kernel(tensors: Sequence[Tensor]) -> str | None:
    """What no kernel of ours can do; `checks` has seen that the tensors share the dtype and device of the first."""
    if tensors[0].dtype not in KERNEL_DTYPES:
        return f"{tensors[0].dtype} is not float32, bfloat16 or float16"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms need PyTorch's own operations"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation needs PyTorch's own operations"
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.is_nested:
            return "a tensor is sparse or nested"
    return None


def _why_too_many(op: str, tensors: Sequence[Tensor], most_stages: int, most_inputs: int) -> str | None:
    maps = sum(tensor.dim() == 4 for tensor in tensors)  # and weights
    if op == "crp" and maps > 1 + most_stages:
        return f"it runs at most {most_stages} stages, not {maps - 1}"
    if op == "fusion" and maps > 2 * most_inputs:
        return f"it takes at most {most_inputs} inputs, not {maps // 2}"
    return None


NATIVE_MISSING = native.missing()
# What "auto" leaves alone, and why.
UNPROVEN = dict.fromkeys(("cuda", "triton"), "has not yet run on a GPU, and runs only when asked for by name")


def missing(name: str) -> str | None:
    """What keeps a backend from running any call at all."""
    if name == "cpu":
        return NATIVE_MISSING
    if name == "triton":
        return triton.missing()
    return cuda.missing() if name == "cuda" else None


def _fastest_first(tensor: Tensor) -> tuple[str, ...]:
    return ("cpu",) if tensor.device.type == "cpu" else ("cuda", "triton")


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _say_once(message: str) -> bool:
    new = message not in _said
    if new:
        _said.add(message)
        log.warning("%s", message)
    return new


# Both are asked while torch.compile traces, and neither can be traced. This is torch.compiler.assume_constant_result
# without its import of the compiler, which would double the time that `import lwrn_fast` takes.
for _function in (_in_main_thread, _say_once):
    _function._dynamo_marked_constant = True  # type: ignore[union-attr]
