"""What a node of a graph computes, whether it calls a module, a function or a method.

In torch.fx's graphs modules are called and weights have a path; in Dynamo's functions are, and weights are nodes.
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

Source = Node | str
"""A parameter: the node that holds it, or its path from the root."""


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
    shape: tuple[int, ...]
    """Of the weight."""
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
        """How many 5x5 pools with stride 1 give the same, 0 where none do: two give 9x9, three 13x13."""
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
    plain: bool
    """Without antialias."""
    recomputed: bool
    """Whether the scale serves for the size alone."""

    @property
    def bilinear(self) -> bool:
        return self.mode == "bilinear" and self.plain


class Activation(NamedTuple):
    x: Node
    name: str
    nodes: tuple[Node, ...]


class Addition(NamedTuple):
    operands: tuple[Any, ...]
    nodes: tuple[Node, ...]
    """Of a sum over torch.stack, that too."""


class Reader:
    """Reads the nodes of one graph; root: the module that paths begin at, None where no module is called."""

    def __init__(self, graph: Graph, root: nn.Module | None) -> None:
        self.graph, self.root = graph, root
        self.unchanged = self._once(self._unchanged)
        self.conv = self._once(self._conv)
        self.pool = self._once(self._pool)
        self.resize = self._once(self._resize)
        self.activation = self._once(self._activation)

    def module(self, node: Node) -> nn.Module | None:
        """What the node calls, if that is a module without hooks."""
        if node.op != "call_module" or self.root is None:
            return None
        module = self.root.get_submodule(str(node.target))
        return None if conv_parameters.has_hooks(module) else module

    def addition(self, node: Any) -> Addition | None:
        """The operands of an addition, in place or not, or of a sum over stacked tensors."""
        if not isinstance(node, Node) or node.op not in ("call_function", "call_method"):
            return None
        function = node.op == "call_function"
        if (function and node.target in ADDITIONS) or (not function and node.target in ADDING):
            given = _positional(node, ("input", "other"))
            if given.pop("alpha", 1) == 1 and given.keys() == {"input", "other"}:
                return Addition((given["input"], given["other"]), (node,))
        if (function and node.target is torch.sum) or (not function and node.target == "sum"):
            return self._stacked(node)
        return None

    def _stacked(self, node: Node) -> Addition | None:
        """A sum over the dimension that torch.stack has made."""
        given = _positional(node, ("input", "dim"))
        stack, dim = given.pop("input", None), given.pop("dim", given.pop("axis", None))
        if given or not isinstance(stack, Node) or stack.target is not torch.stack or len(stack.users) > 1:
            return None
        made = _positional(stack, ("tensors", "dim"))
        tensors, dims = made.pop("tensors", None), dim if isinstance(dim, tuple | list) else (dim,)
        if tuple(dims) != (made.pop("dim", 0),) or made or not isinstance(tensors, tuple | list):
            return None
        return Addition(tuple(tensors), (stack, node))

    def fresh(self, node: Node) -> bool:
        """Whether the node is known to make new memory."""
        known = (self.conv, self.pool, self.addition, self.activation, self.resize)
        return any(read(node) is not None for read in known)

    def mixed(self, out: Node, summands: Iterable[Node]) -> str | None:
        """Why a sum is of more than floating-point tensors of one dtype, None where it is not, or nothing is known."""
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
        """Whether a summand is known to be of another shape than the sum."""
        shapes = [getattr(value_of(n), "shape", None) for n in (node, out)]
        if shapes[0] is None or shapes[1] is None:
            return False
        if len(shapes[0]) != len(shapes[1]):
            return True
        pairs = zip(shapes[0], shapes[1], strict=True)
        return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)

    def through(self, node: Any) -> tuple[Any, tuple[Node, ...]]:
        """What the node's value is of, behind all that hands on values as they come, and these nodes."""
        passed: tuple[Node, ...] = ()
        while (inner := self.unchanged(node)) is not None and len(inner.users) == 1:
            passed = (node, *passed)
            node = inner
        return node, passed

    def shape(self, source: Any) -> tuple[int, ...] | None:
        """Of a tensor, where it is known."""
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
        found = self._convolution(node)
        if found is not None:
            return found
        inner = self.unchanged(node)
        if inner is not None and len(inner.users) == 1:
            found = self.conv(inner)
            return found and found._replace(nodes=(*found.nodes, node))
        normalised = self._norm(node)
        if normalised is None:
            return None
        x, norm = normalised
        x, passed = self.through(x)
        found = self._convolution(x) if len(x.users) == 1 else None
        return found and found._replace(norm=norm, nodes=(*found.nodes, *passed, node))

    def _unchanged(self, node: Node) -> Node | None:
        """What the node hands on as it came, if that is all it does, but for memory and its format."""
        module = self.module(node)
        if node.op == "call_module":
            off = isinstance(module, nn.Dropout | nn.Dropout2d) and not module.training
            kept = off or type(module) is nn.Identity
        elif node.op == "call_method":
            kept = node.target in ("contiguous", "clone") or (node.target == "to" and set(node.kwargs) == MEMORY)
            kept = kept and len(node.args) == 1
        else:
            kept = node.target in DROPOUTS and _training(node) is False
        return node.all_input_nodes[0] if kept and len(node.all_input_nodes) == 1 else None

    def _convolution(self, node: Node) -> Conv | None:
        module = self.module(node)
        weight: Any
        bias: Any
        facts: tuple[Any, ...]
        if isinstance(module, nn.Conv2d) and type_before_parametrizations(module) is nn.Conv2d:
            x = arguments_of(node, module.forward).get("input")
            weight, bias = f"{node.target}.weight", f"{node.target}.bias" if module.bias is not None else None
            facts = (module.stride, module.padding, module.dilation, module.groups)
        elif node.op == "call_function" and node.target in (torch.conv2d, F.conv2d):
            given = _positional(node, ("input", "weight", "bias", "stride", "padding", "dilation", "groups"))
            x, weight, bias = given.get("input"), given.get("weight"), given.get("bias")
            facts = (given.get("stride", 1), given.get("padding", 0), given.get("dilation", 1), given.get("groups", 1))
        else:
            return None
        shape = self.shape(weight)
        if not isinstance(x, Node) or shape is None or len(shape) != 4:
            return None
        if any(isinstance(fact, Node) for fact in _flat(facts)):
            return None
        stride, padding, dilation, groups = facts
        padding = padding if isinstance(padding, str) else _pair(padding)
        return Conv(x, weight, bias, shape, _pair(stride), padding, _pair(dilation), groups, (node,))

    def _norm(self, node: Node) -> tuple[Node, Norm] | None:
        module = self.module(node)
        if type(module) is nn.BatchNorm2d:
            if module.training or module.running_mean is None:
                return None
            x = arguments_of(node, module.forward).get("input")
            own = [f"{node.target}.{name}" for name in (*STATISTICS, *AFFINE)]
            norm = Norm(own[0], own[1], *(own[2:] if module.affine else (None, None)), module.eps)  # type: ignore
        elif node.op == "call_function" and node.target in (F.batch_norm, torch.batch_norm):
            order = (*STATISTICS, *AFFINE) if node.target is F.batch_norm else (*AFFINE, *STATISTICS)
            given = _positional(node, ("input", *order, "training", "momentum", "eps"))
            mean, variance, weight, bias = (given.get(name) for name in (*STATISTICS, *AFFINE))
            if given.get("training") or not isinstance(mean, Node) or not isinstance(variance, Node):
                return None
            x = given.get("input")
            norm = Norm(mean, variance, weight, bias, given.get("eps", 1e-5))
        else:
            return None
        rank = getattr(value_of(x), "ndim", 4)  # of another rank, other dimensions are channels
        return (x, norm) if isinstance(x, Node) and rank == 4 else None

    def _pool(self, node: Node) -> Pool | None:
        module = self.module(node)
        facts: tuple[Any, ...]
        if type(module) is nn.MaxPool2d:
            x = arguments_of(node, module.forward).get("input")
            facts = (module.kernel_size, module.stride, module.padding, module.dilation, module.return_indices)
        elif node.op == "call_function" and node.target in (F.max_pool2d, torch.max_pool2d):
            names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
            given = _positional(node, names)
            x, size = given.get("input"), given.get("kernel_size")
            stride, padding, dilation = given.get("stride") or size, given.get("padding", 0), given.get("dilation", 1)
            facts = (size, stride, padding, dilation, given.get("return_indices"))
        else:
            return None
        if not isinstance(x, Node) or any(isinstance(fact, Node) for fact in _flat(facts)):
            return None
        kernel, stride, padding, dilation = map(_pair, facts[:4])
        return Pool(x, kernel, stride, padding, dilation, bool(facts[4]))

    def _resize(self, node: Node) -> Resize | None:
        module = self.module(node)
        given: dict[str, Any]
        if isinstance(module, nn.Upsample):
            x = arguments_of(node, module.forward).get("input")
            given = {"size": module.size, "scale_factor": module.scale_factor, "mode": module.mode}
            given |= {"align_corners": module.align_corners, "recompute_scale_factor": module.recompute_scale_factor}
        elif node.op == "call_function" and node.target in (F.interpolate, F.upsample):
            given = arguments_of(node)
            x = given.get("input")
        else:
            return None
        if not isinstance(x, Node):
            return None
        size, scale = given.get("size"), given.get("scale_factor")
        mode, corners = given.get("mode", "nearest"), bool(given.get("align_corners"))
        return Resize(
            x, size, scale, mode, corners, not given.get("antialias"), bool(given.get("recompute_scale_factor"))
        )

    def _activation(self, node: Node) -> Activation | None:
        given = _positional(node, ("input", "min", "max"))
        first = given.get("input")
        name = self._activation_name(node, given)
        if name is None or not isinstance(first, Node):
            return None
        x, passed = self.through(first)
        return Activation(x, name, (*passed, node))

    def _activation_name(self, node: Node, given: dict[str, Any]) -> str | None:
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
        bounds = (given.get("min", given.get("min_val")), given.get("max", given.get("max_val")))
        if name in ("relu", "relu6"):
            return name
        if name == "hardtanh":
            return "relu6" if bounds == (0, 6) else None
        if name == "threshold":
            bounds = (given.get("min", given.get("threshold")), given.get("max", given.get("value")))
            return "relu" if bounds == (0, 0) else None
        if getattr(value_of(node), "requires_grad", False):
            return None  # at the bounds themselves, the gradient of clamp is 1 and that of relu 0
        if name in ("clamp", "clip"):
            return "relu" if bounds == (0, None) else "relu6" if bounds == (0, 6) else None
        return "relu" if name == "clamp_min" and bounds == (0, None) else None

    def _once(self, read: Callable[[Node], "_R | None"]) -> Callable[[Any], "_R | None"]:
        """The same for anything, remembered."""
        known: dict[Node, Any] = {}

        def reading(node: Any) -> Any:
            if not isinstance(node, Node) or node.op not in ("call_module", "call_function", "call_method"):
                return None
            if node not in known:
                known[node] = read(node)
            return known[node]

        return reading


_R = TypeVar("_R")
STATISTICS, AFFINE = ("running_mean", "running_var"), ("weight", "bias")
ADDITIONS = (operator.add, operator.iadd, torch.add)
ADDING = ("add", "add_", "__add__", "__radd__", "__iadd__")
DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout)
MEMORY = {"memory_format"}


def _training(node: Node) -> Any:
    """Whether a dropout drops."""
    if node.target is torch.dropout:
        return _positional(node, ("input", "p", "train")).get("train")
    return arguments_of(node).get("training", True)


def _positional(node: Node, names: Any) -> dict[str, Any]:
    """The same for a function without a signature of its own."""
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _flat(values: Any) -> list[Any]:
    """All in a nest of lists."""
    return [inner for value in values for inner in _flat(value)] if isinstance(values, tuple | list) else [values]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


def _attribute(root: nn.Module | None, path: str) -> Any:
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name, None)
    return value
