"""A graph with our ops in it, in place of what they can do."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from . import matching, running
from .reading import Conv, Reader, Source
from .report import Finding


class Rewriter:
    """Rewrites one graph.

    root: the module that paths in the graph begin at, None where it has none. where: what findings say of it.
    crp, fusion, labels, fold: what is wanted.
    """

    def __init__(
        self,
        graph: Graph,
        root: nn.Module | None,
        where: str,
        crp: bool = True,
        fusion: bool = True,
        labels: bool = True,
        fold: bool = True,
    ) -> None:
        self.graph, self.root, self.where = graph, root, where
        self.wanted = {"crp": crp, "fusion": fusion, "labels": labels}
        self.fold = fold
        self.findings: list[Finding] = []
        self.nodes: list[Node] = []
        """What was replaced; no longer part of the graph."""
        self._now: dict[Node, Node] = {}  # what stands for a node that was replaced

    def run(self) -> bool:
        """Whether anything was replaced."""
        reader = Reader(self.graph, self.root)
        chains = self._sort("crp", matching.chains(self.graph, reader))
        joins = self._sort("fusion", matching.joins(self.graph, reader, chains))
        labels = list(matching.labels(self.graph, reader)) if self.wanted["labels"] else []
        for chain in chains:
            self._found("crp", str(chain), chain.out)
            if chain.pools_only:
                self._pools([stage.x for stage in chain.stages])
            else:
                self._replace(chain.out, chain.nodes, lambda chain=chain: self._crp(chain))
        for join in joins:
            self._replace(join.out, join.nodes, lambda join=join: self._fusion(join))
            self._found("fusion", str(join), join.out)
        for tail in labels:
            self._replace(tail.out, tail.nodes, lambda tail=tail: self._labels(tail))
            self._found("labels", "upsampling and argmax", tail.out)
        pools = [node for node in self._sort("crp", matching.pools(self.graph, reader)) if node not in self.nodes]
        if pools:
            self._pools(pools)
            self._found("pool", f"{len(pools)} of 5x5", pools[0])
        for node in reversed(self.nodes):
            if not node.users:
                self.graph.erase_node(node)
        return any(finding.replaced for finding in self.findings)

    def _pools(self, pools: Iterable[Node]) -> None:
        for node in pools:
            inputs = tuple(node.all_input_nodes)
            self._replace(node, [node], lambda inputs=inputs: self.graph.call_function(running.run_pool, inputs))

    def _sort(self, kind: str, found: Iterable[Any]) -> list[Any]:
        matches = []
        for match in found if self.wanted[kind] else ():
            if isinstance(match, matching.Refusal):
                if match.node not in self.nodes:
                    self._found(match.kind, match.what, match.node, match.reason)
            else:
                matches.append(match)
        return matches

    def _found(self, kind: str, what: str, out: Node, reason: str | None = None) -> None:
        where = ".".join(filter(None, [self.where, _path(out)]))
        self.findings.append(Finding(where, kind, what, reason))

    def _replace(self, out: Node, nodes: list[Node], make: Any) -> None:
        with self.graph.inserting_before(out):
            new = make()
        new.meta = {key: value for key, value in out.meta.items() if key in ("example_value", "val", "stack_trace")}
        out.replace_all_uses_with(new)
        self._now[out] = new
        self.nodes += nodes

    def _crp(self, chain: matching.Chain) -> Node:
        groups = chain.stages[0].groups
        steps = [self._step(stage) for stage in chain.stages]
        out = self.graph.call_function(running.run_crp, (self._current(chain.x), steps, groups))
        for other in chain.others:
            out = self.graph.call_method("add", (out, self._current(other)))
        return out

    def _fusion(self, join: matching.Join) -> Node:
        inputs = [self._current(term.x) for term in join.terms]
        steps = [[self._step(conv) for conv in term.convs] for term in join.terms]
        targets = [term.resize and self._target(term.resize) for term in join.terms]
        arguments = (inputs, steps, targets, join.activation, join.align_corners, self.fold)
        return self.graph.call_function(running.run_fusion, arguments)

    def _labels(self, tail: matching.Labels) -> Node:
        resize = tail.resize
        arguments = (self._current(resize.x), self._target(resize), resize.align_corners)
        return self.graph.call_function(running.run_labels, arguments)

    def _target(self, resize: matching.Resize) -> Any:
        return self._current((resize.size, resize.scale))

    def _step(self, conv: Conv) -> Any:
        norm = conv.norm and (*(self._parameter(source) for source in conv.norm[:4]), conv.norm.eps)
        return self._parameter(conv.weight), self._parameter(conv.bias), norm

    def _parameter(self, source: Source | None) -> Node | None:
        return self.graph.get_attr(source) if isinstance(source, str) else self._current(source)

    def _current(self, value: Any) -> Any:
        """The same with what stands for its nodes by now."""

        def now(node: Node) -> Node:
            while node in self._now:
                node = self._now[node]
            return node

        return map_arg(value, now)


def _path(node: Node) -> str:
    """The module whose forward the node is in, "" for the network itself."""
    for path, kind in reversed((node.meta.get("nn_module_stack") or {}).values()):
        if kind is nn.Sequential or not str(kind.__module__).startswith("torch.nn.modules."):
            return str(path).removeprefix("L['self']").removeprefix(".")
    return ""
