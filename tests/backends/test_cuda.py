"""The ops on the CUDA kernels beyond the op tests: requirements, limits, precision and errors."""

import ctypes
import subprocess
import sys

import pytest
import torch

import lwrn_fast
from lwrn_fast import backends, reference
from lwrn_fast.backends import cuda as _cuda
from lwrn_fast.backends import native, selection
from lwrn_fast.ops.crp import OP as CRP
from lwrn_fast.profiling import machine
from support import emulated
from support.comparing import in_double

X, W = torch.randn(2, 4, 5, 6), torch.randn(4, 4, 1, 1)


@pytest.fixture
def cuda(request) -> str:
    """Select the backend "cuda", on a GPU or emulated on the CPU; return the type of its device."""
    if torch.cuda.is_available():
        if _cuda.missing() is not None:
            pytest.skip(_cuda.missing())
        with lwrn_fast.use_backend("cuda"), torch.device("cuda"):
            yield "cuda"
        return
    reason = native.missing() or emulated.why_not()
    if reason:
        pytest.skip(reason)
    with emulated.in_place_of_a_gpu(request.getfixturevalue("monkeypatch")), lwrn_fast.use_backend("cuda"):
        yield "cpu"


class TestMissing:
    @pytest.fixture(autouse=True)
    def _anew(self):
        _cuda._missing.cache_clear()
        yield
        _cuda._missing.cache_clear()

    def test_the_compiled_part(self, monkeypatch):
        monkeypatch.setattr(native, "missing", lambda: "nothing is compiled")
        assert _cuda.missing() == "nothing is compiled"

    @pytest.mark.usefixtures("native")
    def test_the_cuda_part(self, monkeypatch, tmp_path):
        monkeypatch.setattr(_cuda, "LIBRARY", tmp_path / "_ops_cuda.so")
        assert _cuda.missing() == "_ops_cuda.so is not in this installation, which was built without CUDA"

    @pytest.mark.usefixtures("native")
    def test_a_torch_with_cuda_a_gpu_and_a_library_that_loads(self, monkeypatch, tmp_path):
        broken = tmp_path / "_ops_cuda.so"
        broken.write_text("no library")
        monkeypatch.setattr(_cuda, "LIBRARY", broken)
        reasons = []
        for version, gpus in ((None, False), ("13.0", False), ("13.0", True)):
            monkeypatch.setattr(torch.version, "cuda", version)
            monkeypatch.setattr(torch.cuda, "is_available", lambda gpus=gpus: gpus)
            _cuda._missing.cache_clear()
            reasons.append(_cuda.missing())
        assert reasons[0] == f"this is torch {torch.__version__}, which has no CUDA"
        assert reasons[1] == "PyTorch finds no GPU"
        assert reasons[2].startswith("_ops_cuda.so does not load: ")

    def test_is_not_looked_for_on_import(self):
        code = "import sys, lwrn_fast; from lwrn_fast.backends import cuda; print(cuda._missing.cache_info().currsize)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "0\n"


def test_an_old_gpu(monkeypatch):
    monkeypatch.setattr(_cuda, "_missing", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    _cuda._why_not_on.cache_clear()
    reason = _cuda.why_not_on(torch.device("cuda", 0))
    _cuda._why_not_on.cache_clear()
    assert reason == "cuda:0 has compute capability 7.5, the kernels need 8.0"
    assert _cuda.why_not_on(torch.device("cpu")) == "the tensors are on cpu"


def test_limits(cuda):
    x, weight, bias = X.to(cuda), W.to(cuda), torch.zeros(4)
    assert lwrn_fast.explain("crp", x, [weight] * 64)["cuda"] == "ready"
    assert lwrn_fast.explain("crp", x, [weight] * 65)["cuda"] == "it runs at most 64 stages, not 65"
    assert lwrn_fast.explain("fusion", [x] * 16, [weight] * 16, [bias] * 16)["cuda"] == "ready"
    assert lwrn_fast.explain("fusion", [x] * 17, [weight] * 17)["cuda"] == "it takes at most 16 inputs, not 17"
    lwrn_fast.crp(x, [weight / 9] * 64)
    lwrn_fast.fusion([x] * 16, [weight] * 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_that_shared_memory_does_not_hold(cuda, dtype):
    limit = _cuda.max_channels(torch.device(cuda), dtype)
    assert limit >= 512
    for channels in (limit, limit + 1):
        x, weight = torch.ones(1, channels, 1, 1, dtype=dtype), torch.ones(channels, channels, 1, 1, dtype=dtype)
        reason = lwrn_fast.explain("crp", x, [weight])["cuda"]
        if channels > limit:
            assert reason == f"shared memory holds at most {limit} channels of {dtype}, not {channels}"
            with pytest.raises(RuntimeError, match="crp: more channels or pixels than the kernels take on this device"):
                torch.ops.lwrn_fast.crp(x, [weight], [], 1)
            assert lwrn_fast.explain("crp", x, [weight[:, :1]], groups=channels)["cuda"] == "ready"
        else:
            assert reason == "ready"
            assert torch.equal(lwrn_fast.crp(x, [weight]), (x * (channels + 1)).to(dtype))


def test_errors_name_the_argument(cuda):
    x, weight, ops = X.to(cuda), W.to(cuda), torch.ops.lwrn_fast
    with pytest.raises(RuntimeError, match=r"crp: weights\[0\] must be \(4, 4, 1, 1\), got \(4, 3, 1, 1\)"):
        ops.crp(x, [weight[:, :3]], [], 1)
    with pytest.raises(RuntimeError, match=r"crp: biases\[0\] must have the dtype of x"):
        ops.crp(x, [weight], [torch.zeros(4, dtype=torch.bfloat16)], 1)
    with pytest.raises(RuntimeError, match="fusion: inputs must be 1 to 16 tensors, got 17"):
        ops.fusion([x] * 17, [weight] * 17, [], "relu", True)
    with pytest.raises(RuntimeError, match="upsample_argmax: size must be at least"):
        ops.upsample_argmax(x, 0, 3, True)


@pytest.fixture
def asked(cuda):
    """Let kernels on the CPU follow PyTorch's setting. Elsewhere they ignore it: the op tests of float32 are exact."""
    if cuda == "cuda":
        yield
        return
    library = ctypes.CDLL(str(emulated.library()))
    library.lwrn_fast_ask_for_tf32(_cuda._tf32)
    yield
    library.lwrn_fast_ask_for_tf32(None)


@pytest.mark.usefixtures("asked")
def test_float32_is_multiplied_as_pytorch_is_told():
    """TF32 where PyTorch allows it, else exact. Each call reads the setting, that of a compiled function too."""
    x, weights = torch.randn(1, 32, 6, 7), [torch.randn(32, 32, 1, 1) for _ in range(2)]
    compiled = torch.compile(lwrn_fast.crp, backend="aot_eager", fullgraph=True)
    exact = reference.crp(*in_double([x, weights]))
    errors = {}
    for precision in ("ieee", "tf32", "ieee"):
        with machine.float32_precision(precision):
            got = lwrn_fast.crp(x, weights)
            assert torch.equal(compiled(x, weights), got)
        errors[precision] = float((got - exact).abs().max() / exact.abs().max())
    assert errors["ieee"] < 2e-6
    assert 1e-5 < errors["tf32"] < 1e-2


def test_auto_leaves_it_alone_until_it_has_run_on_a_gpu(cuda, monkeypatch):
    """Delete this test, with `Cuda.unproven`, once bench/gpu/gpu_check.sh has passed."""
    monkeypatch.setitem(selection._ORDER, "cpu", (_cuda.Cuda(),))
    with lwrn_fast.use_backend("auto"):
        assert backends.select(backends.Call(CRP, [X.to(cuda), W.to(cuda)])) is backends.REFERENCE
