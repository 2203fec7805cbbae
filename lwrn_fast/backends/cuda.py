"""The CUDA kernels, backend "cuda". Once they are loaded, `torch.ops.lwrn_fast.*` run them on CUDA tensors."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch

from . import native
from .base import Backend, Call, no_kernel, too_many

LIBRARY = Path(__file__).parents[1] / "_ops_cuda.so"
# Compute capability of the oldest GPUs that the kernels run on.
MIN_CAPABILITY = (8, 0)
# Stages of a crp and inputs of a fusion that the kernels take.
MAX_STAGES = 64
MAX_INPUTS = 16


def missing() -> str | None:
    """Load the kernels where this PyTorch has a GPU; return why no device can run them, in one line, or None.

    >>> from lwrn_fast.backends import cuda
    >>> cuda.missing() is None or "\\n" not in cuda.missing()
    True
    """
    return _missing()


def why_not_on(device: torch.device) -> str | None:
    """Return why the kernels cannot run on this device; None where they can."""
    if missing() is not None:
        return missing()
    if device.type != "cuda":
        return f"the tensors are on {device}"
    return _why_not_on(_index(device))


def max_channels(device: torch.device, dtype: torch.dtype) -> int:
    """Return how many channels of a crp that is not depthwise fit into the device's shared memory."""
    return _max_channels(_index(device), dtype == torch.float32)


@cache
def _missing() -> str | None:
    if native.missing() is not None:
        return native.missing()
    if not LIBRARY.exists():
        return f"{LIBRARY.name} is not in this installation, which was built without CUDA"
    if torch.version.cuda is None:
        return f"this is torch {torch.__version__}, which has no CUDA"
    if not torch.cuda.is_available():
        return "PyTorch finds no GPU"
    reason = native.load(LIBRARY)
    if reason is None:
        _library().lwrn_fast_ask_for_tf32(_tf32)
    return reason


@cache
def _why_not_on(index: int) -> str | None:
    capability = torch.cuda.get_device_capability(index)
    if capability < MIN_CAPABILITY:
        dotted = [".".join(map(str, version)) for version in (capability, MIN_CAPABILITY)]
        return f"cuda:{index} has compute capability {dotted[0]}, the kernels need {dotted[1]}"
    ask = _library().lwrn_fast_why_not_on
    ask.restype = ctypes.c_char_p
    reason = ask(index)
    return f"cuda:{index}: {reason.decode()}" if reason else None


@cache
def _max_channels(index: int, float32: bool) -> int:
    ask = _library().lwrn_fast_crp_max_channels
    ask.restype = ctypes.c_int64
    return int(ask(index, ctypes.c_bool(float32)))


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(LIBRARY))


# The kernels call this at each run.
@ctypes.CFUNCTYPE(ctypes.c_bool)
def _tf32() -> bool:
    cudnn: Any = torch.backends.cudnn
    return cudnn.conv.fp32_precision == "tf32"


class Cuda(Backend):
    """CUDA C++: tensors on a GPU, float32, bfloat16 or float16, of any strides."""

    name = "cuda"
    unproven = "has not yet run on a GPU, and runs only when asked for by name"

    def missing(self) -> str | None:
        return missing()

    def unsupported(self, call: Call) -> str | None:
        x = call.tensors[0]
        reason = why_not_on(x.device) or no_kernel(call.tensors) or too_many(call, MAX_STAGES, MAX_INPUTS)
        if reason is None and call.op.name == "crp" and len(call.tensors) > 1 and call.tensors[1].shape[1] > 1:
            channels, limit = x.shape[1], max_channels(x.device, x.dtype)
            if channels > limit:
                return f"shared memory holds at most {limit} channels of {x.dtype}, not {channels}"
        return reason

    def run(self, call: Call) -> Any:
        return getattr(torch.ops.lwrn_fast, call.op.name)(*call.arguments)


# torch.compile cannot trace these; see log.py.
for _function in (missing, why_not_on, max_channels):
    _function._dynamo_marked_constant = True  # type: ignore[union-attr]
