"""What a node of a graph computes, whether it calls a module, a function or a method.

In torch.fx's graphs modules are called and weights have a path; in Dynamo's functions are, and weights are nodes.
"""

import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.nn.utils.parametrize import type_before_parametrizations

from .. import children

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
    """Without antialias and recompute_scale_factor."""


class Activation(NamedTuple):
    x: Node
    name: str


class Reader:
    """Reads the nodes of one graph; root: the module that paths begin at, None where no module is called."""

    def __init__(self, graph: Graph, root: nn.Module | None) -> None:
        self.graph, self.root = graph, root
        self.place = {node: i for i, node in enumerate(graph.nodes)}
        self.conv = self._once(self._conv)
        self.pool = self._once(self._pool)
        self.resize = self._once(self._resize)
        self.activation = self._once(self._activation)

    def module(self, node: Node) -> nn.Module | None:
        """What the node calls, if that is a module without hooks."""
        if node.op != "call_module" or self.root is None:
            return None
        module = self.root.get_submodule(str(node.target))
        return None if children.has_hooks(module) else module

    def addition(self, node: Any) -> tuple[Any, Any] | None:
        """The two that are added, in place or not."""
        if not isinstance(node, Node):
            return None
        if node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.add) or (
            node.op == "call_method" and node.target in ("add", "add_")
        ):
            scaled = set(node.kwargs) - {"other"} or len(node.args) + len(node.kwargs) != 2
            return None if scaled else (node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs["other"])
        return None

    def written(self, node: Node) -> Node | None:
        """The tensor that the node writes into, None where it makes a new one."""
        first = node.args[0] if node.args else None
        if node.op == "call_module":
            assert self.root is not None
            writes = bool(getattr(self.root.get_submodule(str(node.target)), "inplace", False))  # with hooks too
        elif node.op == "call_method":
            writes = str(node.target).endswith("_") and not str(node.target).endswith("__")
        else:
            name = str(getattr(node.target, "__name__", ""))
            writes = name in IN_PLACE or name.endswith("_") or bool(arguments_of(node).get("inplace"))
        return first if writes and isinstance(first, Node) else None

    def shape(self, source: Any) -> tuple[int, ...] | None:
        """Of a tensor, where it is known."""
        if isinstance(source, str):
            value = _attribute(self.root, source)
        elif isinstance(source, Node):
            value = source.meta.get("example_value", source.meta.get("val"))
            if value is None and source.op == "get_attr":
                value = _attribute(self.root or source.graph.owning_module, str(source.target))
        else:
            return None
        return tuple(value.shape) if isinstance(value, Tensor) else None

    def _conv(self, node: Node) -> Conv | None:
        found = self._convolution(node)
        if found is not None:
            return found
        unchanged = self._unchanged(node)
        if unchanged is not None and len(unchanged.users) == 1:
            found = self.conv(unchanged)
            return found and found._replace(nodes=(*found.nodes, node))
        normalised = self._norm(node)
        if normalised is None:
            return None
        x, norm = normalised
        found = self._convolution(x) if len(x.users) == 1 else None
        return found and found._replace(norm=norm, nodes=(*found.nodes, node))

    def _unchanged(self, node: Node) -> Node | None:
        """What the node hands on as it came."""
        module = self.module(node)
        kept = type(module) is nn.Identity or (isinstance(module, nn.Dropout | nn.Dropout2d) and not module.training)
        return node.all_input_nodes[0] if kept else None

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
        return (x, norm) if isinstance(x, Node) else None

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
        if not isinstance(x, Node) or any(isinstance(f, Node) for f in facts):
            return None
        kernel, stride, padding, dilation = map(_pair, facts[:4])
        return Pool(x, kernel, stride, padding, dilation, bool(facts[4]))

    def _resize(self, node: Node) -> Resize | None:
        module = self.module(node)
        given: dict[str, Any]
        if isinstance(module, nn.Upsample):
            x = arguments_of(node, module.forward).get("input")
            given = {"size": module.size, "scale_factor": module.scale_factor, "mode": module.mode}
            given |= {"align_corners": module.align_corners, "plain": not module.recompute_scale_factor}
        elif node.op == "call_function" and node.target in (F.interpolate, F.upsample):
            given = arguments_of(node)
            x = given.get("input")
            given["plain"] = not given.get("recompute_scale_factor") and not given.get("antialias")
        else:
            return None
        if not isinstance(x, Node):
            return None
        size, scale = given.get("size"), given.get("scale_factor")
        return Resize(x, size, scale, given.get("mode", "nearest"), bool(given.get("align_corners")), given["plain"])

    def _activation(self, node: Node) -> Activation | None:
        module = self.module(node)
        first = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(first, Node):
            return None
        if type(module) in (nn.ReLU, nn.ReLU6):
            return Activation(first, "relu6" if type(module) is nn.ReLU6 else "relu")
        if type(module) is nn.Hardtanh:
            return Activation(first, "relu6") if (module.min_val, module.max_val) == (0, 6) else None
        if node.op == "call_function" and node.target in (F.relu, torch.relu, F.relu_, torch.relu_):
            return Activation(first, "relu")
        if node.op == "call_function" and node.target is F.relu6:
            return Activation(first, "relu6")
        if node.op == "call_method" and node.target in ("relu", "relu_"):
            return Activation(first, "relu")
        clamps = node.op == "call_function" and node.target in (F.hardtanh, F.hardtanh_, torch.clamp)
        if clamps or (node.op == "call_method" and node.target in ("clamp", "clamp_")):
            given = _positional(node, ("input", "min", "max"))
            bounds = (given.get("min", given.get("min_val")), given.get("max", given.get("max_val")))
            return Activation(first, "relu6") if bounds == (0, 6) else None
        return None

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
IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "setitem", "iand", "ior", "ixor", "ipow")


def arguments_of(node: Node, function: Callable[..., Any] | None = None) -> dict[str, Any]:
    """The node's arguments by the names that the function gives them, nothing where it does not say."""
    try:
        bound = inspect.signature(function or node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return {}
    return bound.arguments


def _positional(node: Node, names: Any) -> dict[str, Any]:
    """The same for a function without a signature of its own."""
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


def _attribute(root: nn.Module | None, path: str) -> Any:
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name, None)
    return value
