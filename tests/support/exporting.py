"""Models and runners for the tests of exported files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lwrn_fast
from lwrn_fast import models
from lwrn_fast.backends import native
from support.compiling import missing

needs_compiler = pytest.mark.skipif(
    bool(native.missing() or missing("g++")), reason=str(native.missing() or missing("g++"))
)


class Small(torch.nn.Module):
    """A model with an encoder of two convolutions and a decoder."""

    name, num_classes = "small", 5

    def __init__(self) -> None:
        super().__init__()
        self.fine = torch.nn.Conv2d(3, 6, 3, 4, 1)
        self.coarse = torch.nn.Conv2d(6, 8, 3, 2, 1)
        self.decoder = models.Decoder([6, 8], 5, planes=8)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x).relu()
        return self.decoder([fine, self.coarse(fine).relu()])


class Net(torch.nn.Module):
    """Two convolutions, 3 to 8 to 8 channels, followed by a function of the model and its input."""

    def __init__(self, function: Callable[["Net", Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 1)
        self.function = function
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def residual(act: Callable) -> Net:
    """Return a model that adds a convolution of `act` to its input."""

    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        return net.second(act(y)) + y

    return Net(forward)


def results(model: torch.nn.Module, arguments: tuple, labels: bool = False) -> Tensor:
    with torch.no_grad():
        out = model(*arguments)
        if not labels:
            return out
        first = arguments[0][0] if isinstance(arguments[0], list) else arguments[0]
        return lwrn_fast.upsample_argmax(out, first.shape[2:])


def error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return ((got - expected).abs().max() / expected.abs().max()).item()


def run_onnx(path: Path, *arguments: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return torch.from_numpy(session.run(None, dict(zip(names, (a.numpy() for a in arguments), strict=True)))[0])
