"""Exported files compute the same as their models, with operations in place and all types of results."""

import collections
import copy
import dataclasses
import logging
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lwrn_fast
from lwrn_fast import backends, export, models
from lwrn_fast.models import outputs
from support.exporting import Net, needs_compiler, residual, run_onnx

X, OTHER = torch.randn(1, 3, 12, 10), torch.randn(2, 3, 7, 15)


@pytest.fixture(autouse=True)
def _needed(tmp_path_factory, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "inductor"))


class Pair(NamedTuple):
    aux: Tensor
    logits: Tensor


@dataclasses.dataclass
class Output:
    out: Tensor
    hidden: tuple[Tensor, ...]
    loss: Tensor | None = None


class ModelOutput(collections.OrderedDict):
    """A result as of the package transformers, registered as a pytree or not."""


def on_the_input(net: Net, x: Tensor) -> Tensor:
    return net.first(F.relu_(x)) + x.sum(1, keepdim=True)


def add_to_an_alias(net: Net, x: Tensor) -> Tensor:
    y = net.first(x)
    z = y
    y += 1
    return z * y


def write_a_slice(net: Net, x: Tensor) -> Tensor:
    y = net.first(x)
    y[:, :2].mul_(0.5)
    y[:, 2] = 1
    return net.second(y) + y


def write_the_input(net: Net, x: Tensor) -> Tensor:
    x.mul_(2)
    x[:, 0] = 0
    return net.first(x)


IN_PLACE = [
    pytest.param(residual(nn.ReLU(inplace=True)), id="relu"),
    pytest.param(residual(F.relu_), id="relu_"),
    pytest.param(residual(nn.Hardswish(inplace=True)), id="hardswish"),
    pytest.param(residual(lambda y: nn.Dropout(0.5, inplace=True).eval()(y).add_(1)), id="dropout"),
    pytest.param(residual(lambda y: F.leaky_relu(y, 0.1, inplace=True)), id="leaky"),
    pytest.param(Net(on_the_input), id="on_the_input"),
    pytest.param(Net(add_to_an_alias), id="alias"),
    pytest.param(Net(write_a_slice), id="slice"),
    pytest.param(Net(write_the_input), id="write_the_input"),
]


def returning(function: Callable[[Tensor, Tensor], Any]) -> Net:
    return Net(lambda net, x: function(net.first(x), x))


RESULTS = [
    pytest.param(returning(lambda y, x: (y, -y)), ["output0", "output1"], id="tuple"),
    pytest.param(returning(lambda y, x: [y]), ["output0"], id="list_of_one"),
    pytest.param(returning(lambda y, x: {"out": y, "aux": 2 * y}), ["out", "aux"], id="dict"),
    pytest.param(returning(lambda y, x: ModelOutput(loss=None, logits=y, n=3)), ["logits"], id="model_output"),
    pytest.param(returning(lambda y, x: Pair(y + 1, y)), ["aux", "logits"], id="named_tuple"),
    pytest.param(returning(lambda y, x: Output(y, (y + 1, 2 * y))), ["out", "hidden_0", "hidden_1"], id="dataclass"),
    pytest.param(returning(lambda y, x: ({"a": [y]}, None, x.shape[2], y + 1)), ["output0_a_0", "output3"], id="nest"),
    pytest.param(returning(lambda y, x: {"out": y, "last": y}), ["out", "last"], id="twice"),
    pytest.param(returning(lambda y, x: {"input": y, "first.weight": x}), ["input_out", "first.weight"], id="names"),
    pytest.param(returning(lambda y, x: (y.argmax(1), y > 0)), ["output0", "output1"], id="of_other_dtypes"),
]


def check_file(path, net: nn.Module, *inputs: Tensor) -> None:
    for x in inputs:
        before = x.clone()
        assert export.compare(path, net, x) < 1e-5
        assert torch.equal(x, before)


class TestOnnx:
    @pytest.mark.slow
    @pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
    @pytest.mark.parametrize("net", IN_PLACE)
    def test_in_place(self, net, dynamic, tmp_path):
        state = copy.deepcopy(net)
        export.to_onnx(net, X, tmp_path / "net.onnx", dynamic=dynamic)
        check_file(tmp_path / "net.onnx", net, *([X, OTHER] if dynamic else [X]))
        for module, before in zip(net.modules(), state.modules(), strict=True):  # all attributes are as before
            assert getattr(module, "inplace", None) == getattr(before, "inplace", None)
            assert vars(module).keys() == vars(before).keys()
            assert module.training == before.training
        for parameter in net.parameters():
            assert parameter.requires_grad
            assert parameter.grad is None

    @pytest.mark.parametrize(("net", "names"), RESULTS)
    def test_results(self, net, names, tmp_path):
        import onnx

        export.to_onnx(net, X, tmp_path / "net.onnx", dynamic=True)
        program = onnx.load(tmp_path / "net.onnx")
        onnx.checker.check_model(program, full_check=True)
        assert [value.name for value in program.graph.output] == names
        check_file(tmp_path / "net.onnx", net, X, OTHER)


@needs_compiler
class TestAoti:
    @pytest.mark.slow
    def test_in_place(self, tmp_path):
        """Export all ways in one package, because each package takes a compiler some seconds."""
        nets = [parameters.values[0] for parameters in IN_PLACE]
        everything = nn.ModuleList(nets).eval()

        class All(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.nets = everything

            def forward(self, x: Tensor) -> list[Tensor]:
                return [net(x) for net in self.nets]

        net = All().eval()
        export.to_aoti(net, X, tmp_path / "net.pt2", dynamic=True)
        check_file(tmp_path / "net.pt2", net, X, OTHER)

    @pytest.mark.slow
    def test_results(self, tmp_path):
        net = returning(lambda y, x: {"out": y, "hidden": [(y + 1, None), ModelOutput(last=y)], "n": x.shape[2]})
        export.to_aoti(net, X, tmp_path / "net.pt2", dynamic=True)
        check_file(tmp_path / "net.pt2", net, X, OTHER)
        results = torch._inductor.aoti_load_package(str(tmp_path / "net.pt2"))(X)
        assert list(results) == ["out", "hidden"]
        assert [type(item) for item in results["hidden"]] == [tuple, dict]

    def test_float64(self, tmp_path):
        net = copy.deepcopy(residual(F.relu_)).double()
        export.to_aoti(net, X.double(), tmp_path / "net.pt2")
        assert export.compare(tmp_path / "net.pt2", net, X.double()) < 1e-14


class TestLabels:
    @pytest.mark.parametrize(
        "function",
        [
            pytest.param(lambda y, x: {"aux": -y, "out": y}, id="torchvision"),
            pytest.param(lambda y, x: (y, -y), id="tuple"),
            pytest.param(lambda y, x: ModelOutput(loss=None, logits=y), id="model_output"),
        ],
    )
    def test_of_several_results(self, function, tmp_path):
        net = returning(function)
        export.to_onnx(net, X, tmp_path / "net.onnx", dynamic=True, labels=True)
        for x in (X, OTHER):
            assert export.compare(tmp_path / "net.onnx", net, x, labels=True) < 0.01
            with torch.no_grad():
                expected = lwrn_fast.upsample_argmax(outputs.logits(net(x)), x.shape[2:])
            assert (run_onnx(tmp_path / "net.onnx", x) != expected).float().mean() < 0.01

    def test_says_which_result(self, tmp_path):
        net = returning(lambda y, x: {"depth": y, "normals": y + 1})
        with pytest.raises(
            TypeError, match=r'to_onnx: .*with "out" or "logits", got a dict of .\'depth\', \'normals\''
        ):
            export.to_onnx(net, X, tmp_path / "net.onnx", labels=True)
        assert list(tmp_path.iterdir()) == []


class TestCompare:
    def test_with_the_untouched_model(self, tmp_path):
        """A file of a model that differs only by an operation in place is recognised."""
        net, other = residual(nn.ReLU(inplace=True)), residual(nn.ReLU())
        other.load_state_dict(net.state_dict())
        export.to_onnx(other, X, tmp_path / "net.onnx")
        assert export.compare(tmp_path / "net.onnx", other, X) < 1e-5
        assert export.compare(tmp_path / "net.onnx", net, X) > 1e-2

    def test_looks_at_every_result(self, tmp_path):
        net = returning(lambda y, x: (y, 2 * y))
        export.to_onnx(net, X, tmp_path / "net.onnx")
        for function in (lambda y, x: (y, 2.1 * y), lambda y, x: (1.1 * y, 2 * y)):
            net.function = returning(function).function
            assert export.compare(tmp_path / "net.onnx", net, X) > 1e-2
        for function in (lambda y, x: y, lambda y, x: (y, 2 * y[:, :1])):
            net.function = returning(function).function
            assert export.compare(tmp_path / "net.onnx", net, X) == float("inf")

    def test_needs_eval_mode(self, tmp_path):
        net = copy.deepcopy(residual(F.relu))
        export.to_onnx(net, X, tmp_path / "net.onnx")
        with pytest.raises(ValueError, match="compare: model must be in eval mode"):
            export.compare(tmp_path / "net.onnx", net.train(), X)

    def test_infinities(self):
        inf = float("inf")
        assert export._difference(torch.tensor([1.0, inf]), torch.tensor([1.0, inf])) == 0
        assert export._difference(torch.tensor([2.0, inf]), torch.tensor([1.0, inf])) == 1
        assert export._difference(torch.tensor([1.0, inf]), torch.tensor([1.0, -inf])) == inf


def with_weight_norm(old: bool) -> nn.Module:
    net = copy.deepcopy(residual(F.relu_))
    apply: Any = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        apply(net.first)
    return net


def compiled(inside: bool, in_place: bool = False) -> nn.Module:
    net = copy.deepcopy(residual(F.relu_))
    if in_place:
        net.compile(backend="eager")
        return net
    if inside:
        net.first = torch.compile(net.first, backend="eager")
        return net
    return torch.compile(net, backend="eager").eval()


def accelerated() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(5, 1, 2), nn.MaxPool2d(5, 1, 2)).eval()
    assert lwrn_fast.accelerate(net)
    return net


def late_child() -> nn.Module:
    net = copy.deepcopy(residual(F.relu_))
    net.first = nn.Conv2d(3, 8, 3, padding=1)  # in training mode, which does not change a convolution
    return net


def of_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return copy.deepcopy(residual(F.relu_)).requires_grad_(False).apply(lambda module: module)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: with_weight_norm(old=False), id="weight_norm"),
        pytest.param(lambda: with_weight_norm(old=True), id="old_weight_norm"),
        pytest.param(lambda: compiled(inside=False), id="compiled"),
        pytest.param(lambda: compiled(inside=True), id="compiled_child"),
        pytest.param(lambda: compiled(inside=False, in_place=True), id="compiled_in_place"),
        pytest.param(lambda: residual(F.relu_).to(memory_format=torch.channels_last), id="channels_last"),
        pytest.param(accelerated, id="accelerated"),
        pytest.param(late_child, id="late_child"),
        pytest.param(of_inference_mode, id="inference_mode"),
    ],
)
def test_models_as_people_have_them(make, tmp_path):
    net = make()
    export.to_onnx(net, X, tmp_path / "net.onnx")
    check_file(tmp_path / "net.onnx", net, X)


@pytest.mark.parametrize("inside", ["default_dtype", "inference_mode"])
def test_whatever_is_set_around_it(inside, tmp_path):
    net = residual(F.relu_)
    with torch.inference_mode(inside == "inference_mode"):
        if inside == "default_dtype":
            torch.set_default_dtype(torch.float64)
        try:
            export.to_onnx(net, X, tmp_path / "net.onnx", labels=True)
        finally:
            torch.set_default_dtype(torch.float32)
    assert export.compare(tmp_path / "net.onnx", net, X, labels=True) < 0.01


def test_several_models_and_threads(tmp_path):
    """Each file is that of its model, exports take turns, and other threads keep their backend meanwhile."""
    nets, errors = [copy.deepcopy(residual(F.relu_)) for _ in range(4)], []
    for i, net in enumerate(nets):
        nn.init.constant_(net.second.bias, float(i))
    usual = backends.requested()

    def work(i: int) -> None:
        try:
            export.to_onnx(nets[i], X, tmp_path / f"{i}.onnx")
            assert backends.requested() == usual
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    export.to_onnx(nets[3], X, tmp_path / "3.onnx")
    for thread in threads:
        thread.join()
    assert not errors
    for i, net in enumerate(nets):
        check_file(tmp_path / f"{i}.onnx", net, X)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x + 1
        self.calls += 1
        return self.seen * self.calls


def test_attributes_and_buffers_that_a_model_keeps(tmp_path, caplog):
    """A file has no memory, which a warning tells, and the capture leaves nothing in the model."""
    net = Counting().eval()
    with caplog.at_level(logging.WARNING, "lwrn_fast"):
        export.to_onnx(net, X, tmp_path / "net.onnx")
    assert "to_onnx: the model changes calls; each call of the file begins with the present value" in caplog.text
    assert not hasattr(net, "seen")
    assert net.calls == 1
    check_file(tmp_path / "net.onnx", net, X)


def test_decisions_by_size_are_said(tmp_path, caplog):
    net = Net(lambda net, x: net.first(x if x.shape[2] % 4 == 0 else F.pad(x, (0, 0, 0, 1))))
    with caplog.at_level(logging.WARNING, "lwrn_fast"):
        export.to_onnx(net, X, tmp_path / "net.onnx", dynamic=True)
    assert "the model decides by sizes; the file is only for (arguments[0].shape[2] % 4) == 0" in caplog.text
    caplog.clear()
    export.to_onnx(models.Decoder([3], 5, planes=8).eval(), ([X],), tmp_path / "net.onnx", dynamic=True)
    assert not [record for record in caplog.records if record.name == "lwrn_fast"]


class TestLarge:
    """Weights in a second file, because an ONNX file cannot have more than 2 GB."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 100)

    def test_two_files(self, tmp_path):
        path, net = tmp_path / "net.onnx", residual(F.relu_)
        for _ in range(2):  # the second time replaces the first
            export.to_onnx(net, X, path)
            assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
            check_file(path, net, X)

    def test_nothing_half_written(self, tmp_path, monkeypatch):
        path, net = tmp_path / "net.onnx", residual(F.relu_)
        export.to_onnx(net, X, path)
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        monkeypatch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            export.to_onnx(residual(nn.Hardswish()), X, path)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
