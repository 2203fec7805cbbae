"""Replacement: put our ops into a graph in place of the patterns that they compute."""

import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from ..ops import reference
from . import formats, freezing, matching, running
from .effects import Effects
from .reading import Conv, Reader, Resize, Source
from .report import Finding


class Rewriter:
    """Rewrites one graph.

    root: the module that paths in the graph begin at, None where it has none. where: the graph's path in findings.
    crp, fusion, labels: replace these. fold: fold two 1x1 convolutions in a row into one. channels_last: compute in
    channels-last memory where anything changes. frozen: the weights are constants of the graph's module.
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
        channels_last: bool = False,
        frozen: bool = False,
    ) -> None:
        self.graph, self.root, self.where = graph, root, where
        self.enabled = {"crp": crp, "fusion": fusion, "labels": labels}
        self.fold, self.channels_last, self.frozen = fold, channels_last, frozen
        self.findings: list[Finding] = []
        self._replaced: set[Node] = set()
        self._substitutes: dict[Node, Node] = {}  # for each replaced node
        self._index = {node: i for i, node in enumerate(graph.nodes)}
        self._findings: list[tuple[int, Finding]] = []

    def run(self) -> bool:
        """Rewrite the graph; return whether it has changed."""
        folded = freezing.fold_norms(self.graph) if self.frozen else 0
        chains = self._select("crp", matching.chains(self.graph, *self._read()))
        for chain in chains:
            self._report("crp", str(chain), chain.out)
            if chain.pools_only:
                self._pools([stage.pooled for stage in chain.stages])
            else:
                self._replace(chain.out, chain.nodes, lambda chain=chain: self._crp(chain))
        self._erase()
        pooled = {self._current(chain.x) for chain in chains if not chain.pools_only}
        for join in self._select("fusion", matching.joins(self.graph, *self._read(), pooled)):
            self._replace(join.out, join.nodes, lambda join=join: self._fusion(join))
            self._report("fusion", str(join), join.out)
        self._erase()
        for tail in self._select("labels", matching.labels(self.graph, *self._read())):
            self._replace(tail.out, tail.nodes, lambda tail=tail: self._labels(tail))
            self._report("labels", "upsampling and argmax", tail.out)
        self._erase()
        self._pools(self._select("crp", matching.pools(self.graph, self._read()[0])), tell=True)
        self._erase()
        created = set(self._substitutes.values())
        if self.channels_last and (created or self.frozen):
            created |= formats.to_channels_last(self.graph, self._read()[1])
        formats.keep(self.graph, self._read()[1], created)
        self.findings = [finding for _, finding in sorted(self._findings, key=lambda entry: entry[0])]
        return bool(created or folded)

    def _read(self) -> tuple[Reader, Effects]:
        """Return a reader and the effects of the graph as it is by now."""
        return Reader(self.graph, self.root), Effects(self.graph, self.root)

    def _erase(self) -> None:
        """Erase the nodes that were replaced."""
        for node in reversed(list(self.graph.nodes)):
            if node in self._replaced and not node.users:
                self.graph.erase_node(node)

    def _pools(self, pools: Sequence[Node], tell: bool = False) -> None:
        """Replace pools; those of the same map are computed from each other."""
        reader, effects = self._read()
        groups: dict[Node, list[Node]] = {}
        for node in pools:
            groups.setdefault(reader.pool(node).x, []).append(node)  # type: ignore[union-attr]
        for x, group in groups.items():
            first, last = (sorted(group, key=effects.index.__getitem__)[i] for i in (0, -1))
            steps = {node: reader.pool(node).steps for node in group}  # type: ignore[union-attr]
            if effects.same_mode(group) and effects.unwritten(x, first, last):
                self._pyramid(x, first, sorted(group, key=steps.__getitem__), steps)
            else:
                for node in group:
                    self._pyramid(x, node, [node], steps)
        sizes = {node: f"{k}x{k}" for node in pools if (k := reader.pool(node).kernel[0])}  # type: ignore[union-attr]
        for size in dict.fromkeys(sizes.values() if tell else ()):
            same = [node for node in pools if sizes[node] == size]
            self._report("pool", f"{len(same)} of {size}", same[0])

    def _pyramid(self, x: Node, first: Node, pools: Sequence[Node], steps: dict[Node, int]) -> None:
        """Replace the pools of one map, from the smallest to the largest, at the position of `first`."""
        source = current = self._current(x)
        steps_done, created = 0, []
        for node in pools:
            with self.graph.inserting_before(first):
                new = self.graph.call_function(running.run_pool, (current, steps[node], source, steps_done))
            current, steps_done = new, steps[node]
            created.append(new)
        for node, new in zip(pools, created, strict=True):
            self._substitute(node, [node], new)

    def _select(self, kind: str, candidates: Iterable[Any]) -> list[Any]:
        """Return the matches that do not overlap earlier ones, and report the refusals."""
        matches: list[Any] = []
        used: set[Node] = set()
        for match in candidates if self.enabled[kind] else ():
            if isinstance(match, matching.Refusal):
                self._report(match.kind, match.what, match.node, match.reason)
            elif isinstance(match, Node) or not used.intersection(match.nodes):
                matches.append(match)
                used.update([] if isinstance(match, Node) else match.nodes)
        return matches

    def _report(self, kind: str, what: str, out: Node, reason: str | None = None) -> None:
        where = ".".join(filter(None, [self.where, _path(out)]))
        self._findings.append((self._index.get(out, len(self._index)), Finding(where, kind, what, reason)))

    def _replace(self, out: Node, nodes: list[Node], make: Any) -> None:
        with self.graph.inserting_before(out):
            new = make()
        self._substitute(out, nodes, new)

    def _substitute(self, out: Node, nodes: list[Node], new: Node) -> None:
        new.meta = dict(out.meta)
        out.replace_all_uses_with(new)
        self._substitutes[out] = new
        self._replaced.update(nodes)

    def _crp(self, chain: matching.Chain) -> Node:
        groups = chain.stages[0].conv.groups
        steps = [self._step(stage.conv) for stage in chain.stages]
        out = self.graph.call_function(running.run_crp, (self._current(chain.x), steps, groups))
        return self._plus(out, chain.others)

    def _plus(self, out: Node, others: Iterable[Node]) -> Node:
        for other in others:
            out = self.graph.call_function(operator.add, (out, self._current(other)))
        return out

    def _fusion(self, join: matching.Join) -> Node:
        inputs = [self._current(term.x) for term in join.terms]
        steps = [[self._step(conv) for conv in term.convs] for term in join.terms]
        targets = [term.resize and self._target(term.resize) for term in join.terms]
        activation = "none" if join.others else join.activation
        arguments = (inputs, steps, targets, activation, join.align_corners, self.fold)
        out = self._plus(self.graph.call_function(running.run_fusion, arguments), join.others)
        if activation == join.activation:
            return out
        return self.graph.call_function(reference.ACTIVATIONS[join.activation], (out,))

    def _labels(self, tail: matching.Labels) -> Node:
        resize = tail.resize
        arguments = (self._current(resize.x), self._target(resize), resize.align_corners)
        return self.graph.call_function(running.run_labels, arguments)

    def _target(self, resize: Resize) -> Any:
        return self._current((resize.size, resize.scale, resize.recomputed))

    def _step(self, conv: Conv) -> Any:
        norm = conv.norm and (*(self._parameter(source) for source in conv.norm[:4]), self._current(conv.norm.eps))
        return self._parameter(conv.weight), self._parameter(conv.bias), norm

    def _parameter(self, source: Source | None) -> Node | None:
        return self.graph.get_attr(source) if isinstance(source, str) else self._current(source)

    def _current(self, value: Any) -> Any:
        """Return the value with each replaced node exchanged for the one that stands for it now."""

        def substitute(node: Node) -> Node:
            while node in self._substitutes:
                node = self._substitutes[node]
            return node

        return map_arg(value, substitute)


def _path(node: Node) -> str:
    """Return the path of the module whose forward the node is in, "" for the model itself."""
    for path, cls in reversed((node.meta.get("nn_module_stack") or {}).values()):
        if cls is nn.Sequential or not str(cls.__module__).startswith("torch.nn.modules."):
            return re.sub(r"^L\['\w+'\]\.?", "", str(path))
    return ""
