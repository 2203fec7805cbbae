"""Models that cannot be exported: the error begins with the reason and ends with the line of the model."""

import copy
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lwrn_fast
from lwrn_fast import export
from support.exporting import Net, residual

X = torch.randn(1, 3, 12, 10)


@pytest.fixture(autouse=True)
def _needed():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)


def by_value(net: Net, x: Tensor) -> Tensor:
    if x.sum() > 0:
        return net.first(x)
    return x


def through_numpy(net: Net, x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy())


def without_a_name(net: Net, x: Tensor) -> Tensor:
    return {}["stage4"]


FAILURES = [
    pytest.param(
        by_value, RuntimeError, "the model decides by the values of its input, which a file cannot", id="if"
    ),
    pytest.param(through_numpy, RuntimeError, ".numpy() is not supported", id="numpy"),
    pytest.param(without_a_name, RuntimeError, "KeyError: 'stage4' (test_export_failures.py:", id="key"),
    pytest.param(lambda net, x: net.second(x), RuntimeError, "Given groups=1, weight of size [8, 8, 1, 1]", id="size"),
    pytest.param(lambda net, x: torch.linalg.eigvals(x[..., :10, :]), RuntimeError, "No ONNX function found", id="op"),
    pytest.param(lambda net, x: object(), TypeError, "the network must return tensors, in tuples", id="object"),
    pytest.param(lambda net, x: None, TypeError, "the network must return tensors, got", id="none"),
    pytest.param(lambda net, x: lwrn_fast.crp(x, []), ValueError, "crp: weights must be of at least one", id="ours"),
]


@pytest.mark.parametrize(("function", "error", "text"), FAILURES)
def test_the_reason_comes_first(function, error, text, tmp_path, capfd):
    (tmp_path / "net.onnx").write_text("what was there")
    with pytest.raises(error) as raised:
        export.to_onnx(Net(function), X, tmp_path / "net.onnx")
    assert str(raised.value).startswith(f"to_onnx: {text}")
    assert len(str(raised.value).splitlines()) == 1
    assert raised.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("net.onnx", "what was there")]


def test_the_line_is_said(tmp_path):
    with pytest.raises(RuntimeError, match=r"test_export_failures.py:\d+, in by_value: if x.sum\(\) > 0:\)$"):
        export.to_onnx(Net(by_value), X, tmp_path / "net.onnx")


def meta() -> nn.Module:
    return copy.deepcopy(residual(F.relu_)).to("meta")


def locked() -> nn.Module:
    net = copy.deepcopy(residual(F.relu_))
    net.lock = threading.Lock()
    return net


def training_child() -> nn.Module:
    net = copy.deepcopy(residual(F.relu_))
    net.norm = nn.BatchNorm2d(3)
    return net


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(torch.jit.trace(nn.Conv2d(3, 8, 1).eval(), X)).eval()


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        pytest.param(meta, ValueError, "must hold its weights, got first.weight on meta", id="meta"),
        pytest.param(lambda: nn.LazyConv2d(3, 1).eval(), ValueError, "must have been called once, got", id="lazy"),
        pytest.param(training_child, ValueError, "be in eval mode, got BatchNorm2d norm in training", id="child"),
        pytest.param(scripted, TypeError, "in Python, got a TorchScript module at 0", id="script"),
        pytest.param(locked, TypeError, "model cannot be copied: cannot pickle '_thread.lock' object", id="lock"),
        pytest.param(
            lambda: lwrn_fast.optimize(nn.Conv2d(3, 8, 1), X, how="eager"),
            TypeError,
            "must be the model that was given to optimize",
            id="optimized",
        ),
    ],
)
def test_refused(make, error, text, tmp_path):
    with pytest.raises(error) as raised:
        export.to_onnx(make(), X, tmp_path / "net.onnx")
    assert str(raised.value).startswith("to_onnx: model ")
    assert text in str(raised.value)
    assert list(tmp_path.iterdir()) == []
