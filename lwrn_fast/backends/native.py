"""The C++ engine, backend "cpu". The compiled part is loaded once; where that fails, the reason is kept."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .base import Backend, Call, no_kernel

# Version of the oldest torch that has the stable ABI of the compiled part.
MIN_TORCH = (2, 10)
OPS = Path(__file__).parents[1] / "_ops.so"


@cache
def missing() -> str | None:
    """Load the C++ operators into ``torch.ops.lwrn_fast``; return why they are absent, in one line, or ``None``.

    >>> from lwrn_fast.backends import native
    >>> native.missing() is None or "\\n" not in native.missing()
    True
    """
    if not OPS.exists():
        return f"the compiled part, {OPS.name}, is not in this installation, which is pure Python or not built yet"
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < MIN_TORCH:
        return f"the compiled part needs torch >= 2.10, and this is torch {torch.__version__}"
    return load(OPS)


def load(library: Path) -> str | None:
    """Load a library of operators; return why it does not load, None where it does."""
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        return f"{library.name} does not load: {_first_line(error)}"
    return None


@cache
def extension() -> ModuleType | None:
    """Return ``lwrn_fast._C`` (``build_info()``, ``cpu_isa()``, ``cpu_isas()``); ``None`` where it is absent."""
    try:
        return importlib.import_module("lwrn_fast._C")
    except ImportError:
        return None


def _first_line(error: BaseException) -> str:
    # torch wraps the loader's own message, which names the reason.
    cause = error.__cause__ or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


MISSING = missing()


class Native(Backend):
    """The C++ engine: tensors on the CPU, float32, bfloat16 or float16, of any strides."""

    name = "cpu"

    def missing(self) -> str | None:
        return MISSING

    def unsupported(self, call: Call) -> str | None:
        if MISSING is not None:
            return MISSING
        device = call.tensors[0].device
        return no_kernel(call.tensors) if device.type == "cpu" else f"the tensors are on {device}"

    def run(self, call: Call) -> Any:
        if call.op.keeps_stages and call.trains():
            out, _ = getattr(torch.ops.lwrn_fast, f"{call.op.name}_training")(*call.arguments)
            return out
        return getattr(torch.ops.lwrn_fast, call.op.name)(*call.arguments)
