"""The table of public entrances: a new entrance joins with one line of ENTRANCES.

`cd tests && python -m support.entrances` prints the table: a row per entrance, "x" where a cell runs, and the reasons
where none does. With `--first-calls FILE` it calls every entrance once and writes the errors, by name, as JSON:
test_entrances.py runs this in another environment.
"""

import argparse
import importlib.util
import json
import tempfile
from collections import Counter
from pathlib import Path

import torch

from lwrn_fast import models
from lwrn_fast.backends import native
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
    tiny_model,
    video,
)
from support.entrances.entering import (
    accelerated,
    aoti,
    by_torch_compile,
    compiled,
    compiled_segmenter,
    crp,
    decoder,
    depthwise_crp,
    eager,
    fusion,
    onnx,
    restored,
    rf50,
    rf_lw50,
    run_onnx,
    safetensors,
    segmenter,
    times_of_cases,
    times_of_layers,
)
from support.entrances.reasons import (
    BY_DYNAMO,
    BY_OPTIMIZE,
    BY_TO_ONNX,
    COMMAND,
    COMPILED,
    DECODER,
    DRAWN,
    FIGURES,
    FILE,
    FUNCTION,
    IN_PAIRS,
    LABELS,
    LOADED,
    MODULE,
    MODULE_OF_MAPS,
    NO_FILES,
    NO_LIST,
    NO_OPS,
    NO_SIZES,
    NO_WEIGHTS,
    ONE_STDOUT,
    OPTIMIZED,
    PACKAGE,
    PREPROCESS,
    SEGMENTER,
    TOLD,
    TRAINING,
    WRAPPED,
    why,
)
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
    one_map,
    plain_crp,
    plain_decoder,
    plain_fusion,
    published,
    third_party,
)

MODELS_BESIDE = ("accelerate", "optimize_eager", "torch_compile")
COMMANDS_BESIDE = ("eval", "receptive-field")
ONNX, GXX = ("onnx", "onnxscript", "onnxruntime"), ("g++",)
SAFE = ("safetensors",)
TRAIN = ("safetensors", "torchmetrics")
VIEWS = why("the model's own code takes contiguous memory alone", "memory_formats")

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
    Entrance("accelerate", Differentiable(accelerated, third_party), MODULE,
             beside=("optimize_eager", "torch_compile")),
    Entrance("accelerate_views", Differentiable(accelerated, flattening), MODULE | VIEWS, beside=("accelerate",)),
    Entrance("restore", Differentiable(restored, third_party), MODULE | NO_OPS, beside=("accelerate",)),
    Entrance("optimize_eager", OfNetwork(eager, third_party), OPTIMIZED, beside=("accelerate", "torch_compile")),
    Entrance("optimize_eager_views", OfNetwork(eager, flattening), OPTIMIZED | VIEWS, beside=("accelerate_views",)),
    Entrance("optimize_compile", OfNetwork(compiled, third_party), OPTIMIZED | COMPILED, True, MODELS_BESIDE, GXX),
    Entrance("torch_compile", Differentiable(by_torch_compile("eager"), third_party), MODULE | WRAPPED, True,
             ("accelerate",)),
    Entrance("torch_compile_inductor", Differentiable(by_torch_compile("inductor"), third_party),
             MODULE | WRAPPED | BY_DYNAMO, True, MODELS_BESIDE, GXX),
    Entrance("Segmenter", OfImages(segmenter, third_party), SEGMENTER, beside=("preprocess", "optimize_eager")),
    Entrance("Segmenter_compile", OfImages(compiled_segmenter, third_party, SIZE), SEGMENTER | COMPILED | BY_OPTIMIZE,
             True, (*MODELS_BESIDE, "Segmenter"), GXX),
    Entrance("preprocess", PreprocessFunction(), PREPROCESS, beside=("normalise", "Segmenter")),
    Entrance("load_pth", loaded(".pth"), MODULE, beside=("load_safetensors", "segment")),
    Entrance("load_safetensors", loaded(".safetensors"), MODULE, beside=("load_pth",), needs=SAFE),
    Entrance("to_onnx", OfNetwork(onnx, third_party), FILE, True, ("accelerate", "to_safetensors"), ONNX),
    Entrance("to_aoti", OfNetwork(aoti, third_party), FILE | PACKAGE, True, ("accelerate",), (*GXX, "native")),
    Entrance("to_safetensors", OfNetwork(safetensors, third_party), MODULE | NO_OPS, beside=("accelerate",),
             needs=SAFE),
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

# Public names that are no row, with the reason. Every other public name and command must be in the table.
NO_ROWS = {
    **why("is what another row's entrance takes or gives", "Report", "CLASSES", "PALETTE", "MEAN", "STD", "SHAPES"),
    **why("is what load leaves with a model", "Loaded"),
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
    """Return the cell of every entrance, which its conditions share where it keeps its instances."""
    made = {entrance.name: Cell(entrance, folder / entrance.name) for entrance in ENTRANCES}
    for cell in made.values():
        cell.folder.mkdir()
        cell.neighbours = tuple(made[name] for name in cell.entrance.beside)
    return made


def why_not_here(needs: tuple[str, ...]) -> str | None:
    """Return why this installation cannot run an entrance: a missing package, "g++" or "native"; None where it can."""
    for each in needs:
        if each == "native" and native.missing() is not None:
            return native.missing()
        if each == "g++" and missing("g++") is not None:
            return missing("g++")
        if each not in ("native", "g++") and importlib.util.find_spec(each) is None:
            return f"not installed: {each}"
    return None


def table() -> str:
    """Return the table as text, its numbers, and each reason with its conditions."""
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
    with tempfile.TemporaryDirectory() as folder, tiny_model():
        for name, cell in cells(Path(folder)).items():
            if "another_environment" in cell.entrance.leaves_out or why_not_here(cell.entrance.needs) is not None:
                continue
            torch.compiler.reset()  # else classes that rows share would exceed the limit of recompilations
            try:
                CONDITIONS["first_call"](cell)
            except (Exception, SystemExit) as error:
                failed[name] = f"{type(error).__name__}: {error}"
            finally:
                cell.forget()
    file.write_text(json.dumps(failed), encoding="utf-8")
    return 0
