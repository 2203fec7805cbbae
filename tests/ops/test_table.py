"""The table of ops: each is complete, and CONTRIBUTING.md lists the files of one."""

import importlib.util
import re

import pytest
import torch

import lwrn_fast
from lwrn_fast.backends import Op, native
from lwrn_fast.ops import OPS
from support import glossary
from support.entrances import BY_NAME
from support.glossary import ROOT

# Files of an op by the backend whose kernel they hold.
FILES = {
    "cpu": ("csrc/{}.h", "csrc/{}_call.h", "csrc/cpu/{}.cpp"),
    "triton": ("kernels/{}.py",),
    "cuda": ("csrc/cuda/{}.cuh", "csrc/cuda/{}.cu"),
}
# Where the files of an op lie; other files that name it call it.
FOLDERS = ("csrc/", "kernels/", "lwrn_fast/ops/", "tests/native/", "tests/emulator/")
FILES_OF_ALL = ("lwrn_fast/__init__.py", "tests/support/entrances/__init__.py", "tests/support/guard_pages.py")


def lacks(op: Op) -> list[str]:
    """Return what an op does not have and must have."""
    missing = [file.format(op.name) for backend in op.kernels for file in FILES[backend]]
    missing = [file for file in [*missing, f"tests/ops/test_{op.name}.py"] if not (ROOT / file).exists()]
    if not hasattr(lwrn_fast, op.name):
        missing.append(f"lwrn_fast.{op.name}")
    if not hasattr(lwrn_fast.reference, op.name):
        missing.append(f"lwrn_fast.reference.{op.name}")
    if op.name not in BY_NAME:
        missing.append(f"a row in tests/support/entrances for {op.name}")
    if "cpu" in op.kernels and native.missing() is None and not has_kernel(op.name, "CPU"):
        missing.append(f"an implementation in csrc/ops.cpp for {op.name}")
    if "triton" in op.kernels and importlib.util.find_spec("triton") is not None and not has_launch(op.name):
        missing.append(f"prepare() in kernels/{op.name}.py")
    return missing


def has_kernel(name: str, key: str) -> bool:
    known = hasattr(torch.ops.lwrn_fast, name)
    return known and torch._C._dispatch_has_kernel_for_dispatch_key(f"lwrn_fast::{name}", key)


def has_launch(name: str) -> bool:
    if importlib.util.find_spec(f"lwrn_fast.kernels.{name}") is None:
        return False
    return hasattr(importlib.import_module(f"lwrn_fast.kernels.{name}"), "prepare")


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_ops_are_complete(op):
    assert lacks(op) == []


def test_a_new_op_is_told_what_it_lacks():
    op = Op("unpool", lambda *_: [], lambda x: x, kernels=("cpu",))
    assert lacks(op)[:3] == ["csrc/unpool.h", "csrc/unpool_call.h", "csrc/cpu/unpool.cpp"]
    assert "kernels/unpool.py" not in lacks(op)
    assert {"tests/ops/test_unpool.py", "lwrn_fast.unpool", "lwrn_fast.reference.unpool"} <= set(lacks(op))
    assert any("ops.cpp" in entry for entry in lacks(op)) or native.missing() is not None


@pytest.mark.skipif(not glossary.tracked(), reason="not a git checkout: there is no list of the sources")
def test_contributing_lists_the_files_of_an_op():
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    section = page.partition("## To add an op\n")[2].partition("\n## ")[0]
    rows = "\n".join(line.split("|")[1] for line in section.splitlines() if line.startswith("|"))
    listed = {file.replace("<op>", "normalise") for file in re.findall(r"`([\w/<>.]+\.\w+)`", rows)}
    mention = [
        file
        for file in glossary.tracked()
        if (file.startswith(FOLDERS) or file in FILES_OF_ALL) and "normalise" in (ROOT / file).read_text("utf-8")
    ]
    assert listed == {*mention, "tests/ops/test_normalise.py"}
