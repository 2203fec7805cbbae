"""The meaning of nodes: convolutions, pools, resizes, activations and additions, as module, function or method calls.

In torch.fx's graphs nodes call modules and weights have a path. In Dynamo's graphs nodes call functions and weights are
nodes.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.nn.utils.parametrize import type_before_parametrizations

from ..ops import conv_parameters
from .effects import arguments_of, value_of

# A parameter: the node that holds it, or its path from the root.
Source = Node | str


class Norm(NamedTuple):
    """A batch normalisation by its running statistics."""

    mean: Source
    variance: Source
    weight: Source | None
    bias: Source | None
    eps: float


class Conv(NamedTuple):
    """A convolution of one map, with the normalisation that follows it."""

    x: Node
    weight: Source
    bias: Source | None
    # The weight's shape, (outputs, inputs / groups, height, width).
    shape: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    groups: int
    nodes: tuple[Node, ...]
    norm: Norm | None = None

    def why_not_1x1(self) -> str | None:
        if self.shape[2:] != (1, 1):
            return f"a convolution is {self.shape[2]}x{self.shape[3]}, not 1x1"
        if self.stride != (1, 1):
            return f"a convolution has stride {self.stride}"
        return None if self.padding in ((0, 0), "valid", "same") else f"a 1x1 convolution has padding {self.padding}"


class Pool(NamedTuple):
    x: Node
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    indices: bool

    @property
    def steps(self) -> int:
        """Return the number of 5x5 pools with stride 1 that equal it, 0 where none do: two give 9x9, three 13x13."""
        size = self.kernel[0]
        whole = self.kernel == (size, size) and self.padding == (size // 2, size // 2) and size % 4 == 1
        plain = self.stride == self.dilation == (1, 1) and not self.indices
        return size // 4 if whole and plain else 0

    def why_not_5x5(self) -> str | None:
        if self.dilation != (1, 1):
            return f"a pool has dilation {self.dilation}"
        if self.stride != (1, 1):
            return f"a pool has stride {self.stride}"
        if self.kernel != (5, 5) or self.padding != (2, 2):
            return f"a pool is {self.kernel[0]}x{self.kernel[1]} with padding {self.padding}, not 5x5 with (2, 2)"
        return "a pool returns indices" if self.indices else None


class Resize(NamedTuple):
    x: Node
    size: Any
    scale: Any
    mode: str
    align_corners: bool
    # True without antialias.
    plain: bool
    # True where the scale only determines the size (recompute_scale_factor).
    recomputed: bool

    @property
    def bilinear(self) -> bool:
        return self.mode == "bilinear" and self.plain


class Activation(NamedTuple):
    x: Node
    name: str
    nodes: tuple[Node, ...]


class Addition(NamedTuple):
    operands: tuple[Any, ...]
    # The nodes of the addition, torch.stack among them where it sums over one.
    nodes: tuple[Node, ...]


class Reader:
    """Reads the nodes of one graph; root: the module that paths begin at, None where no module is called."""

    def __init__(self, graph: Graph, root: nn.Module | None) -> None:
        self.graph, self.root = graph, root
        self.unchanged = self._memoised(self._unchanged)
        self.conv = self._memoised(self._conv)
        self.pool = self._memoised(self._pool)
        self.resize = self._memoised(self._resize)
        self.activation = self._memoised(self._activation)

    def module(self, node: Node) -> nn.Module | None:
        """Return the module that the node calls, None where it calls none or one with hooks."""
        if node.op != "call_module" or self.root is None:
            return None
        module = self.root.get_submodule(str(node.target))
        return None if conv_parameters.has_hooks(module) else module

    def addition(self, node: Any) -> Addition | None:
        """Return an addition, in place or not, or a sum over stacked tensors; None where the node is neither."""
        if not isinstance(node, Node) or node.op not in ("call_function", "call_method"):
            return None
        function = node.op == "call_function"
        if (function and node.target in ADDITION_FUNCTIONS) or (not function and node.target in ADDITION_METHODS):
            arguments = _arguments_by_name(node, ("input", "other"))
            if arguments.pop("alpha", 1) == 1 and arguments.keys() == {"input", "other"}:
                return Addition((arguments["input"], arguments["other"]), (node,))
        if (function and node.target is torch.sum) or (not function and node.target == "sum"):
            return self._stacked(node)
        return None

    def _stacked(self, node: Node) -> Addition | None:
        """Return the addition of a sum over the dimension that torch.stack has made."""
        arguments = _arguments_by_name(node, ("input", "dim"))
        stack, dim = arguments.pop("input", None), arguments.pop("dim", arguments.pop("axis", None))
        if arguments or not isinstance(stack, Node) or stack.target is not torch.stack or len(stack.users) > 1:
            return None
        stack_arguments = _arguments_by_name(stack, ("tensors", "dim"))
        tensors, dims = stack_arguments.pop("tensors", None), dim if isinstance(dim, tuple | list) else (dim,)
        if tuple(dims) != (stack_arguments.pop("dim", 0),) or stack_arguments or not isinstance(tensors, tuple | list):
            return None
        return Addition(tuple(tensors), (stack, node))

    def fresh(self, node: Node) -> bool:
        """Return whether the node is known to make new memory."""
        reads = (self.conv, self.pool, self.addition, self.activation, self.resize)
        return any(read(node) is not None for read in reads)

    def mixed(self, out: Node, summands: Iterable[Node]) -> str | None:
        """Return the reason why a sum is not of floating-point tensors of one dtype, None where it is, or may be."""
        values = [value_of(node) for node in (out, *summands)]
        if any(value is None for value in values):
            return None
        if not all(isinstance(value, Tensor) and value.layout == torch.strided for value in values):
            return "an operand is no dense tensor"
        names = sorted({str(value.dtype).removeprefix("torch.") for value in values})
        if len(names) > 1:
            return f"its sum mixes {' and '.join(names)}"
        return None if values[0].is_floating_point() else f"its values are {names[0]}"

    def broadcast(self, node: Node, out: Node) -> bool:
        """Return whether a summand is known to have another shape than the sum."""
        shapes = [getattr(value_of(n), "shape", None) for n in (node, out)]
        if shapes[0] is None or shapes[1] is None:
            return False
        if len(shapes[0]) != len(shapes[1]):
            return True
        pairs = zip(shapes[0], shapes[1], strict=True)
        return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)

    def through(self, node: Any) -> tuple[Any, tuple[Node, ...]]:
        """Return the node behind which the value is only handed on, and the nodes that hand it on."""
        passed: tuple[Node, ...] = ()
        while (inner := self.unchanged(node)) is not None and len(inner.users) == 1:
            passed = (node, *passed)
            node = inner
        return node, passed

    def shape(self, source: Any) -> tuple[int, ...] | None:
        """Return the shape of a parameter, None where it is not known."""
        if isinstance(source, str):
            value = _attribute(self.root, source)
        elif isinstance(source, Node):
            value = value_of(source)
            if value is None and source.op == "get_attr":
                value = _attribute(self.root or source.graph.owning_module, str(source.target))
        else:
            return None
        if not isinstance(value, Tensor) or not all(isinstance(length, int) for length in value.shape):
            return None
        return tuple(value.shape)

    def _conv(self, node: Node) -> Conv | None:
        conv = self._convolution(node)
        if conv is not None:
            return conv
        inner = self.unchanged(node)
        if inner is not None and len(inner.users) == 1:
            conv = self.conv(inner)
            return conv and conv._replace(nodes=(*conv.nodes, node))
        normalised = self._norm(node)
        if normalised is None:
            return None
        x, norm = normalised
        x, passed = self.through(x)
        conv = self._convolution(x) if len(x.users) == 1 else None
        return conv and conv._replace(norm=norm, nodes=(*conv.nodes, *passed, node))

    def _unchanged(self, node: Node) -> Node | None:
        """Return the input that the node hands on with equal values, None where it changes them."""
        module = self.module(node)
        if node.op == "call_module":
            off = isinstance(module, nn.Dropout | nn.Dropout2d) and not module.training
            is_kept = off or type(module) is nn.Identity
        elif node.op == "call_method":
            is_kept = node.target in ("contiguous", "clone") or (node.target == "to" and set(node.kwargs) == MEMORY)
            is_kept = is_kept and len(node.args) == 1
        else:
            is_kept = node.target in DROPOUTS and _training(node) is False
        return node.all_input_nodes[0] if is_kept and len(node.all_input_nodes) == 1 else None

    def _convolution(self, node: Node) -> Conv | None:
        module = self.module(node)
        weight: Any
        bias: Any
        settings: tuple[Any, ...]
        if isinstance(module, nn.Conv2d) and type_before_parametrizations(module) is nn.Conv2d:
            x = arguments_of(node, module.forward).get("input")
            weight, bias = f"{node.target}.weight", f"{node.target}.bias" if module.bias is not None else None
            settings = (module.stride, module.padding, module.dilation, module.groups)
        elif node.op == "call_function" and node.target in (torch.conv2d, F.conv2d):
            arguments = _arguments_by_name(node, ("input", "weight", "bias", "stride", "padding", "dilation", "groups"))
            x, weight, bias = (arguments.get(name) for name in ("input", "weight", "bias"))
            defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
            settings = tuple(arguments.get(name, default) for name, default in defaults.items())
        else:
            return None
        shape = self.shape(weight)
        if not isinstance(x, Node) or shape is None or len(shape) != 4:
            return None
        if any(isinstance(fact, Node) for fact in _flat(settings)):
            return None
        stride, padding, dilation, groups = settings
        padding = padding if isinstance(padding, str) else _pair(padding)
        return Conv(x, weight, bias, shape, _pair(stride), padding, _pair(dilation), groups, (node,))

    def _norm(self, node: Node) -> tuple[Node, Norm] | None:
        module = self.module(node)
        if type(module) is nn.BatchNorm2d:
            if module.training or module.running_mean is None:
                return None
            x = arguments_of(node, module.forward).get("input")
            paths = [f"{node.target}.{name}" for name in (*STATISTICS, *AFFINE)]
            norm = Norm(paths[0], paths[1], *(paths[2:] if module.affine else (None, None)), module.eps)  # type: ignore
        elif node.op == "call_function" and node.target in (F.batch_norm, torch.batch_norm):
            order = (*STATISTICS, *AFFINE) if node.target is F.batch_norm else (*AFFINE, *STATISTICS)
            arguments = _arguments_by_name(node, ("input", *order, "training", "momentum", "eps"))
            mean, variance, weight, bias = (arguments.get(name) for name in (*STATISTICS, *AFFINE))
            if arguments.get("training") or not isinstance(mean, Node) or not isinstance(variance, Node):
                return None
            x = arguments.get("input")
            norm = Norm(mean, variance, weight, bias, arguments.get("eps", 1e-5))
        else:
            return None
        rank = getattr(value_of(x), "ndim", 4)  # other ranks have other dimensions as channels
        return (x, norm) if isinstance(x, Node) and rank == 4 else None

    def _pool(self, node: Node) -> Pool | None:
        module = self.module(node)
        settings: tuple[Any, ...]
        if type(module) is nn.MaxPool2d:
            x = arguments_of(node, module.forward).get("input")
            settings = (module.kernel_size, module.stride, module.padding, module.dilation, module.return_indices)
        elif node.op == "call_function" and node.target in (F.max_pool2d, torch.max_pool2d):
            names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
            arguments = _arguments_by_name(node, names)
            x, size = arguments.get("input"), arguments.get("kernel_size")
            stride, padding = arguments.get("stride") or size, arguments.get("padding", 0)
            settings = (size, stride, padding, arguments.get("dilation", 1), arguments.get("return_indices"))
        else:
            return None
        if not isinstance(x, Node) or any(isinstance(fact, Node) for fact in _flat(settings)):
            return None
        kernel, stride, padding, dilation = map(_pair, settings[:4])
        return Pool(x, kernel, stride, padding, dilation, bool(settings[4]))

    def _resize(self, node: Node) -> Resize | None:
        module = self.module(node)
        arguments: dict[str, Any]
        if isinstance(module, nn.Upsample):
            x = arguments_of(node, module.forward).get("input")
            names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
            arguments = {name: getattr(module, name) for name in names}
        elif node.op == "call_function" and node.target in (F.interpolate, F.upsample):
            arguments = arguments_of(node)
            x = arguments.get("input")
        else:
            return None
        if not isinstance(x, Node):
            return None
        size, scale = arguments.get("size"), arguments.get("scale_factor")
        mode, corners = arguments.get("mode", "nearest"), bool(arguments.get("align_corners"))
        return Resize(
            x, size, scale, mode, corners, not arguments.get("antialias"), bool(arguments.get("recompute_scale_factor"))
        )

    def _activation(self, node: Node) -> Activation | None:
        arguments = _arguments_by_name(node, ("input", "min", "max"))
        first = arguments.get("input")
        name = self._activation_name(node, arguments)
        if name is None or not isinstance(first, Node):
            return None
        x, passed = self.through(first)
        return Activation(x, name, (*passed, node))

    def _activation_name(self, node: Node, arguments: dict[str, Any]) -> str | None:
        module = self.module(node)
        if type(module) in (nn.ReLU, nn.ReLU6):
            return "relu6" if type(module) is nn.ReLU6 else "relu"
        if type(module) is nn.Hardtanh:
            return "relu6" if (module.min_val, module.max_val) == (0, 6) else None
        if node.op not in ("call_function", "call_method"):
            return None
        target = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        if node.op == "call_function" and not str(getattr(node.target, "__module__", "")).startswith("torch"):
            return None
        name = str(target).removesuffix("_")
        bounds = (arguments.get("min", arguments.get("min_val")), arguments.get("max", arguments.get("max_val")))
        if name in ("relu", "relu6"):
            return name
        if name == "hardtanh":
            return "relu6" if bounds == (0, 6) else None
        if name == "threshold":
            bounds = (arguments.get("min", arguments.get("threshold")), arguments.get("max", arguments.get("value")))
            return "relu" if bounds == (0, 0) else None
        if getattr(value_of(node), "requires_grad", False):
            return None  # at the bounds themselves, the gradient of clamp is 1 and that of relu 0
        if name in ("clamp", "clip"):
            return "relu" if bounds == (0, None) else "relu6" if bounds == (0, 6) else None
        return "relu" if name == "clamp_min" and bounds == (0, None) else None

    def _memoised(self, read: Callable[[Node], "_R | None"]) -> Callable[[Any], "_R | None"]:
        """Return `read` with its results kept, for arguments of any type: None for all but calls."""
        results: dict[Node, Any] = {}

        def memoised(node: Any) -> Any:
            if not isinstance(node, Node) or node.op not in ("call_module", "call_function", "call_method"):
                return None
            if node not in results:
                results[node] = read(node)
            return results[node]

        return memoised


_R = TypeVar("_R")
# Arguments of a batch normalisation.
STATISTICS, AFFINE = ("running_mean", "running_var"), ("weight", "bias")
# Functions, and names of methods, that add two tensors.
ADDITION_FUNCTIONS = (operator.add, operator.iadd, torch.add)
ADDITION_METHODS = ("add", "add_", "__add__", "__radd__", "__iadd__")
DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout)
# Keyword arguments of Tensor.to that change nothing but memory.
MEMORY = {"memory_format"}


def _training(node: Node) -> Any:
    """Return whether a dropout drops."""
    if node.target is torch.dropout:
        return _arguments_by_name(node, ("input", "p", "train")).get("train")
    return arguments_of(node).get("training", True)


def _arguments_by_name(node: Node, names: Any) -> dict[str, Any]:
    """Return the node's arguments by the given names, for a function without a signature of its own."""
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _flat(values: Any) -> list[Any]:
    """Return all values in nested lists."""
    return [inner for value in values for inner in _flat(value)] if isinstance(values, tuple | list) else [values]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


def _attribute(root: nn.Module | None, path: str) -> Any:
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name, None)
    return value
