"""Chained residual poolings, fusions and label maps among the nodes of a graph.

What is found holds for every input: what depends on sizes is left to running.py, which sees them.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch.fx import Graph, Node

from .reading import Conv, Reader, Resize


class Refusal(NamedTuple):
    """Something close to what our ops do."""

    node: Node
    kind: str
    what: str
    reason: str


class Chain(NamedTuple):
    """Chained residual pooling: `out` = x + the results of the stages + what else is in the same sum."""

    x: Node
    stages: list[Conv]
    others: list[Node]
    out: Node
    nodes: list[Node]
    """All that it replaces, in the graph's order."""
    pools_only: bool
    """Whether its convolutions are of 3x3, as in the original RefineNet."""

    def __str__(self) -> str:
        count = len(self.stages)
        kind = " with 3x3 convolutions: the pools" if self.pools_only else ""
        return f"{count} stage{'s' * (count > 1)} of {self.stages[0].shape[0]} planes{kind}"


class Term(NamedTuple):
    """One summand of a fusion: a map, the 1x1 convolutions it goes through, and the upsampling behind or before."""

    x: Node
    convs: list[Conv]
    """One, or two that follow each other directly."""
    resize: Resize | None
    nodes: list[Node]


class Join(NamedTuple):
    """A fusion; its first term is of the result's size."""

    terms: list[Term]
    activation: str
    align_corners: bool
    out: Node
    nodes: list[Node]

    def __str__(self) -> str:
        return f"{_inputs(len(self.terms))} to {self.terms[0].convs[-1].shape[0]} planes"


class Labels(NamedTuple):
    """Upsampled logits, and the class of the largest."""

    resize: Resize
    out: Node
    nodes: list[Node]


def chains(graph: Graph, reader: Reader) -> Iterator[Chain | Refusal]:
    for node in graph.nodes:
        if reader.addition(node) and not _inner(node, reader):
            found = _chain(node, reader)
            if found is not None:
                yield found


def joins(graph: Graph, reader: Reader, crps: Iterable[Chain]) -> Iterator[Join | Refusal]:
    """Sums with something upsampled in them, and what a chained residual pooling begins with."""
    pooled = {chain.x for chain in crps if not chain.pools_only}
    done: set[Node] = set()
    for node in graph.nodes:
        activation = reader.activation(node)
        inner = activation.x if activation else node
        if inner in done or (activation and len(inner.users) > 1):
            continue
        if not activation and (not reader.addition(node) or _inner(node, reader) or _activated(node, reader)):
            continue
        found = _join(node, inner, activation.name if activation else "none", reader, feeds=node in pooled)
        if found is not None:
            done.add(inner)
            yield found


def labels(graph: Graph, reader: Reader) -> Iterator[Labels]:
    for node in graph.nodes:
        x = _argmax_of(node)
        resize = reader.resize(x)
        if x is not None and resize is not None and len(x.users) == 1 and resize.mode == "bilinear" and resize.plain:
            yield Labels(resize, node, [x, node])


def pools(graph: Graph, reader: Reader) -> Iterator[Node | Refusal]:
    """Of 5x5 with stride 1."""
    for node in graph.nodes:
        pool = reader.pool(node)
        if pool and pool.kernel == (5, 5) and pool.stride == (1, 1):
            reason = pool.why_not_5x5()
            yield node if reason is None else Refusal(node, "pool", "1 of 5x5", reason)


def _chain(out: Node, reader: Reader) -> Chain | Refusal | None:
    terms, additions = _summed(out, reader)
    stage_of: dict[Node, tuple[Conv, Node]] = {}  # what a pool takes, to the stage that begins there
    results = set()
    for term in terms:
        conv = reader.conv(term)
        pool = conv and reader.pool(conv.x)
        if conv and pool and len(conv.x.users) == 1:
            results.add(term)
            stage_of[pool.x] = (conv, term)
    starts = [term for term in terms if term in stage_of and term not in results]
    if len(starts) != 1 or len(stage_of) != len(results):
        return None
    x = at = starts[0]
    stages, nodes = [], list(additions)
    while at in stage_of:
        conv, result = stage_of.pop(at)
        stages.append(conv)
        nodes += [conv.x, *conv.nodes]
        used = {*additions, *([] if result not in stage_of else [stage_of[result][0].x])}
        if any(user not in used for user in result.users):
            return None  # a stage's result is wanted elsewhere
        at = result
    replaced = {x, *(stage.nodes[-1] for stage in stages)}
    others = [term for term in terms if term not in replaced]
    wide = all(stage.shape[2:] == (3, 3) and stage.stride == (1, 1) for stage in stages)
    chain = Chain(x, stages, others, out, sorted(nodes, key=reader.place.__getitem__), wide)
    reason = _why_not_crp(chain, reader)
    if reason is None and not wide:
        reason = _disturbed(chain.nodes, [x, *others], out, reader)
    return chain if reason is None else Refusal(out, "crp", str(chain._replace(pools_only=False)), reason)


def _why_not_crp(chain: Chain, reader: Reader) -> str | None:
    planes, groups = chain.stages[0].shape[0], chain.stages[0].groups
    for stage in chain.stages:
        pool = reader.pool(stage.x)
        reason = (pool and pool.why_not_5x5()) or (None if chain.pools_only else stage.why_not_1x1())
        if reason is not None:
            return reason
        if chain.pools_only:
            continue
        if stage.groups not in (1, planes) or stage.groups != groups:
            return f"a convolution has {stage.groups} groups, neither 1 nor {planes}"
        if stage.shape[:2] != (planes, planes // groups):
            return f"a convolution is from {stage.shape[1] * groups} to {stage.shape[0]} planes"
    return None


def _join(out: Node, inner: Node, activation: str, reader: Reader, feeds: bool) -> Join | Refusal | None:
    summands, nodes = _summed(inner, reader) if reader.addition(inner) else ([inner], [])
    terms = [_term(summand, reader) for summand in summands]
    resized = [reader.resize(summand) for summand in summands]
    if not feeds and (len(terms) < 2 or not any(term and term.resize for term in terms)):
        upsampled = len(terms) > 1 and any(r and r.mode == "bilinear" for r in resized)
        return Refusal(out, "fusion", _inputs(len(terms)), _why_no_term(summands, reader)) if upsampled else None
    what = _inputs(len(terms))
    complete = [term for term in terms if term is not None]
    if len(complete) < len(terms):
        return Refusal(out, "fusion", what, _why_no_term(summands, reader)) if len(terms) > 1 else None
    planes = complete[0].convs[-1].shape[0]
    what += f" to {planes} planes"
    first = [term for term in complete if term.resize is None]
    if not first:
        return Refusal(out, "fusion", what, "every input is upsampled")
    modes = {term.resize.align_corners for term in complete if term.resize}
    if len(modes) > 1:
        return Refusal(out, "fusion", what, "inputs differ in align_corners")
    if any(term.convs[-1].shape[0] != planes for term in complete):
        return Refusal(out, "fusion", what, "inputs differ in planes, and are broadcast")
    ordered = [*first, *(term for term in complete if term.resize)]
    members = {node for term in complete for node in term.nodes} | {*nodes, inner, out}
    join = Join(ordered, activation, modes.pop() if modes else True, out, sorted(members, key=reader.place.__getitem__))
    reason = _disturbed(join.nodes, [term.x for term in ordered], out, reader)
    return join if reason is None else Refusal(out, "fusion", what, reason)


def _inputs(count: int) -> str:
    return f"{count} input{'s' * (count > 1)}"


def _term(node: Node, reader: Reader) -> Term | None:
    """What a summand of a fusion is made of; its parts are of no use to anyone else."""
    nodes: list[Node] = []
    convs: list[Conv] = []
    resize = reader.resize(node)
    if resize is not None:
        if resize.mode != "bilinear" or not resize.plain or len(node.users) > 1:
            return None
        nodes.append(node)
        node = resize.x
    while len(convs) < 2 and len(node.users) == 1:
        conv = reader.conv(node)
        if conv is None or conv.groups != 1 or conv.why_not_1x1() is not None:
            break
        if convs and conv.norm is not None and convs[0].norm is None:
            break
        convs.insert(0, conv)
        nodes += conv.nodes
        node = conv.x
    if not convs:
        return None
    before = reader.resize(node)
    if resize is None and before and before.mode == "bilinear" and before.plain and len(node.users) == 1:
        nodes.append(node)  # a 1x1 convolution and an interpolation may change places
        return Term(before.x, convs, before, nodes)
    return Term(node, convs, resize, nodes)


def _why_no_term(summands: list[Node], reader: Reader) -> str:
    for summand in summands:
        if _term(summand, reader) is None:
            resize = reader.resize(summand)
            if resize and resize.mode != "bilinear":
                return f"an input is upsampled by {resize.mode}"
            conv = reader.conv(resize.x if resize else summand)
            if conv is None:
                return "an input is not the result of a convolution"
            return conv.why_not_1x1() or (
                f"a convolution has {conv.groups} groups" if conv.groups != 1 else "an input is used elsewhere too"
            )
    return "an input is used elsewhere too"


def _summed(out: Node, reader: Reader) -> tuple[list[Node], list[Node]]:
    """The summands of a sum and all its additions; numbers, as sum() begins with, are left out."""
    summands: list[Node] = []
    additions = [out]
    for operand in reader.addition(out) or ():
        if isinstance(operand, Node) and reader.addition(operand) and len(operand.users) == 1:
            inner, more = _summed(operand, reader)
            summands += inner
            additions += more
        elif isinstance(operand, Node):
            summands.append(operand)
        elif operand != 0:
            return [], []
    return summands, additions


def _inner(node: Node, reader: Reader) -> bool:
    """Whether an addition is part of another one."""
    return len(node.users) == 1 and all(reader.addition(user) for user in node.users)


def _activated(node: Node, reader: Reader) -> bool:
    return len(node.users) == 1 and all(reader.activation(user) for user in node.users)


def _disturbed(nodes: list[Node], inputs: list[Node], out: Node, reader: Reader) -> str | None:
    """What stands against computing it all at once in the place of `out`: something is written to meanwhile."""
    inside, start, end = set(nodes), reader.place[nodes[0]], reader.place[out]
    for node in nodes:
        written = reader.written(node)
        if written is None:
            continue
        later = any(reader.place[user] > reader.place[node] for user in written.users)
        if later or not (written in inside or _fresh(written, reader)):
            return "it writes into a tensor that is used elsewhere"
    for x in inputs:
        for user in x.users:
            if user not in inside and start < reader.place[user] < end and reader.written(user) is x:
                return "an input is written to between its uses"
    return None


def _fresh(node: Node, reader: Reader) -> bool:
    """Whether the node's result is new memory that nobody but its users can see."""
    if reader.written(node) is not None:
        return _fresh(node.args[0], reader) if isinstance(node.args[0], Node) else False
    known = (reader.conv, reader.pool, reader.addition, reader.activation, reader.resize)
    return any(read(node) is not None for read in known)


def _argmax_of(node: Node) -> Node | None:
    """What the node takes the class of the largest value of, along dimension 1."""
    function = node.op == "call_function" and node.target is torch.argmax
    if not function and (node.op != "call_method" or node.target != "argmax"):
        return None
    given = {**dict(zip(("input", "dim", "keepdim"), node.args, strict=False)), **node.kwargs}
    x = given.get("input")
    return x if given.get("dim") == 1 and not given.get("keepdim") and isinstance(x, Node) else None
