"""Networks as files for other programs: `to_onnx`, `to_aoti` (AOTInductor), `to_safetensors`; `compare` runs them.

Each file is written beside its place and renamed when it is whole. An example is what the model is called with: one
tensor, or a tuple of all positional arguments, tensors and lists of tensors; of its tensors, shapes and dtypes count.
"""

import copy
import importlib.util
import logging
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import _native, backends, files
from .models.base import Network
from .upsample_argmax import upsample_argmax

Example = Tensor | Sequence[Any]
ANY_SIZE = 1 << 40
MAP_DTYPES = backends.KERNEL_DTYPES


def to_onnx(
    model: nn.Module, example: Example, path: str | os.PathLike, dynamic: bool = False, labels: bool = False
) -> None:
    """The model as an ONNX file of standard operators alone, which any runtime reads.

    model: in eval mode. A network's input is called "image" and its output "logits"; else "input" and "output".
    dynamic: True for any batch, height and width of (N, C, H, W) tensors; else the example's.
    labels: True to end with the label map, uint8 (N, H, W), called "labels", of the size of the example's first tensor
    (N, C, H, W); the model's result must be (N, classes, h, w), of at most 256 classes.
    Raises ImportError without the packages onnx and onnxscript, ValueError and TypeError for what does not fit, OSError
    where the file cannot be written.

    >>> import lwrn_fast
    >>> lwrn_fast.export.to_onnx(lwrn_fast.CRP(8, 8).eval(), torch.rand(1, 8, 6, 7), "crp.onnx")  # doctest: +SKIP
    """
    _check("to_onnx", model, path, ".onnx")
    absent = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if absent:
        raise ImportError(f"to_onnx: needs {' and '.join(absent)}: pip install 'lwrn-fast[onnx]'")
    arguments = _arguments("to_onnx", example, labels)
    network = isinstance(model, Network)
    count = len(_tensors(arguments))
    name = "image" if network else "input"
    with _tracing(), backends.use_backend("reference"):
        program: Any = torch.onnx.export(
            _Graph(model, labels),
            _for_tracing(arguments, dynamic),
            input_names=[name] if count == 1 else [f"{name}{i}" for i in range(count)],
            output_names=["labels" if labels else "logits" if network else "output"],
            dynamic_shapes=_dimensions(arguments, _names()) if dynamic else None,
            dynamo=True,
            verbose=False,
        )
        from onnxscript import optimizer

        # weights that are made of weights, at any size: the exporter itself stops at a few kilobytes
        optimizer.optimize(program.model, input_size_limit=ANY_SIZE, output_size_limit=ANY_SIZE)
        for weight in list(program.model.graph.initializers.values()):
            weight.name = weight.name.removeprefix("model.")  # by their names in the state dict
    program.model.metadata_props.update(_about(model))
    files.write(Path(path), program.save)


def to_aoti(
    model: nn.Module, example: Example, path: str | os.PathLike, dynamic: bool = False, labels: bool = False
) -> None:
    """The model compiled by AOTInductor to a package (.pt2) for CPUs like this one, with the ops of lwrn_fast in it.

    model, example: on the CPU. dynamic, labels: as for `to_onnx`. The weights are constants of the package, packed for
    oneDNN. To run it: `torch._inductor.aoti_load_package(path)` after `import lwrn_fast`, or, without Python,
    csrc/examples/run_package.cpp. Tensors (N, C, H, W) may have any strides, and those of another size or dtype are
    refused; the package uses as many threads as torch does.
    Raises RuntimeError without the compiled part of lwrn_fast or without a C++ compiler, ValueError and TypeError for
    what does not fit, OSError where the file cannot be written.

    >>> import lwrn_fast
    >>> lwrn_fast.export.to_aoti(lwrn_fast.CRP(8, 8).eval(), torch.rand(1, 8, 6, 7), "crp.pt2")  # doctest: +SKIP
    """
    _check("to_aoti", model, path, ".pt2")
    missing = _native.missing()
    if missing is not None:
        raise RuntimeError(f"to_aoti: {missing}")
    arguments = _arguments("to_aoti", example, labels)
    for tensor in (*model.parameters(), *model.buffers(), *_tensors(arguments)):
        if tensor.device.type != "cpu":
            raise ValueError(f"to_aoti: model and example must be on the CPU, got {tensor.device}")
    sizes = [[-1, t.shape[1], -1, -1] if dynamic else list(t.shape) for t in _tensors(arguments) if t.dim() == 4]
    with _tracing():
        program = torch.export.export(
            _Graph(model, labels, sizes),
            _for_tracing(arguments, dynamic),
            dynamic_shapes=_dimensions(arguments, lambda: (torch.export.Dim.DYNAMIC,) * 3) if dynamic else None,
        )
        _give_biases(program)
        with tempfile.TemporaryDirectory() as folder:
            from torch._inductor import aoti_compile_and_package

            made = os.path.join(folder, "model.pt2")
            settings = {"freezing": True, "cpp.dynamic_threads": True, "aot_inductor.metadata": _about(model)}
            aoti_compile_and_package(program, package_path=made, inductor_configs=settings)
            files.write(Path(path), lambda beside: shutil.copyfile(made, beside))


def to_safetensors(model: nn.Module, path: str | os.PathLike) -> None:
    """The state dict under its own names; of a network, also its name and its number of classes, in the header.

    `models.load` reads a network's, but for the ablations (rcu, crp) and variants, which it does not know.
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
    # a copy each, for safetensors refuses tensors that share memory
    state = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in _state(model)}
    files.write(Path(path), lambda beside: save_file(state, beside, _about(model)))


def compare(path: str | os.PathLike, model: nn.Module, example: Example, labels: bool = False) -> float:
    """How far a file of this module is from the model: it is run by ONNX Runtime or AOTInductor, or read.

    Returns the largest difference of the results (of safetensors, of the weights), relative to the largest value; with
    labels, the share of labels that differ.
    Raises ImportError without the package onnxruntime, and whatever the runtime raises.

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
    with torch.no_grad():
        if ending == ".onnx":
            result = _run_onnx(path, arguments)
        elif ending == ".pt2":
            from torch._inductor import aoti_load_package

            result = aoti_load_package(os.fspath(path))(*arguments)
        else:
            raise ValueError(f"compare: path must end in .onnx, .pt2 or .safetensors, got {os.fspath(path)!r}")
        expected = _Graph(model, labels)(*arguments)
    return (result != expected).float().mean().item() if labels else _difference(result, expected)


def _run_onnx(path: str | os.PathLike, arguments: tuple) -> Tensor:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("compare: needs onnxruntime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    tensors = (tensor.numpy() for tensor in _tensors(arguments))
    return torch.from_numpy(session.run(None, dict(zip(names, tensors, strict=True)))[0])


def _difference(got: Tensor, expected: Tensor) -> float:
    """Relative to the largest value; infinite where the shapes differ, or a NaN is in either."""
    if got.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    got, expected = got.double(), expected.double()
    found = ((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()
    return math.inf if math.isnan(found) else found


class _Graph(nn.Module):
    """What is exported: the model, with what goes before and after it.

    sizes: those that `package_input` demands of the tensors (N, C, H, W), for AOTInductor.
    """

    def __init__(self, model: nn.Module, labels: bool, sizes: Sequence[list[int]] | None = None) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for module in self.model.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]  # with symbolic sizes, tracing takes twice as long
        self.labels = labels
        self.sizes = sizes
        self.eval()

    def forward(self, *arguments: Any) -> Tensor:
        maps = [tensor for tensor in _tensors(arguments) if tensor.dim() == 4]
        if self.sizes is not None:
            sizes = iter(self.sizes)
            arguments = _map(lambda tensor: self._input(tensor, sizes), arguments)
        result = self.model(*arguments)
        return upsample_argmax(result, maps[0].shape[2:]) if self.labels else result

    def _input(self, tensor: Tensor, sizes: Iterator[list[int]]) -> Tensor:
        if tensor.dim() != 4:
            return tensor
        size = next(sizes)
        if tensor.dtype not in MAP_DTYPES:
            return tensor
        return torch.ops.lwrn_fast.package_input(tensor, size, tensor.dtype)


@contextmanager
def _tracing() -> Iterator[None]:
    """Without gradients, so that what is folded at inference is, and without what exporters have to say meanwhile."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


def _for_tracing(arguments: tuple, dynamic: bool) -> tuple:
    """Zeros like the arguments; for any size, large enough that no map inside is of size 1, which would be special."""
    shortest = min((min(t.shape[2:]) for t in _tensors(arguments) if t.dim() == 4), default=64)
    factor = -(-64 // max(1, shortest)) if dynamic else 1

    def zeros(tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        if dynamic and tensor.dim() == 4:
            shape = [max(2, shape[0]), shape[1], factor * shape[2], factor * shape[3]]
        return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)

    return _map(zeros, arguments)


def _dimensions(arguments: tuple, three: Callable[[], tuple]) -> tuple:
    """What torch.export wants to know: of each (N, C, H, W) the `three` dimensions that may be any."""

    def of(tensor: Tensor) -> dict[int, Any] | None:
        return dict(zip((0, 2, 3), three(), strict=True)) if tensor.dim() == 4 else None

    return (_map(of, arguments),)


def _names() -> Callable[[], tuple[str, str, str]]:
    """("batch", "height", "width"), then ("batch", "height1", "width1"), ..."""
    numbers = iter(["", *map(str, range(1, 100))])

    def three() -> tuple[str, str, str]:
        number = next(numbers)
        return "batch", f"height{number}", f"width{number}"

    return three


def _give_biases(program: Any) -> None:
    """Zeros for biases where there are none: torch 2.13's packages hand an empty list of tensors to an op as None."""
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
    if labels and all(tensor.dim() != 4 for tensor in _tensors(arguments)):
        raise ValueError(f"{op}: example must hold a tensor (N, C, H, W), whose size the label map has, got none")
    return arguments


def _map(function: Callable[[Tensor], Any], item: Any) -> Any:
    return function(item) if isinstance(item, Tensor) else type(item)(_map(function, each) for each in item)


def _tensors(item: Any) -> list[Tensor]:
    return [item] if isinstance(item, Tensor) else [tensor for each in item for tensor in _tensors(each)]


def _about(model: nn.Module) -> dict[str, str]:
    """What the file's header says."""
    return {"network": model.name, "num_classes": str(model.num_classes)} if isinstance(model, Network) else {}


def _state(model: nn.Module) -> list[tuple[str, Tensor]]:
    return list(model.state_dict().items())


def _check(op: str, model: nn.Module, path: str | os.PathLike, ending: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")
    if model.training:
        raise ValueError(f"{op}: model must be in eval mode, got one in training mode: call model.eval()")
    _check_path(op, path, ending)


def _check_path(op: str, path: str | os.PathLike, ending: str) -> None:
    """What is wrong with the path is said before the work, which can take minutes."""
    if Path(path).suffix != ending:
        raise ValueError(f"{op}: path must end in {ending}, got {os.fspath(path)!r}")
    files.check_place(Path(path))
