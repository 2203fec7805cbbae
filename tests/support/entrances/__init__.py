"""The table of public entrances: a new entrance joins with one line of ENTRANCES.

`cd tests && python -m support.entrances` prints the table: a row per entrance, "x" where a cell runs, and the reasons
where none does. With `--first-calls FILE` it calls every entrance once and writes what went wrong, by name, as JSON:
what test_entrances.py runs in another environment.
"""

import argparse
import copy
import functools
import importlib.util
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lwrn_fast
from lwrn_fast import models
from lwrn_fast.backends import native
from lwrn_fast.models import networks, refinenet, resnet
from support.compiling import missing
from support.entrances import (
    conditions,  # noqa: F401  fills CONDITIONS
    states,  # noqa: F401
)
from support.entrances.cells import CONDITIONS, SIZE, Cell, Entrance
from support.entrances.commands import (
    Evaluation,
    Generation,
    Information,
    Measurement,
    ReceptiveField,
    Training,
    export,
    loaded,
    segment,
    tiny_network,
    video,
)
from support.entrances.images import FILES
from support.entrances.subjects import (
    CrpFunction,
    Differentiable,
    FusionFunction,
    NormaliseFunction,
    OfImages,
    OfModule,
    OfNetwork,
    PreprocessFunction,
    UpsampleArgmaxFunction,
    UpsampleArgmaxModule,
    a_list,
    flattening,
    foreign,
    one_map,
    plain_crp,
    plain_decoder,
    plain_fusion,
    published,
)

COPIES = ("deep_copy", "pickled", "saved_whole", "shallow_copy", "replica")
IMAGES = tuple(f"{kind}_file" for kind in FILES) + ("image_as_pil", "image_as_tensor", "image_memory")
TENSORS = ("memory_formats", "tensor_subclass")


def why(reason: str, *names: str) -> dict[str, str]:
    """These conditions do not apply, for this reason."""
    return dict.fromkeys(names, reason)


# Why conditions do not apply, by kinds of entrances.
NO_LIST = why("it takes no list", "tuple_for_list")
NO_SIZES = why("no number is among its arguments", "numpy_integers")
NO_IMAGES = why("it takes tensors, not images", *IMAGES)
FUNCTION = NO_IMAGES | {
    **why("a function holds nothing that could be copied, changed or derived from", *COPIES, "changed_weights"),
    **why("a function has no class", "subclass"),
    **why("a function has no weights of its own", "derivative_after_a_call"),
}
NO_GRADIENTS = why("it is for inference, its weights are constants", "derivative_after_a_call", "changed_weights")
NO_CHILDREN = why("it is no module whose children could be others", "shallow_copy", "replica")
MODULE = NO_IMAGES | NO_SIZES | NO_LIST
OPTIMIZED = MODULE | NO_GRADIENTS | why("it runs a copy that nobody changes, and says so", "shallow_copy", "replica")
FIXED = why("which backend runs is decided while the graph is traced, as its page says", "backend_of_a_thread")
COMPILED = FIXED | why("optimize says that compiled code cannot be copied", *COPIES[:3])
WRAPPED = FIXED | {
    **why("PyTorch's own OptimizedModule is what would be copied", *COPIES),
    **why("torch.compile has no forward-mode derivatives", "derivative_after_a_call"),
}
BY_DYNAMO = why(
    "Dynamo decides when to compile again, as in the row torch_compile; here each time takes seconds",
    *("other_size_before", "part_of_a_batch", "thread_count", "memory_formats", "other_width_before"),
)
BY_OPTIMIZE = why(
    "optimize compiles it, which has a row; here each time takes seconds",
    *("part_of_a_batch", "thread_count", "other_width_before", "poisoned_memory", "another_environment"),
)
PACKAGE = why(
    "export makes its graph as for ONNX, which has a row; here each package takes ten seconds",
    *("deleted_instance", "other_width_before", "subclass", "made_in_a_thread", "made_under_default_dtype"),
    *("made_in_inference_mode", "another_environment"),
)
BY_TO_ONNX = why(
    "the command calls to_onnx, which has a row; here each file takes seconds",
    *("deleted_instance", "other_width_before", "made_in_a_thread", "made_in_inference_mode"),
)
FILE = MODULE | NO_GRADIENTS | NO_CHILDREN | FIXED | {
    **why("what is called is a file in another runtime", *COPIES, "keywords", "tensor_subclass", "poisoned_memory"),
}
SEGMENTER = NO_GRADIENTS | NO_CHILDREN | NO_LIST | NO_SIZES | why("it takes images, not tensors of maps", *TENSORS)
COMMAND = {
    **why("a command has no object, and its weights are in a file", *COPIES, "changed_weights", "subclass"),
    **why("a command's arguments are strings", *TENSORS, "keywords", "tuple_for_list", "numpy_integers"),
    **why("a command's images are files", "image_as_pil", "image_as_tensor", "image_memory"),
    **why("a command gives no tensor that could be differentiated", "derivative_after_a_call"),
}
LABELS = MODULE | {
    **why("labels have no derivative", "derivative_after_a_call"),
    **why("it has no weights", "changed_weights"),
}
MODULE_OF_MAPS = NO_IMAGES | NO_SIZES | why("its maps are positional arguments without names", "keywords")
DECODER = NO_IMAGES | NO_SIZES
PREPROCESS = {
    **{name: reason for name, reason in FUNCTION.items() if name not in IMAGES},
    **why("it takes one image", "part_of_a_batch"),
    **why("it takes images, not tensors of maps", *TENSORS),
    **NO_LIST,
}
ONE_STDOUT = why("its result is in what it prints, and a process has one stdout", "threads_at_once")
NO_OPS = why("it runs none of our ops", "backend_of_a_thread")
NO_FILES = why("it takes no image files", *(f"{kind}_file" for kind in FILES))
IN_PAIRS = {
    **why("its images come in folders with their labels; `segment` reads images alike", *NO_FILES),
    **why("its result is of all images together", "part_of_a_batch"),
}
TRAINING = why("it needs gradients, which the caller forbids", "no_grad", "inference_mode", "made_in_inference_mode")
LOADED = NO_FILES | why("the network that it wrote is load's, with its row", *COPIES)
DRAWN = why("it draws as many images as it is asked for", "part_of_a_batch")
TOLD = why("it takes nothing", "other_size_before", "part_of_a_batch")
NO_WEIGHTS = {
    **why("it has no weights: two instances are one", "second_instance", "instance_made_before", "other_order"),
    **why("it has no weights: two instances are one", "deleted_instance", "other_width_before"),
}
FIGURES = NO_WEIGHTS | {
    **why("its result is times, which are judged by being there", "other_size_before", "part_of_a_batch"),
    **why("it sets the backends itself, one after the other", "reference_backend", "backend_of_a_thread"),
    **why("it measures the machine, which one run at a time can do", "threads_at_once"),
}


def eager(network: nn.Module, example: Tensor, _: Path) -> Any:
    return lwrn_fast.optimize(network, example, how="eager")


def compiled(network: nn.Module, example: Tensor, _: Path) -> Any:
    # the calls in C++ are worth a few per cent, and eight seconds of compiling each time
    return lwrn_fast.optimize(network, example, options={"cpp_wrapper": False})


def accelerated(network: nn.Module, *_: Any) -> nn.Module:
    assert lwrn_fast.accelerate(network).count("crp"), "nothing was replaced"
    return network


def restored(network: nn.Module, *_: Any) -> nn.Module:
    lwrn_fast.restore(accelerated(network))
    return network


def by_torch_compile(inner: str) -> Callable[..., Any]:
    return lambda network, *_: torch.compile(network, backend="lwrn_fast", options={"backend": inner})


def segmenter(network: nn.Module, *_: Any) -> Any:
    return lwrn_fast.Segmenter(network)


def compiled_segmenter(network: nn.Module, *_: Any) -> Any:
    """For one size of the network's input, and without calls in C++, which take eight seconds of compiling."""
    with pytest.MonkeyPatch.context() as patch:
        quick = functools.partial(lwrn_fast.optimize, options={"cpp_wrapper": False})
        patch.setattr(sys.modules["lwrn_fast.inference.segmenter"], "optimize", quick)
        return lwrn_fast.Segmenter(network, how="compile", size=SIZE)


def onnx(network: nn.Module, example: Tensor, path: Path) -> Any:
    lwrn_fast.export.to_onnx(network, example, path.with_suffix(".onnx"), dynamic=True)
    return run_onnx(path.with_suffix(".onnx"))


def run_onnx(path: Path) -> Callable[..., Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.detach().contiguous().numpy()})[0])


def aoti(network: nn.Module, example: Tensor, path: Path) -> Any:
    lwrn_fast.export.to_aoti(network, example, path.with_suffix(".pt2"), dynamic=True)
    return torch._inductor.aoti_load_package(str(path.with_suffix(".pt2")))


def safetensors(network: nn.Module, _: Tensor, path: Path) -> Any:
    from safetensors.torch import load_file

    lwrn_fast.export.to_safetensors(network, path.with_suffix(".safetensors"))
    read = copy.deepcopy(network)
    for tensor in read.state_dict().values():
        tensor.zero_()
    read.load_state_dict(load_file(path.with_suffix(".safetensors")))
    return read


@contextmanager
def small_resnet() -> Iterator[None]:
    """Within, networks on a ResNet are made with a sixteenth of the channels: their code as it is, in no time."""
    stage = resnet._stage

    def small(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Module:
        return stage(in_planes if in_planes == 64 else in_planes // 16, planes // 16, blocks, stride)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "_stage", small)
        patch.setattr(resnet.ResNet, "planes", (16, 32, 64, 128))
        patch.setattr(networks, "CHANNELS", 8)
        patch.setattr(refinenet, "CHANNELS", 8)
        patch.setattr(refinenet, "DEEPEST_CHANNELS", 16)
        yield


def rf_lw50(classes: int, memory_format: torch.memory_format) -> nn.Module:
    """Its lateral convolutions are two in a row, which are folded at inference."""
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


NETWORKS_BESIDE = ("accelerate", "optimize_eager", "torch_compile")
COMMANDS_BESIDE = ("eval", "receptive-field")
ONNX, GXX = ("onnx", "onnxscript", "onnxruntime"), ("g++",)
SAFE = ("safetensors",)
TRAIN = ("safetensors", "torchmetrics")
VIEWS = why("the network's own code takes contiguous memory alone", "memory_formats")

ENTRANCES = [
    Entrance("crp", CrpFunction(), FUNCTION | NO_SIZES, beside=("fusion", "CRP")),
    Entrance("fusion", FusionFunction(), FUNCTION | NO_SIZES, beside=("crp", "Fusion")),
    Entrance("upsample_argmax", UpsampleArgmaxFunction(), FUNCTION | NO_LIST, beside=("UpsampleArgmax",)),
    Entrance("normalise", NormaliseFunction(), FUNCTION | NO_LIST, beside=("preprocess",)),
    Entrance("CRP", OfModule(crp, one_map, plain_crp), MODULE, beside=("crp", "CRP_depthwise")),
    Entrance("CRP_depthwise", OfModule(depthwise_crp, one_map, plain_crp), MODULE, beside=("CRP",)),
    Entrance("Fusion", OfModule(fusion, a_list, plain_fusion), MODULE_OF_MAPS, beside=("fusion",)),
    Entrance("UpsampleArgmax", UpsampleArgmaxModule(), LABELS, beside=("upsample_argmax",)),
    Entrance("Decoder", OfModule(decoder, a_list, plain_decoder, ("features",)), DECODER, beside=("CRP", "Fusion")),
    Entrance("rf_lw_mbv2", published(models.rf_lw_mbv2), MODULE, True, ("CRP", "load_pth")),
    Entrance("rf_lw50", published(rf_lw50), MODULE, beside=("rf50", "CRP")),
    Entrance("rf50", published(rf50), MODULE | NO_OPS, beside=("rf_lw50", "CRP")),
    Entrance("accelerate", Differentiable(accelerated, foreign), MODULE, beside=("optimize_eager", "torch_compile")),
    Entrance("accelerate_views", Differentiable(accelerated, flattening), MODULE | VIEWS, beside=("accelerate",)),
    Entrance("restore", Differentiable(restored, foreign), MODULE | NO_OPS, beside=("accelerate",)),
    Entrance("optimize_eager", OfNetwork(eager, foreign), OPTIMIZED, beside=("accelerate", "torch_compile")),
    Entrance("optimize_eager_views", OfNetwork(eager, flattening), OPTIMIZED | VIEWS, beside=("accelerate_views",)),
    Entrance("optimize_compile", OfNetwork(compiled, foreign), OPTIMIZED | COMPILED, True, NETWORKS_BESIDE, GXX),
    Entrance("torch_compile", Differentiable(by_torch_compile("eager"), foreign), MODULE | WRAPPED, True,
             ("accelerate",)),
    Entrance("torch_compile_inductor", Differentiable(by_torch_compile("inductor"), foreign),
             MODULE | WRAPPED | BY_DYNAMO, True, NETWORKS_BESIDE, GXX),
    Entrance("Segmenter", OfImages(segmenter, foreign), SEGMENTER, beside=("preprocess", "optimize_eager")),
    Entrance("Segmenter_compile", OfImages(compiled_segmenter, foreign, SIZE), SEGMENTER | COMPILED | BY_OPTIMIZE, True,
             (*NETWORKS_BESIDE, "Segmenter"), GXX),
    Entrance("preprocess", PreprocessFunction(), PREPROCESS, beside=("normalise", "Segmenter")),
    Entrance("load_pth", loaded(".pth"), MODULE, beside=("load_safetensors", "segment")),
    Entrance("load_safetensors", loaded(".safetensors"), MODULE, beside=("load_pth",), needs=SAFE),
    Entrance("to_onnx", OfNetwork(onnx, foreign), FILE, True, ("accelerate", "to_safetensors"), ONNX),
    Entrance("to_aoti", OfNetwork(aoti, foreign), FILE | PACKAGE, True, ("accelerate",), (*GXX, "native")),
    Entrance("to_safetensors", OfNetwork(safetensors, foreign), MODULE | NO_OPS, beside=("accelerate",), needs=SAFE),
    Entrance("segment", segment(), COMMAND, beside=COMMANDS_BESIDE),
    Entrance("segment_verify", segment("--verify", "--overlay"), COMMAND | ONE_STDOUT, beside=COMMANDS_BESIDE),
    Entrance("segment_resume", segment("--resume"), COMMAND, beside=("segment", "video")),
    Entrance("video", video(), COMMAND | NO_FILES, beside=("segment",), needs=("av",)),
    Entrance("export_safetensors", export("safetensors", models.load), COMMAND | LOADED, beside=("segment",),
             needs=SAFE),
    Entrance("export_onnx", export("onnx", run_onnx, "--dynamic", "--size", *map(str, SIZE)),
             COMMAND | FILE | BY_TO_ONNX, True, COMMANDS_BESIDE, ONNX),
    Entrance("train", Training(), COMMAND | IN_PAIRS | TRAINING, beside=("eval", "segment"), needs=TRAIN),
    Entrance("eval", Evaluation(), COMMAND | IN_PAIRS, beside=("segment", "train"), needs=TRAIN),
    Entrance("generate", Generation(), COMMAND | NO_FILES | NO_WEIGHTS | NO_OPS | DRAWN, beside=("segment",)),
    Entrance("receptive-field", ReceptiveField(), COMMAND, beside=("segment", "eval")),
    Entrance("profile", Measurement("profile", "tiny", "--backend", "cpu", complete=times_of_layers),
             COMMAND | NO_FILES | FIGURES, beside=("segment",)),
    Entrance("bench", Measurement("bench", "--models", "tiny", "--peers", complete=times_of_cases),
             COMMAND | NO_FILES | FIGURES, beside=("segment",)),
    Entrance("info", Information(), COMMAND | NO_FILES | NO_WEIGHTS | NO_OPS | ONE_STDOUT | TOLD, beside=("segment",)),
]  # fmt: skip
BY_NAME = {entrance.name: entrance for entrance in ENTRANCES}

# What is public and is no row: why. Every other public name and command must be in the table.
NO_ROWS = {
    **why("is what another row's entrance takes or gives", "Report", "CLASSES", "PALETTE", "MEAN", "STD", "SHAPES"),
    **why("is what load leaves with a network", "Loaded"),
    **why("is another name of receptive-field", "erf"),
    **why("is a list or an error", "NETWORKS", "CheckpointError", "Untrained", "__version__"),
    **why("is a module of its own, whose parts are rows", "export", "models", "ops", "reference"),
    **why("tells about calls, and answers none", "explain"),
    **why("calls what another row calls, and gives nothing back", "warmup"),
    **why("is a condition of every row", "use_backend"),
    **why("is of the class of rf_lw50, with more blocks", "rf_lw101", "rf_lw152"),
    **why("is of the class of rf_lw_mbv2, with a grouped CRP", "rf_lw_mbv2_multi_task"),
    **why("is of the class of rf50, with more blocks", "rf101", "rf152"),
    **why("runs the decoder of Decoder and load; its encoder is PyTorch's own operations", "rf_lw_nasnet_mobile"),
}


def cells(folder: Path) -> dict[str, Cell]:
    """The cell of every entrance, which its conditions share where it keeps its instances."""
    made = {entrance.name: Cell(entrance, folder / entrance.name) for entrance in ENTRANCES}
    for cell in made.values():
        cell.folder.mkdir()
        cell.neighbours = tuple(made[name] for name in cell.entrance.beside)
    return made


def why_not_here(needs: tuple[str, ...]) -> str | None:
    """What this installation lacks of what an entrance needs: packages, and "g++" or "native"."""
    for each in needs:
        if each == "native" and native.missing() is not None:
            return native.missing()
        if each == "g++" and missing("g++") is not None:
            return missing("g++")
        if each not in ("native", "g++") and importlib.util.find_spec(each) is None:
            return f"not installed: {each}"
    return None


def table() -> str:
    """The table as text, its numbers, and the reasons by the conditions that they are for."""
    width = max(len(entrance.name) for entrance in ENTRANCES)
    lines = [f"{i:3}  {name}" for i, name in enumerate(CONDITIONS, start=1)]
    lines += ["", " " * width + "  " + "".join(f"{i % 10}" for i in range(1, len(CONDITIONS) + 1))]
    reasons: dict[str, Counter[str]] = {}
    for entrance in ENTRANCES:
        marks = "".join("-" if name in entrance.leaves_out else "x" for name in CONDITIONS)
        lines.append(f"{entrance.name:{width}}  {marks}")
        for name, reason in entrance.leaves_out.items():
            reasons.setdefault(reason, Counter())[name] += 1
    left_out = sum(len(entrance.leaves_out) for entrance in ENTRANCES)
    every = len(ENTRANCES) * len(CONDITIONS)
    lines += ["", f"{every} cells: {every - left_out} run, {left_out} do not apply:"]
    lines += [f"{sum(names.values()):4}  {reason} ({', '.join(names)})" for reason, names in reasons.items()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first-calls", type=Path, metavar="FILE", help="call every entrance once")
    file = parser.parse_args().first_calls
    if file is None:
        print(table())
        return 0
    failed = {}
    with tempfile.TemporaryDirectory() as folder, tiny_network():
        for name, cell in cells(Path(folder)).items():
            if "another_environment" in cell.entrance.leaves_out or why_not_here(cell.entrance.needs) is not None:
                continue
            torch.compiler.reset()  # or classes that rows share would count as compiled too often
            try:
                CONDITIONS["first_call"](cell)
            except (Exception, SystemExit) as error:
                failed[name] = f"{type(error).__name__}: {error}"
            finally:
                cell.forget()
    file.write_text(json.dumps(failed), encoding="utf-8")
    return 0


