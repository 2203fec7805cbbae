"""Models as files for other programs: `to_onnx`, `to_aoti` (AOTInductor), `to_safetensors`; `compare` runs them.

Each file is written under a temporary name in its folder and renamed when it is complete. An example is the model's
input: one tensor, or a tuple of all positional arguments, tensors and lists of tensors; only shapes and dtypes count.
A file computes the same as the model, operations in place included, but never writes to its inputs. Exports of several
threads take turns.
"""

import importlib.util
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backends import native
from ..io import atomic
from ..models import outputs
from ..models.base import Network
from ..ops.upsample_argmax import upsample_argmax
from .capture import MAP_DTYPES, Graph, capture, check_model, dimensions, exporting, map_tensors, tensors

Example = Tensor | Sequence[Any]
# A limit in bytes that no weight reaches.
ANY_SIZE = 1 << 40


def to_onnx(
    model: nn.Module, example: Example, path: str | os.PathLike, dynamic: bool = False, labels: bool = False
) -> None:
    """Write the model as an ONNX file of standard operators alone, which any runtime reads.

    model: in eval mode. The input of a `Network` is called "image" and its output "logits"; else "input" and "output".
    Several results are called by their keys or fields, or "output0", "output1", ...; None and numbers are left out.
    dynamic: True for any batch, height and width of (N, C, H, W) tensors; else the example's. Where the model decides
    by sizes, the file has its decisions for the example's.
    labels: True to end with the label map, uint8 (N, H, W), called "labels", of the size of the example's first tensor
    (N, C, H, W), made from the model's logits (N, classes, h, w), of at most 256 classes; where the model has several
    results, these are what `lwrn_fast.models.outputs.logits` takes.
    Weights of more than 1.5 GB are written to a second file in the same folder, with ".data" after its name.
    Raises ImportError without the packages onnx and onnxscript, ValueError and TypeError for invalid arguments,
    RuntimeError with the reason where the model cannot be exported, OSError where the file cannot be written.

    >>> import lwrn_fast
    >>> lwrn_fast.export.to_onnx(lwrn_fast.CRP(8, 8).eval(), torch.rand(1, 8, 6, 7), "crp.onnx")  # doctest: +SKIP
    """
    model = _check("to_onnx", model, path, ".onnx")
    absent = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if absent:
        raise ImportError(f"to_onnx: needs {' and '.join(absent)}: pip install 'lwrn-fast[onnx]'")
    arguments = _arguments("to_onnx", example, labels)
    with exporting("to_onnx", backend="reference"):
        graph = Graph("to_onnx", model, labels, flat=True)
        captured = capture(graph, arguments, dynamic)
        inputs = _input_names(model, len(tensors(arguments)))
        program: Any = torch.onnx.export(
            captured,
            input_names=inputs,
            dynamic_shapes=dimensions(arguments, _dimension_names()) if dynamic else None,
            dynamo=True,
            verbose=False,
        )
        from onnxscript import optimizer

        # Fold products of weights of any size: the exporter itself stops at a few kilobytes.
        optimizer.optimize(program.model, input_size_limit=ANY_SIZE, output_size_limit=ANY_SIZE)
        _name_values(program.model.graph, _output_names(model, labels, graph.told.names, inputs))
        program.model.metadata_props.update(_about(model))
        atomic.write_together(Path(path), program.save)


def to_aoti(
    model: nn.Module, example: Example, path: str | os.PathLike, dynamic: bool = False, labels: bool = False
) -> None:
    """Compile the model by AOTInductor to a package (.pt2) for CPUs like this one, with the ops of lwrn_fast in it.

    model, example: on the CPU. dynamic, labels: as for `to_onnx`. The weights are constants of the package, packed for
    oneDNN. To run it: `torch._inductor.aoti_load_package(path)` after `import lwrn_fast`, or, without Python,
    csrc/examples/run_package.cpp. Several results come in tuples, lists and dictionaries, without the values that are
    no tensors. Tensors (N, C, H, W) may have any strides, and those of another size or dtype are refused; the package
    uses as many threads as torch does.
    Raises RuntimeError without the compiled part of lwrn_fast or without a C++ compiler, and with the reason where the
    model cannot be exported, ValueError and TypeError for invalid arguments, OSError where the file cannot be written.

    >>> import lwrn_fast
    >>> lwrn_fast.export.to_aoti(lwrn_fast.CRP(8, 8).eval(), torch.rand(1, 8, 6, 7), "crp.pt2")  # doctest: +SKIP
    """
    model = _check("to_aoti", model, path, ".pt2")
    missing = native.missing()
    if missing is not None:
        raise RuntimeError(f"to_aoti: {missing}")
    arguments = _arguments("to_aoti", example, labels)
    for tensor in (*model.parameters(), *model.buffers(), *tensors(arguments)):
        if tensor.device.type != "cpu":
            raise ValueError(f"to_aoti: model and example must be on the CPU, got {tensor.device}")
    sizes = [[-1, t.shape[1], -1, -1] if dynamic else list(t.shape) for t in tensors(arguments) if t.dim() == 4]
    with exporting("to_aoti"):
        program = capture(Graph("to_aoti", model, labels, sizes), arguments, dynamic)
        _give_biases(program)
        with tempfile.TemporaryDirectory() as folder:
            from torch._inductor import aoti_compile_and_package

            made = os.path.join(folder, "model.pt2")
            floats = {t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()}
            # Freezing packs the weights for oneDNN, which knows no float64.
            freezing = floats <= set(MAP_DTYPES)
            settings = {"freezing": freezing, "cpp.dynamic_threads": True, "aot_inductor.metadata": _about(model)}
            aoti_compile_and_package(program, package_path=made, inductor_configs=settings)
            atomic.write(Path(path), lambda tmp_path: shutil.copyfile(made, tmp_path))


def to_safetensors(model: nn.Module, path: str | os.PathLike) -> None:
    """Write the state dict under its own names; for a `Network`, its name and number of classes go into the header.

    `models.load` reads the file of a `Network`, but for the ablations (rcu, crp) and variants, which it does not know.
    Raises ImportError without the package safetensors, OSError where the file cannot be written.

    >>> import lwrn_fast, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "net.safetensors")
    >>> to_safetensors(lwrn_fast.models.rf_lw_mbv2(num_classes=7), path)
    >>> lwrn_fast.models.load(path).num_classes
    7
    """
    _check_path("to_safetensors", path, ".safetensors")
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError("to_safetensors: needs safetensors: pip install safetensors") from error
    # Copy each tensor: safetensors refuses tensors that share memory.
    state = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in _state(model)}
    atomic.write(Path(path), lambda tmp_path: save_file(state, tmp_path, _about(model)))


def compare(path: str | os.PathLike, model: nn.Module, example: Example, labels: bool = False) -> float:
    """Return the difference of a file of this module from the model; run it by ONNX Runtime or AOTInductor, or read it.

    model: called as it is, once, on a copy of the example, without gradients.
    Returns the largest difference of the results (of safetensors, of the weights), each relative to its largest value;
    with labels, the share of labels that differ; infinite where the file has other results, of other shapes, or a NaN.
    Raises ValueError where the model is in training mode, ImportError without the package onnxruntime, and all that the
    runtime or the model raises.

    >>> import lwrn_fast, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "crp.safetensors")
    >>> to_safetensors(lwrn_fast.CRP(8, 8), path)
    >>> compare(path, lwrn_fast.CRP(8, 8), torch.rand(1, 8, 6, 7)) > 0  # of other weights
    True
    """
    arguments = _arguments("compare", example, labels)
    ending = Path(path).suffix
    if ending == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
        return max((_difference(state[name], value.detach()) for name, value in _state(model)), default=0.0)
    if ending not in (".onnx", ".pt2"):
        raise ValueError(f"compare: path must end in .onnx, .pt2 or .safetensors, got {os.fspath(path)!r}")
    if model.training:
        raise ValueError("compare: model must be in eval mode, got one in training mode: call model.eval()")
    with torch.no_grad():
        got = _run_onnx(path, arguments) if ending == ".onnx" else _run_aoti(path, arguments)
        result = model(*map_tensors(Tensor.clone, arguments))
        if labels:
            size = next(tensor.shape[2:] for tensor in tensors(arguments) if tensor.dim() == 4)
            result = upsample_argmax(outputs.logits(result, "compare"), size)
    expected = [tensor for _, tensor in outputs.leaves(result, "compare")]
    if len(got) != len(expected):
        return math.inf
    if labels:
        return (got[0] != expected[0]).float().mean().item() if got[0].shape == expected[0].shape else math.inf
    return max(map(_difference, got, expected))


def _run_onnx(path: str | os.PathLike, arguments: tuple) -> list[Tensor]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("compare: needs onnxruntime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    arrays = (tensor.detach().cpu().numpy() for tensor in tensors(arguments))
    return [torch.from_numpy(array) for array in session.run(None, dict(zip(names, arrays, strict=True)))]


def _run_aoti(path: str | os.PathLike, arguments: tuple) -> list[Tensor]:
    from torch._inductor import aoti_load_package

    result = aoti_load_package(os.fspath(path))(*map_tensors(Tensor.clone, arguments))
    return [tensor for _, tensor in outputs.leaves(result, "compare")]


def _difference(got: Tensor, expected: Tensor) -> float:
    """Return the difference relative to the largest finite value; infinite where shapes differ, or one has a NaN."""
    if got.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    got, expected = got.double(), expected.to(got.device).double()
    apart = torch.where(got == expected, 0.0, (got - expected).abs()).max()  # infinities are equal too
    largest = torch.where(expected.isfinite(), expected, 0.0).abs().max()
    difference = (apart / largest.clamp_min(1e-30)).item()
    return math.inf if math.isnan(difference) else difference


def _input_names(model: nn.Module, count: int) -> list[str]:
    name = "image" if isinstance(model, Network) else "input"
    return [name] if count == 1 else [f"{name}{i}" for i in range(count)]


def _output_names(model: nn.Module, labels: bool, names: Sequence[str], inputs: Sequence[str]) -> list[str]:
    if list(names) == ["output"]:
        return ["labels" if labels else "logits" if isinstance(model, Network) else "output"]
    return [f"{name}_out" if name in inputs else name for name in names]


def _name_values(graph: Any, names: list[str]) -> None:
    """Give outputs these names and weights those of the state dict; rename inner values that have one of them."""
    taken = {*names, *(value.name for value in graph.inputs)}
    for weight in list(graph.initializers.values()):
        name = weight.name.removeprefix("model.")
        while name in taken:
            name += "_"
        taken.add(name)
        weight.name = name
    ends = list(graph.outputs)
    for node in graph:
        for value in node.outputs:
            if value.name in taken and value not in ends:
                value.name = f"{value.name}_inside"
    for value, name in zip(ends, names, strict=True):
        value.name = name


def _dimension_names() -> Callable[[], tuple[str, str, str]]:
    """Return a function for ("batch", "height", "width"), then ("batch", "height1", "width1"), ..."""
    numbers = iter(["", *map(str, range(1, 100))])

    def three() -> tuple[str, str, str]:
        number = next(numbers)
        return "batch", f"height{number}", f"width{number}"

    return three


def _give_biases(program: Any) -> None:
    """Add biases of zero where there are none: torch 2.13's packages hand an empty list of tensors to an op as None."""
    ops, graph = torch.ops.lwrn_fast, program.graph
    for node in list(graph.nodes):
        if node.target not in (ops.crp.default, ops.fusion.default) or node.args[2]:
            continue
        maps, weights, _, *others = node.args
        weight = weights[0].meta["val"]
        with graph.inserting_before(node):
            bias = graph.call_function(torch.ops.aten.zeros.default, ([weight.shape[0]],), {"dtype": weight.dtype})
        bias.meta["val"] = weight.new_zeros(weight.shape[0])
        node.args = (maps, weights, [bias] * len(weights), *others)
    program.graph_module.recompile()


def _arguments(op: str, example: Example, labels: bool) -> tuple:
    arguments = example if isinstance(example, tuple) else (example,)

    def check(item: Any) -> None:
        if isinstance(item, (list, tuple)):
            for each in item:
                check(each)
        elif not isinstance(item, Tensor):
            raise TypeError(
                f"{op}: example must be a tensor, or a tuple of tensors and lists of tensors, got {type(item).__name__}"
            )

    check(arguments)
    if labels and all(tensor.dim() != 4 for tensor in tensors(arguments)):
        raise ValueError(f"{op}: example must hold a tensor (N, C, H, W), whose size the label map has, got none")
    return arguments


def _about(model: nn.Module) -> dict[str, str]:
    """Return the entries of the file's header."""
    return {"network": model.name, "num_classes": str(model.num_classes)} if isinstance(model, Network) else {}


def _state(model: nn.Module) -> list[tuple[str, Tensor]]:
    return list(model.state_dict().items())


def _check(op: str, model: nn.Module, path: str | os.PathLike, ending: str) -> nn.Module:
    model = check_model(op, model)
    _check_path(op, path, ending)
    return model


def _check_path(op: str, path: str | os.PathLike, ending: str) -> None:
    """Raise for an invalid path before the work, which can take minutes."""
    if Path(path).suffix != ending:
        raise ValueError(f"{op}: path must end in {ending}, got {os.fspath(path)!r}")
    atomic.check_place(Path(path))
