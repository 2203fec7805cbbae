"""The choice of the backend that runs a call, the messages about it, and info()."""

import logging
import os
import subprocess
import sys
import threading

import pytest
import torch

import lwrn_fast
from lwrn_fast import backends, log
from lwrn_fast.backends import Call, native, selection
from lwrn_fast.ops.crp import OP as CRP

X = torch.randn(1, 4, 5, 6)
W = torch.randn(4, 4, 1, 1)


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    monkeypatch.setattr(log, "_said", set())


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    variables = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, check=False)


class TestUseBackend:
    def test_sets_at_once_and_restores_at_the_end(self):
        before = backends.requested()
        with lwrn_fast.use_backend("reference"):
            assert backends.requested() == "reference"
            with lwrn_fast.use_backend("auto"):
                assert backends.requested() == "auto"
            assert backends.requested() == "reference"
        assert backends.requested() == before

    def test_is_a_setter(self):
        setting = lwrn_fast.use_backend("reference")
        assert backends.requested() == "reference"
        with setting:
            assert backends.requested() == "reference"
        assert backends.requested() == "auto"

    def test_may_be_entered_again(self):
        setting = lwrn_fast.use_backend("reference")
        for _ in range(2):
            with setting:
                assert backends.requested() == "reference"
            assert backends.requested() == "auto"

    def test_restores_after_an_error(self):
        with pytest.raises(KeyError), lwrn_fast.use_backend("reference"):
            raise KeyError
        assert backends.requested() == "auto"

    def test_unknown_name(self):
        with pytest.raises(
            ValueError, match="use_backend: name must be one of auto, reference, cpu, triton, cuda, got 'gpu'"
        ):
            lwrn_fast.use_backend("gpu")

    def test_the_main_thread_sets_it_for_all_and_another_thread_for_itself(self):
        seen = {}

        def other():
            seen["before"] = backends.requested()
            with lwrn_fast.use_backend("cpu"):
                seen["inside"] = backends.requested()
                inside.set()
                finish.wait(10)
            seen["after"] = backends.requested()

        inside, finish = threading.Event(), threading.Event()
        with lwrn_fast.use_backend("reference"):
            thread = threading.Thread(target=other)
            thread.start()
            assert inside.wait(10)
            assert backends.requested() == "reference"
            finish.set()
            thread.join()
        assert seen == {"before": "reference", "inside": "cpu", "after": "reference"}


class TestEnvironment:
    def test_names_the_backend_until_another_is_set(self):
        code = "import lwrn_fast as l; print(l.info()['backend']); l.use_backend('cpu'); print(l.info()['backend'])"
        assert run_python(code, LWRN_FAST_BACKEND="reference").stdout == "reference\ncpu\n"

    def test_unknown_name(self, monkeypatch):
        monkeypatch.setattr(selection, "ENVIRONMENT", "gpu")
        with pytest.raises(
            ValueError, match="LWRN_FAST_BACKEND must be one of auto, reference, cpu, triton, cuda, got 'gpu'"
        ):
            lwrn_fast.crp(X, [W])

    @pytest.mark.usefixtures("native")
    def test_an_instruction_set_that_cannot_run(self, monkeypatch):
        monkeypatch.setenv("LWRN_FAST_CPU_ISA", "mmx")
        valid = ", ".join(native.extension().cpu_isas())
        with pytest.raises(RuntimeError, match=f"LWRN_FAST_CPU_ISA: .*{valid}, .*got 'mmx'"):
            lwrn_fast.crp(X, [W])
        assert "got 'mmx'" in lwrn_fast.info()["cpu_isa"]


class TestSelect:
    @pytest.mark.parametrize("name", ["cpu", "triton", "cuda"])
    def test_a_named_backend_that_cannot_run_raises(self, name):
        with (
            lwrn_fast.use_backend(name),
            pytest.raises(RuntimeError, match=f"crp: the backend '{name}' cannot run this call: "),
        ):
            lwrn_fast.crp(X.double(), [W.double()])

    def test_the_fall_back_is_said_once_per_reason(self, caplog):
        with caplog.at_level(logging.WARNING, "lwrn_fast"):
            for _ in range(3):
                lwrn_fast.crp(X.double(), [W.double()])
            assert len(caplog.records) == 1
            lwrn_fast.upsample_argmax(X.double(), 8)
            assert len(caplog.records) == 2
        assert caplog.records[0].name == "lwrn_fast"
        assert caplog.records[0].message.startswith("crp runs on the reference backend, plain PyTorch (cpu: ")

    @pytest.mark.usefixtures("native")
    def test_nothing_is_said_where_the_fastest_runs(self, caplog):
        lwrn_fast.crp(X, [W])
        with lwrn_fast.use_backend("reference"):
            lwrn_fast.crp(X, [W])
        assert not caplog.records

    @pytest.mark.usefixtures("native")
    def test_auto_takes_the_kernels(self):
        assert backends.select(Call(CRP, [X, W])).name == "cpu"

    def test_the_meta_device(self):
        assert lwrn_fast.crp(X.to("meta"), [W.to("meta")]).shape == X.shape

    def test_sparse_tensors_are_no_input_of_the_kernels(self):
        assert native.Native().unsupported(Call(CRP, [X.to_sparse(), W]))


class TestExplain:
    def test_every_backend_answers(self):
        answers = lwrn_fast.explain("crp", X.double(), [W.double()])
        assert list(answers) == ["reference", "cpu", "triton", "cuda"]
        assert answers["reference"] == "ready"
        assert all(answer and answer != "ready" for name, answer in answers.items() if name != "reference")

    @pytest.mark.usefixtures("native")
    @pytest.mark.parametrize(
        ("op", "arguments"),
        [("crp", (X, [W])), ("fusion", ([X, X], [W, W])), ("upsample_argmax", (X, (7, 8)))],
        ids=["crp", "fusion", "upsample_argmax"],
    )
    def test_the_cpu_is_ready(self, op, arguments):
        assert lwrn_fast.explain(op, *arguments)["cpu"] == "ready"

    def test_wrong_arguments_raise_as_in_the_call(self):
        with pytest.raises(ValueError, match="crp: groups must be 1 or"):
            lwrn_fast.explain("crp", X, [W], groups=3)

    def test_unknown_op(self):
        with pytest.raises(ValueError, match="explain: op must be one of crp, .*, normalise, got 'pool'"):
            lwrn_fast.explain("pool", X)


class TestInfo:
    def test_as_a_dictionary(self):
        info = lwrn_fast.info()
        assert info["version"] == lwrn_fast.__version__
        assert info["torch"] == torch.__version__
        assert info["backends"]["reference"] == "ready"
        assert (info["backends"]["cpu"] == "ready") == (native.missing() is None)

    def test_as_a_table(self):
        lines = str(lwrn_fast.info()).splitlines()
        assert any(line.split() == ["version", lwrn_fast.__version__] for line in lines)
        assert any(line.startswith("backends.triton ") for line in lines)

    @pytest.mark.usefixtures("native")
    def test_the_build(self):
        build = lwrn_fast.info()["native"]
        assert "portable" in build["instruction_sets"]
        assert build["version"] == lwrn_fast.__version__


def test_without_the_compiled_part(tmp_path):
    """The same Python files without the shared objects work through the reference."""
    source = os.path.dirname(lwrn_fast.__file__)
    package = tmp_path / "lwrn_fast"
    package.mkdir()
    for name in os.listdir(source):
        if not name.endswith(".so"):
            (package / name).symlink_to(os.path.join(source, name))
    code = (
        "import torch, lwrn_fast; x = torch.rand(1, 4, 5, 6, requires_grad=True); w = [torch.rand(4, 4, 1, 1)]\n"
        "lwrn_fast.crp(x, w).sum().backward(); print(lwrn_fast.info()['backends']['cpu'])\n"
        "torch.ops.lwrn_fast.crp(x, w, [], 1).sum().backward(); print(lwrn_fast.upsample_argmax(x, 9).shape)"
    )
    run = run_python(code, PYTHONPATH=str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert "the compiled part, _ops.so, is not in this installation" in run.stdout
    assert "crp runs on the reference backend" in run.stderr
