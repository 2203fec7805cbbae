"""Side effects in a graph: which nodes share memory, who writes into it, and where gradients or autocast are switched.

A match computes at once, in the place of its last node, what its nodes compute one after another. `Effects.why_not`
says what stands against that. Dynamo's graphs carry an example of each value, and views share its storage.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

# operator functions that write into their first argument
IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "setitem", "iand", "ior", "ixor", "ipow")
# functions of torch._C and torch.amp that open or close a mode, by the beginning of their name
OPENING, CLOSING = ("_enter", "_push"), ("_exit", "_pop")


class Effects:
    """Who writes where, in one graph; root: the module that called modules are in, None where none is called."""

    def __init__(self, graph: Graph, root: nn.Module | None) -> None:
        self.root = root
        self.place = {node: i for i, node in enumerate(graph.nodes)}
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
        """The nodes whose memory the node writes into."""
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
        given = arguments_of(node)
        written = _nodes([node.kwargs.get("out")])
        if name in IN_PLACE or (name.endswith("_") and not name.endswith("__")) or given.get("inplace"):
            written += _nodes(node.args[:1] or list(node.kwargs.values())[:1])
        if name == "batch_norm" and given.get("training"):
            written += _nodes([given.get("running_mean"), given.get("running_var")])
        return written

    def writes(self, node: Node) -> list[Node]:
        """All that write into the memory that the node's value lies in."""
        return self._writes.get(self._memory[node], [])

    def members(self, node: Node) -> list[Node]:
        """All nodes whose values lie in the same memory, in the graph's order."""
        return self._members[self._memory[node]]

    def same_mode(self, nodes: Iterable[Node]) -> bool:
        return len({self._mode[node] for node in nodes}) == 1

    def unwritten(self, node: Node, start: Node, end: Node) -> bool:
        """Whether the node's memory stays as it is from `start` to `end`."""
        first, last = self.place[start], self.place[end]
        return not any(first < self.place[writer] < last for writer in self.writes(node))

    def why_not(self, nodes: Sequence[Node], out: Node, fresh: Callable[[Node], bool]) -> str | None:
        """What stands against computing all `nodes` at once in the place of `out`, the last of them.

        fresh: whether a node without an example of its value is known to make new memory.
        """
        inside = set(nodes)
        if not self.same_mode(nodes):
            return "gradients or autocast are switched inside it"
        reads: dict[Node, list[int]] = {}  # what comes from outside, and where it is read
        for user in nodes:
            for node in user.all_input_nodes:
                if node not in inside:
                    reads.setdefault(node, []).append(self.place[user])
                elif not self.unwritten(node, node, user):
                    return "a result inside it is written to before its use"
        for node, places in reads.items():
            for writer in self.writes(node):
                at = self.place[writer]
                inner = writer in inside
                if (inner and at < max(places)) or (not inner and min(places) < at < self.place[out]):
                    return "an input is written to between its uses"
        seen = any(self._seen(node, target, inside, out, fresh) for node in nodes for target in self.written(node))
        return "it writes into a tensor that is used elsewhere" if seen else None

    def _seen(self, writer: Node, target: Node, inside: set[Node], out: Node, fresh: Callable[[Node], bool]) -> bool:
        """Whether anything outside sees what `writer`, which would be gone, writes into the memory of `target`."""
        members = self.members(target)
        if members[0].op in ("placeholder", "get_attr"):
            return True
        if members[0] not in inside and value_of(members[0]) is None and not fresh(members[0]):
            return True
        start, end = self.place[writer], self.place[out]
        earlier = [node for node in members if self.place[node] < end]  # those after `out` come from it
        return any(user not in inside and self.place[user] > start for node in earlier for user in node.users)


def value_of(node: Any) -> Any:
    """The example of a node's value that Dynamo or AOTAutograd has left, None where there is none."""
    return node.meta.get("example_value", node.meta.get("val")) if isinstance(node, Node) else None


def arguments_of(node: Node, function: Callable[..., Any] | None = None) -> dict[str, Any]:
    """The node's arguments by the names that the function gives them, nothing where it does not say."""
    try:
        bound = inspect.signature(function or node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return {}
    return bound.arguments


def _follow_modes(node: Node, modes: list[Any]) -> None:
    """Keep `modes` as they are behind the node."""
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
        modes.append((name, node))  # it has no result, so it may switch anything


def _is_internal(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("torch._")


def _storage(value: Any) -> Any:
    """A key for the memory of a value; of a tuple's, where all its tensors share one."""
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
    """All nodes in a nest of lists."""
    found: list[Node] = []
    torch.fx.node.map_arg(values, lambda node: found.append(node) or node)  # type: ignore[func-returns-value]
    return found


def _mutable(target: Any) -> bool:
    one = isinstance(target, torch._ops.OpOverload)
    overloads = [target] if one else [getattr(target, name) for name in target.overloads()]
    return any(overload._schema.is_mutable for overload in overloads)
