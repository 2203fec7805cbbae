"""The compiled part of the package under test: its build information, instruction sets, and why it does not load."""

import re

import pytest
import torch

from lwrn_fast import _version
from lwrn_fast.backends import native


@pytest.mark.usefixtures("native")
def test_build_info():
    info = native.extension().build_info()
    assert info["version"] == _version.__version__
    assert info["instruction_sets"][-1] == "portable"
    assert re.match(r"nvcc \d+\.\d+$" if info["cuda_architectures"] else "none: ", info["cuda"])
    assert native.OPS.with_name("_ops_cuda.so").exists() == bool(info["cuda_architectures"])
    assert info["torch"] == torch.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", info["pybind11"])
    assert info["compiler"]


@pytest.mark.usefixtures("native")
def test_forced_instruction_set_is_read_at_every_call(monkeypatch):
    extension = native.extension()
    for name in extension.cpu_isas():
        monkeypatch.setenv("LWRN_FAST_CPU_ISA", name)
        assert extension.cpu_isa() == name
    monkeypatch.delenv("LWRN_FAST_CPU_ISA")
    assert extension.cpu_isa() == extension.cpu_isas()[0]
    monkeypatch.setenv("LWRN_FAST_CPU_ISA", "sse9")
    with pytest.raises(RuntimeError, match=f"{', '.join(extension.cpu_isas())}, got 'sse9'"):
        extension.cpu_isa()


def test_reason_where_the_ops_do_not_load(monkeypatch, tmp_path):
    reason = native.missing.__wrapped__
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    assert "this is torch 2.9.1" in reason()
    monkeypatch.undo()
    broken = tmp_path / "_ops.so"
    monkeypatch.setattr(native, "OPS", broken)
    assert "is not in this installation" in reason()
    broken.write_text("no library")
    assert reason().startswith("_ops.so does not load: ")
    assert "\n" not in reason()
