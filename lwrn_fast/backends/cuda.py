"""Whether the CUDA kernels can run. Once loaded, `torch.ops.lwrn_fast.crp` and so on run them on CUDA tensors."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch

from . import native

LIBRARY = Path(__file__).parents[1] / "_ops_cuda.so"
MINIMUM_CAPABILITY = (8, 0)
MOST_STAGES = 64
MOST_INPUTS = 16


def missing() -> str | None:
    """Load the kernels where this PyTorch has a GPU. None where some device can run them, else why not, in one line.

    >>> from lwrn_fast.backends import cuda
    >>> cuda.missing() is None or "\\n" not in cuda.missing()
    True
    """
    return _missing()


def why_not_on(device: torch.device) -> str | None:
    """Why the kernels cannot run on this device, None where they can."""
    if missing() is not None:
        return missing()
    if device.type != "cuda":
        return f"the tensors are on {device}"
    return _why_not_on(_index(device))


def most_planes(device: torch.device, dtype: torch.dtype) -> int:
    """How many planes of a crp that is not depthwise fit into the device's shared memory."""
    return _most_planes(_index(device), dtype == torch.float32)


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
    if capability < MINIMUM_CAPABILITY:
        dotted = [".".join(map(str, version)) for version in (capability, MINIMUM_CAPABILITY)]
        return f"cuda:{index} has compute capability {dotted[0]}, the kernels need {dotted[1]}"
    ask = _library().lwrn_fast_why_not_on
    ask.restype = ctypes.c_char_p
    reason = ask(index)
    return f"cuda:{index}: {reason.decode()}" if reason else None


@cache
def _most_planes(index: int, float32: bool) -> int:
    ask = _library().lwrn_fast_crp_most_planes
    ask.restype = ctypes.c_int64
    return int(ask(index, ctypes.c_bool(float32)))


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(LIBRARY))


# Asked by the kernels, at each call.
@ctypes.CFUNCTYPE(ctypes.c_bool)
def _tf32() -> bool:
    cudnn: Any = torch.backends.cudnn
    return cudnn.conv.fp32_precision == "tf32"


# torch.compile cannot trace these; see the end of backends.py.
for _function in (missing, why_not_on, most_planes):
    _function._dynamo_marked_constant = True  # type: ignore[union-attr]
