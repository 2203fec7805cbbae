"""Side effects in a graph: shared memory, writes into it, and switches of gradients or autocast.

A match computes its nodes at once, at the position of its last node. `Effects.why_not` returns the reason against that,
if there is one. Dynamo's graphs carry an example of each value, and views share its storage.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

# Functions of the module operator that write into their first argument.
IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "setitem", "iand", "ior", "ixor", "ipow")
# Prefixes of the functions of torch._C and torch.amp that open or close a mode.
OPENING, CLOSING = ("_enter", "_push"), ("_exit", "_pop")


class Effects:
    """The memory and the writes of one graph. root: the module that holds called modules, None where none is called."""

    def __init__(self, graph: Graph, root: nn.Module | None) -> None:
        self.root = root
        self.index = {node: i for i, node in enumerate(graph.nodes)}
        self._memory: dict[Node, Any] = {}
        self._members: dict[Any, list[Node]] = {}
        self._writes: dict[Any, list[Node]] = {}
        self._mode: dict[Node, Any] = {}
        modes: list[Any] = []
        for node in graph.nodes:
            self._mode[node] = tuple(modes)
            _follow_modes(node, modes)
            written = self.written(node)
            key = _storage(value_of(node)) or (self._memory[written[0]] if written else node)
            self._memory[node] = key
            self._members.setdefault(key, []).append(node)
            for target in written:
                self._writes.setdefault(self._memory[target], []).append(node)

    def written(self, node: Node) -> list[Node]:
        """Return the nodes whose memory the node writes into."""
        if node.op == "call_module":
            if self.root is None:
                return list(node.all_input_nodes)
            module = self.root.get_submodule(str(node.target))  # with hooks too
            return _nodes(node.args[:1]) if getattr(module, "inplace", False) else []
        if node.op == "call_method":
            name = str(node.target)
            in_place = name.endswith("_") and not name.endswith("__")
            if in_place or name.strip("_") in IN_PLACE:
                return _nodes(node.args[:1])
        if node.op != "call_function":
            return []
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return list(node.all_input_nodes)
        if isinstance(node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
            return list(node.all_input_nodes) if _mutable(node.target) else []
        name = str(getattr(node.target, "__name__", ""))
        arguments = arguments_of(node)
        written = _nodes([node.kwargs.get("out")])
        if name in IN_PLACE or (name.endswith("_") and not name.endswith("__")) or arguments.get("inplace"):
            written += _nodes(node.args[:1] or list(node.kwargs.values())[:1])
        if name == "batch_norm" and arguments.get("training"):
            written += _nodes([arguments.get("running_mean"), arguments.get("running_var")])
        return written

    def writes(self, node: Node) -> list[Node]:
        """Return all nodes that write into the memory of the node's value."""
        return self._writes.get(self._memory[node], [])

    def members(self, node: Node) -> list[Node]:
        """Return all nodes whose values share the node's memory, in the graph's order."""
        return self._members[self._memory[node]]

    def same_mode(self, nodes: Iterable[Node]) -> bool:
        """Return whether gradients and autocast are alike at all nodes."""
        return len({self._mode[node] for node in nodes}) == 1

    def unwritten(self, node: Node, start: Node, end: Node) -> bool:
        """Return whether nothing writes into the node's memory between `start` and `end`."""
        first, last = self.index[start], self.index[end]
        return not any(first < self.index[writer] < last for writer in self.writes(node))

    def why_not(self, nodes: Sequence[Node], out: Node, fresh: Callable[[Node], bool]) -> str | None:
        """Return the reason against computing all `nodes` at once at the position of `out`, the last of them.

        fresh: tells whether a node without an example of its value is known to make new memory.
        """
        inside = set(nodes)
        if not self.same_mode(nodes):
            return "gradients or autocast are switched inside it"
        reads: dict[Node, list[int]] = {}  # inputs from outside, and the positions that read them
        for user in nodes:
            for node in user.all_input_nodes:
                if node not in inside:
                    reads.setdefault(node, []).append(self.index[user])
                elif not self.unwritten(node, node, user):
                    return "a result inside it is written to before its use"
        for node, indices in reads.items():
            for writer in self.writes(node):
                written = self.index[writer]
                inner = writer in inside
                if (inner and written < max(indices)) or (not inner and min(indices) < written < self.index[out]):
                    return "an input is written to between its uses"
        seen = any(self._is_seen(node, target, inside, out, fresh) for node in nodes for target in self.written(node))
        return "it writes into a tensor that is used elsewhere" if seen else None

    def _is_seen(self, writer: Node, target: Node, inside: set[Node], out: Node, fresh: Callable[[Node], bool]) -> bool:
        """Return whether anything outside sees the write into `target` of `writer`, a node that would be removed."""
        members = self.members(target)
        if members[0].op in ("placeholder", "get_attr"):
            return True
        if members[0] not in inside and value_of(members[0]) is None and not fresh(members[0]):
            return True
        start, end = self.index[writer], self.index[out]
        earlier = [node for node in members if self.index[node] < end]  # those after `out` come from it
        return any(user not in inside and self.index[user] > start for node in earlier for user in node.users)


def value_of(node: Any) -> Any:
    """Return the example of a node's value that Dynamo or AOTAutograd has left, None where there is none."""
    return node.meta.get("example_value", node.meta.get("val")) if isinstance(node, Node) else None


def arguments_of(node: Node, function: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Return the node's arguments by their names in the function's signature, nothing where it has none."""
    try:
        bound = inspect.signature(function or node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return {}
    return bound.arguments


def _follow_modes(node: Node, modes: list[Any]) -> None:
    """Update `modes` to those behind the node."""
    if node.op != "call_function":
        return
    name = str(getattr(node.target, "__name__", ""))
    if name == "_set_grad_enabled":
        modes[:] = [mode for mode in modes if mode[0] != name] + [(name, node.args[0])]
    elif name.startswith(OPENING):
        modes.append((name, node))
    elif name.startswith(CLOSING):
        modes[:] = [mode for mode in modes if mode[1] not in node.args]
    elif value_of(node) is None and _is_internal(node.target) and name != "_log_api_usage_once":
        modes.append((name, node))  # without a result, it may switch anything


def _is_internal(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("torch._")


def _storage(value: Any) -> Any:
    """Return a key for the memory of a value, or of a tuple whose tensors all share one; None where there is none."""
    tensors = list(_tensors(value))
    try:
        keys = {tensor.untyped_storage()._cdata for tensor in tensors}
    except (NotImplementedError, RuntimeError):  # sparse tensors have none
        return None
    return ("storage", keys.pop()) if len(keys) == 1 else None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _nodes(values: Any) -> list[Node]:
    """Return all nodes in nested lists."""
    nodes: list[Node] = []
    torch.fx.node.map_arg(values, lambda node: nodes.append(node) or node)  # type: ignore[func-returns-value]
    return nodes


def _mutable(target: Any) -> bool:
    is_overload = isinstance(target, torch._ops.OpOverload)
    overloads = [target] if is_overload else [getattr(target, name) for name in target.overloads()]
    return any(overload._schema.is_mutable for overload in overloads)
