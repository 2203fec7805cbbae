"""Contestants: PyTorch's own ways and other engines, at the settings that measured best, and why one cannot run."""

import copy
import functools
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

OURS = "ours"
OURS_NCHW = "ours, from NCHW"
OURS_EAGER = "ours, eager"
EAGER_NCHW = "eager, NCHW"
EAGER = "eager, channels-last"
COMPILE = "torch.compile"
ONNX_RUNTIME = "ONNX Runtime"
OPENVINO = "OpenVINO"
FLOOR = "1x1 convolutions alone"

ALL = (OURS, OURS_NCHW, EAGER_NCHW, EAGER, COMPILE, ONNX_RUNTIME, OPENVINO, FLOOR)
# Contestants of an op that is not made of 1x1 convolutions.
ENGINES = ALL[:-1]
# Contestants in float16, which is there for completeness: nobody runs it on a CPU by choice.
HALF = (OURS, OURS_NCHW, EAGER, FLOOR)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Call = Callable[[], Any]
_PACKAGES = {ONNX_RUNTIME: ("onnxruntime", "onnx", "onnxscript"), OPENVINO: ("openvino", "onnx", "onnxscript")}


@functools.cache
def why_absent(name: str, dtype: torch.dtype = torch.float32) -> str | None:
    """Return why a contestant cannot run this dtype here; None where it can."""
    missing = [p for p in _PACKAGES.get(name, ()) if importlib.util.find_spec(p) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    if name == ONNX_RUNTIME and dtype != torch.float32:
        return "its CPU convolutions are float32 only"
    if name == OPENVINO and _precision(dtype).upper() not in _openvino_can():
        return f"this CPU runs {_precision(dtype)} as float32"
    if name == COMPILE and shutil.which(os.environ.get("CXX", "g++")) is None:
        return "needs a C++ compiler"
    return None


def taking_part(dtype: torch.dtype, names: Sequence[str]) -> list[str]:
    """Return those of the names, in order, that can run this dtype here."""
    return [n for n in names if (dtype != torch.float16 or n in HALF) and why_absent(n, dtype) is None]


def versions() -> dict[str, str]:
    """Return the versions of the packages behind the contestants, "" where there is none."""
    versions = {}
    for package in ("onnxruntime", "openvino"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = ""
    return versions


def field(
    plain: nn.Module,
    inputs: Sequence[Tensor],
    ours: Callable[..., Tensor],
    names: Sequence[str],
    floor: Call | None = None,
    plain_channels_last: nn.Module | None = None,
) -> dict[str, Callable[[], Call]]:
    """Return those of `names` that can run the dtype of `inputs`, ready to be prepared.

    plain: the op in plain PyTorch, taking the inputs (contiguous NCHW) as arguments; plain_channels_last is the
    same for channels-last inputs, where it must be another module. ours: our function of the same inputs.
    """
    nhwc = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
    plain_nhwc = plain_channels_last or plain
    exported = functools.cache(lambda: onnx_bytes(plain, inputs))
    like = functools.cache(lambda: plain_nhwc(*nhwc))
    makers: dict[str, Callable[[], Call]] = {
        OURS: lambda: lambda: ours(*nhwc),
        OURS_EAGER: lambda: lambda: ours(*nhwc),
        OURS_NCHW: lambda: lambda: ours(*inputs),
        EAGER_NCHW: lambda: lambda: plain(*inputs),
        EAGER: lambda: lambda: plain_nhwc(*nhwc),
        COMPILE: lambda: compiled(plain_nhwc, nhwc),
        ONNX_RUNTIME: lambda: onnx_runtime(exported(), inputs, like()),
        OPENVINO: lambda: openvino(exported(), inputs, like()),
    }
    if floor is not None:
        makers[FLOOR] = lambda: floor
    return {name: makers[name] for name in taking_part(inputs[0].dtype, names)}


def compiled(module: nn.Module, inputs: Sequence[Tensor]) -> Call:
    """Return a call of torch.compile with frozen weights on channels-last inputs, the faster layout on a CPU."""
    function = frozen(module)
    return lambda: function(*inputs)


def frozen(module: nn.Module) -> Callable[..., Any]:
    """Compile the module for these weights alone."""
    function = torch.compile(module, dynamic=False)

    def call(*inputs: Tensor) -> Any:
        with torch._inductor.config.patch(freezing=True):  # Dynamo reads it too, when it compiles
            return function(*inputs)

    return call


def onnx_runtime(model: bytes, inputs: Sequence[Tensor], like: Tensor) -> Call:
    """Return a call of the CPU provider, inputs and result bound to PyTorch's memory; NCHW, which it blocks by itself.

    model: as `onnx_bytes` gives it. like: a result, for its shape and dtype.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    arrays = [x.numpy() for x in inputs]
    for node, array in zip(session.get_inputs(), arrays, strict=True):
        binding.bind_input(node.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    out = torch.empty(like.shape, dtype=like.dtype).numpy()
    binding.bind_output(session.get_outputs()[0].name, "cpu", 0, out.dtype, out.shape, out.ctypes.data)

    def call() -> Tensor:
        session.run_with_iobinding(binding)
        return torch.from_numpy(out)

    call.arrays = arrays  # type: ignore[attr-defined]  # bound by address: they must live as long as the call
    return call


def openvino(model: bytes, inputs: Sequence[Tensor], like: Tensor) -> Call:
    """Return a call with one stream, the latency hint, and results written into a tensor of ours.

    NCHW measured 15 % faster than NHWC tensors. The model is in float32 with the precision of the inputs' dtype as
    hint; half types go in and out as such.
    """
    import openvino as ov

    types = {torch.float32: ov.Type.f32, torch.bfloat16: ov.Type.bf16, torch.float16: ov.Type.f16}
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": _precision(inputs[0].dtype),
    }
    core = ov.Core()
    adapt = ov.preprocess.PrePostProcessor(core.read_model(model))
    for i, x in enumerate(inputs):
        adapt.input(i).tensor().set_element_type(types[x.dtype])
    out = torch.empty(like.shape, dtype=like.dtype)
    if like.dtype in types:
        adapt.output().tensor().set_element_type(types[like.dtype])
    request = core.compile_model(adapt.build(), "CPU", settings).create_infer_request()
    for i, x in enumerate(inputs):
        request.set_input_tensor(i, _shared(x, types))
    request.set_output_tensor(_shared(out, types))

    def call() -> Tensor:
        request.infer()
        return out

    return call


def _shared(x: Tensor, types: dict) -> Any:
    """Return an OpenVINO tensor on the memory of x; NumPy has no bfloat16, so the half types go through their bits."""
    import openvino as ov

    if x.dtype in (torch.bfloat16, torch.float16):
        return ov.Tensor(x.view(torch.int16).numpy(), list(x.shape), types[x.dtype])
    return ov.Tensor(x.numpy(), shared_memory=True)


def onnx_bytes(module: nn.Module, inputs: Sequence[Tensor]) -> bytes:
    """Export the module in float32 as an ONNX file, for inputs of these shapes."""
    wide = tuple(x.float() for x in inputs)
    log = logging.getLogger("torch.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level, log.level = log.level, logging.ERROR
        program = torch.onnx.export(copy.deepcopy(module).float(), wide, dynamo=True, verbose=False)
    log.level = level
    assert program is not None
    return program.model_proto.SerializeToString()


def _precision(dtype: torch.dtype) -> str:
    return {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]


@functools.cache
def _openvino_can() -> set[str]:
    """Return the precisions that OpenVINO computes in: F32, and those that this CPU has instructions for."""
    import openvino as ov

    able = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return {"F32"} | {name.replace("FP16", "F16") for name in able}
