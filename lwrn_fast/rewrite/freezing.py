"""Batch normalisations folded into the convolutions before them, in graphs whose weights are constants."""

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from . import running
from .effects import Effects
from .reading import Conv, Reader


def fold_norms(graph: Graph) -> int:
    """Fold every batch normalisation by running statistics into the convolution before it; return their number.

    The weights must be attributes of the graph's module, as Dynamo leaves them while it freezes parameters. Folded
    weights are new attributes, in channels-last memory.
    """
    graph_module = graph.owning_module
    assert graph_module is not None
    reader, effects = Reader(graph, None), Effects(graph, None)
    ends = [node for node in graph.nodes if _may_fold(node, reader, effects)]
    for i, node in enumerate(ends):
        conv = Reader(graph, None).conv(node)  # read again: its input may be a folded one by now
        assert conv is not None
        _fold(graph_module, conv, node, f"_folded_{i}")
    return len(ends)


def _may_fold(node: Node, reader: Reader, effects: Effects) -> bool:
    """Return whether a normalisation ends at the node, with constant weights that nothing writes to."""
    conv = reader.conv(node)
    if conv is None or conv.norm is None or node is not conv.nodes[-1] or reader.unchanged(node) is not None:
        return False
    sources = [source for source in (conv.weight, conv.bias, *conv.norm[:4]) if source is not None]
    constants = all(isinstance(s, Node) and s.op == "get_attr" and not effects.writes(s) for s in sources)
    return constants and effects.why_not(conv.nodes, node, lambda _: True) is None


def _number(value: object) -> float:
    """Return a number, also where Dynamo captures it as one that may change; reading it there guards its value."""
    return float(value.meta["example_value"] if isinstance(value, Node) else value)  # type: ignore[arg-type]


def _fold(graph_module: GraphModule, conv: Conv, out: Node, name: str) -> None:
    def value(source: object) -> Tensor | None:
        return None if source is None else getattr(graph_module, str(source.target))  # type: ignore[attr-defined]

    assert conv.norm is not None
    with torch.no_grad():
        norm = (*(value(source) for source in conv.norm[:4]), _number(conv.norm.eps))
        weight, bias = running._normalised(value(conv.weight), value(conv.bias), norm)  # type: ignore[arg-type]
        weight = weight.contiguous(memory_format=torch.channels_last)
    graph = graph_module.graph
    with graph.inserting_before(out):
        nodes = []
        for part, tensor in (("weight", weight), ("bias", bias)):
            graph_module.register_buffer(f"{name}_{part}", tensor, persistent=False)
            nodes.append(graph.get_attr(f"{name}_{part}"))
            nodes[-1].meta["example_value"] = tensor
        settings = (conv.stride, conv.padding, conv.dilation, conv.groups)
        new = graph.call_function(torch.conv2d, (conv.x, *nodes, *settings))
    new.meta = dict(out.meta)
    out.replace_all_uses_with(new)
    for node in reversed(conv.nodes):
        graph.erase_node(node)
