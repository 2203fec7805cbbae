"""Functions that make the instances of the table of entrances from a model, and the modules of its rows."""

import copy
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lwrn_fast
from lwrn_fast import models
from lwrn_fast.models import networks, refinenet, resnet
from support.entrances.cells import SIZE


def eager(model: nn.Module, example: Tensor, _: Path) -> Any:
    return lwrn_fast.optimize(model, example, how="eager")


def compiled(model: nn.Module, example: Tensor, _: Path) -> Any:
    # Calls in C++ save a few per cent of the time, and take eight seconds of compiling.
    return lwrn_fast.optimize(model, example, options={"cpp_wrapper": False})


def accelerated(model: nn.Module, *_: Any) -> nn.Module:
    assert lwrn_fast.accelerate(model).count("crp"), "nothing was replaced"
    return model


def restored(model: nn.Module, *_: Any) -> nn.Module:
    lwrn_fast.restore(accelerated(model))
    return model


def by_torch_compile(inner: str) -> Callable[..., Any]:
    return lambda model, *_: torch.compile(model, backend="lwrn_fast", options={"backend": inner})


def segmenter(model: nn.Module, *_: Any) -> Any:
    return lwrn_fast.Segmenter(model)


def compiled_segmenter(model: nn.Module, *_: Any) -> Any:
    """Compile for one size of the model's input, without calls in C++, which take eight seconds of compiling."""
    with pytest.MonkeyPatch.context() as patch:
        quick = functools.partial(lwrn_fast.optimize, options={"cpp_wrapper": False})
        patch.setattr(sys.modules["lwrn_fast.inference.segmenter"], "optimize", quick)
        return lwrn_fast.Segmenter(model, how="compile", size=SIZE)


def onnx(model: nn.Module, example: Tensor, path: Path) -> Any:
    lwrn_fast.export.to_onnx(model, example, path.with_suffix(".onnx"), dynamic=True)
    return run_onnx(path.with_suffix(".onnx"))


def run_onnx(path: Path) -> Callable[..., Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.detach().contiguous().numpy()})[0])


def aoti(model: nn.Module, example: Tensor, path: Path) -> Any:
    lwrn_fast.export.to_aoti(model, example, path.with_suffix(".pt2"), dynamic=True)
    return torch._inductor.aoti_load_package(str(path.with_suffix(".pt2")))


def safetensors(model: nn.Module, _: Tensor, path: Path) -> Any:
    from safetensors.torch import load_file

    lwrn_fast.export.to_safetensors(model, path.with_suffix(".safetensors"))
    read = copy.deepcopy(model)
    for tensor in read.state_dict().values():
        tensor.zero_()
    read.load_state_dict(load_file(path.with_suffix(".safetensors")))
    return read


# Two threads that patched at once would leave one's patch behind.
_patching = threading.Lock()


@contextmanager
def small_resnet() -> Iterator[None]:
    """Make models on a ResNet with a sixteenth of the channels within this context: the same code, but fast."""
    with _patching:
        yield from _small_resnet()


def _small_resnet() -> Iterator[None]:
    stage = resnet._stage

    def small(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Module:
        return stage(in_channels if in_channels == 64 else in_channels // 16, channels // 16, blocks, stride)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "_stage", small)
        patch.setattr(resnet.ResNet, "planes", (16, 32, 64, 128))
        patch.setattr(networks, "CHANNELS", 8)
        patch.setattr(refinenet, "CHANNELS", 8)
        patch.setattr(refinenet, "DEEPEST_CHANNELS", 16)
        yield


def rf_lw50(classes: int, memory_format: torch.memory_format) -> nn.Module:
    """Return a model whose lateral convolutions are two in a row, which are folded at inference."""
    with small_resnet():
        return networks.ResNetNetwork("rf_lw50", (1, 1, 1, 1), classes, memory_format)


def rf50(classes: int, memory_format: torch.memory_format) -> nn.Module:
    with small_resnet():
        return refinenet.RefineNet("rf50", (1, 1, 1, 1), classes, memory_format)


def crp(wide: bool) -> nn.Module:
    return lwrn_fast.CRP(12, 12) if wide else lwrn_fast.CRP(8, 8)


def depthwise_crp(wide: bool) -> nn.Module:
    return lwrn_fast.CRP(12, 12, 2, groups=True, bias=True) if wide else lwrn_fast.CRP(8, 8, 2, groups=True, bias=True)


def fusion(wide: bool) -> nn.Module:
    return lwrn_fast.Fusion([12, 7], 9) if wide else lwrn_fast.Fusion([8, 6], 5)


def decoder(wide: bool) -> nn.Module:
    return models.Decoder([12, 7], 7, 12) if wide else models.Decoder([8, 6], 5, 8)


def times_of_layers(got: dict[str, Any]) -> list[float]:
    assert {"stem", "crp1", "crp2", "classifier", "normalise", "upsample_argmax"} <= {x["name"] for x in got["layers"]}
    return [layer["ms"]["cpu"] for layer in got["layers"]]


def times_of_cases(got: dict[str, Any]) -> list[float]:
    assert not any(case["failed"] for case in got["cases"]), "a result was wrong"
    return [ms for case in got["cases"] for ms in case["ms"].values()]
