"""The CUDA kernels on the CPU, over the machine in emulator/, for machines without a GPU: the backend "cuda" then runs
them on tensors of the CPU."""

import ctypes
import fcntl
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

from lwrn_fast.backends import cuda
from lwrn_fast.ops import OPS
from lwrn_fast.ops.registration import DEFINITIONS
from support.compiling import TESTS, missing, run

FOLDER = TESTS.parent / "build" / "emulator"


def why_not() -> str | None:
    """Return why the kernels cannot be built here; None where they can."""
    return missing("g++")


@contextmanager
def in_place_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the ops on the CPU by these kernels, instead of the CPU's own, within the context."""
    library()
    monkeypatch.setattr(cuda, "missing", _ready)
    monkeypatch.setattr(cuda, "why_not_on", _why_not_on)
    monkeypatch.setattr(cuda, "_index", lambda device: 0)
    monkeypatch.setattr(cuda, "_library", lambda: ctypes.CDLL(str(library())))
    override = torch.library.Library("lwrn_fast", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the existing kernel
        for op in (name for name, op in OPS.items() if "cuda" in op.kernels):
            override.impl(op, getattr(torch.ops.lwrn_fast_emulated, op).default, "CPU", allow_override=True)
    try:
        yield
    finally:
        override._destroy()


@cache
def library() -> Path:
    """Load the library with `torch.ops.lwrn_fast_emulated` and return its path. One process at a time builds it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(sys.executable, TESTS / "emulator" / "build.py", FOLDER, "ops.so")
    for definition in DEFINITIONS:
        _schemas.define(definition.schema)
    torch.ops.load_library(str(FOLDER / "ops.so"))
    return FOLDER / "ops.so"


_schemas = torch.library.Library("lwrn_fast_emulated", "DEF")


def _ready() -> None:
    return None


def _why_not_on(device: torch.device) -> str | None:
    return None if device.type == "cpu" else f"the tensors are on {device}"


# torch.compile treats these as constants, like the functions that they replace.
for _function in (_ready, _why_not_on):
    _function._dynamo_marked_constant = True  # type: ignore[attr-defined]
