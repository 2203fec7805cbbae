"""A graph with our ops in it, in place of what they can do."""

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

    root: the module that paths in the graph begin at, None where it has none. where: what findings say of it.
    crp, fusion, labels, fold: what is wanted. channels_last: compute in channels-last memory where anything changes.
    frozen: the weights are constants of the graph's module.
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
        self.wanted = {"crp": crp, "fusion": fusion, "labels": labels}
        self.fold, self.channels_last, self.frozen = fold, channels_last, frozen
        self.findings: list[Finding] = []
        self.nodes: list[Node] = []
        """What was replaced; no longer part of the graph."""
        self._gone: set[Node] = set()
        self._now: dict[Node, Node] = {}  # what stands for a node that was replaced
        self._place = {node: i for i, node in enumerate(graph.nodes)}
        self._found_at: list[tuple[int, Finding]] = []

    def run(self) -> bool:
        """Whether the graph is another now."""
        folded = freezing.fold_norms(self.graph) if self.frozen else 0
        chains = self._sort("crp", matching.chains(self.graph, *self._read()))
        for chain in chains:
            self._found("crp", str(chain), chain.out)
            if chain.pools_only:
                self._pools([stage.pooled for stage in chain.stages])
            else:
                self._replace(chain.out, chain.nodes, lambda chain=chain: self._crp(chain))
        self._erase()
        pooled = {self._current(chain.x) for chain in chains if not chain.pools_only}
        for join in self._sort("fusion", matching.joins(self.graph, *self._read(), pooled)):
            self._replace(join.out, join.nodes, lambda join=join: self._fusion(join))
            self._found("fusion", str(join), join.out)
        self._erase()
        for tail in self._sort("labels", matching.labels(self.graph, *self._read())):
            self._replace(tail.out, tail.nodes, lambda tail=tail: self._labels(tail))
            self._found("labels", "upsampling and argmax", tail.out)
        self._erase()
        self._pools(self._sort("crp", matching.pools(self.graph, self._read()[0])), tell=True)
        self._erase()
        made = set(self._now.values())
        if self.channels_last and (made or self.frozen):
            made |= formats.begin(self.graph, self._read()[1])
        formats.keep(self.graph, self._read()[1], made)
        self.findings = [finding for _, finding in sorted(self._found_at, key=lambda found: found[0])]
        return bool(made or folded)

    def _read(self) -> tuple[Reader, Effects]:
        """The graph as it is by now."""
        return Reader(self.graph, self.root), Effects(self.graph, self.root)

    def _erase(self) -> None:
        """Take out what was replaced."""
        for node in reversed(list(self.graph.nodes)):
            if node in self._gone and not node.users:
                self.graph.erase_node(node)

    def _pools(self, pools: Sequence[Node], tell: bool = False) -> None:
        """Replace pools; those of the same map are made of each other."""
        reader, effects = self._read()
        groups: dict[Node, list[Node]] = {}
        for node in pools:
            groups.setdefault(reader.pool(node).x, []).append(node)  # type: ignore[union-attr]
        for x, group in groups.items():
            first, last = (sorted(group, key=effects.place.__getitem__)[i] for i in (0, -1))
            steps = {node: reader.pool(node).steps for node in group}  # type: ignore[union-attr]
            if effects.same_mode(group) and effects.unwritten(x, first, last):
                self._pyramid(x, first, sorted(group, key=steps.__getitem__), steps)
            else:
                for node in group:
                    self._pyramid(x, node, [node], steps)
        sizes = {node: f"{k}x{k}" for node in pools if (k := reader.pool(node).kernel[0])}  # type: ignore[union-attr]
        for size in dict.fromkeys(sizes.values() if tell else ()):
            same = [node for node in pools if sizes[node] == size]
            self._found("pool", f"{len(same)} of {size}", same[0])

    def _pyramid(self, x: Node, first: Node, pools: Sequence[Node], steps: dict[Node, int]) -> None:
        """The pools of one map, from the smallest to the largest, in the place of `first`."""
        whole = below = self._current(x)
        done, made = 0, []
        for node in pools:
            with self.graph.inserting_before(first):
                new = self.graph.call_function(running.run_pool, (below, steps[node], whole, done))
            below, done = new, steps[node]
            made.append(new)
        for node, new in zip(pools, made, strict=True):
            self._put(node, [node], new)

    def _sort(self, kind: str, found: Iterable[Any]) -> list[Any]:
        matches: list[Any] = []
        used: set[Node] = set()
        for match in found if self.wanted[kind] else ():
            if isinstance(match, matching.Refusal):
                self._found(match.kind, match.what, match.node, match.reason)
            elif isinstance(match, Node) or not used.intersection(match.nodes):
                matches.append(match)
                used.update([] if isinstance(match, Node) else match.nodes)
        return matches

    def _found(self, kind: str, what: str, out: Node, reason: str | None = None) -> None:
        where = ".".join(filter(None, [self.where, _path(out)]))
        self._found_at.append((self._place.get(out, len(self._place)), Finding(where, kind, what, reason)))

    def _replace(self, out: Node, nodes: list[Node], make: Any) -> None:
        with self.graph.inserting_before(out):
            new = make()
        self._put(out, nodes, new)

    def _put(self, out: Node, nodes: list[Node], new: Node) -> None:
        new.meta = dict(out.meta)
        out.replace_all_uses_with(new)
        self._now[out] = new
        self.nodes += nodes
        self._gone.update(nodes)

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
            return re.sub(r"^L\['\w+'\]\.?", "", str(path))
    return ""
