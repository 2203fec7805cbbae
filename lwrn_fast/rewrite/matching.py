"""Chained residual poolings, fusions and label maps among the nodes of a graph.

What is found holds for every input: what depends on sizes is left to running.py, which sees them.
"""

import operator
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .effects import Effects, value_of
from .reading import Conv, Pool, Reader, Resize


class Refusal(NamedTuple):
    """Something close to what our ops do."""

    node: Node
    kind: str
    what: str
    reason: str


class Stage(NamedTuple):
    """A pool, the convolution behind it, and all nodes of both."""

    pool: Pool
    pooled: Node
    conv: Conv
    nodes: tuple[Node, ...]


class Chain(NamedTuple):
    """Chained residual pooling: `out` = x + the results of the stages + what else is in the same sum."""

    x: Node
    stages: list[Stage]
    others: list[Node]
    out: Node
    nodes: list[Node]
    """All that it replaces, in the graph's order."""
    pools_only: bool
    """Whether its convolutions are of 3x3, as in the original RefineNet."""

    def __str__(self) -> str:
        count = len(self.stages)
        kind = " with 3x3 convolutions: the pools" if self.pools_only else ""
        return f"{count} stage{'s' * (count > 1)} of {self.stages[0].conv.shape[0]} planes{kind}"


class Term(NamedTuple):
    """One summand of a fusion: a map, the 1x1 convolutions it goes through, and the upsampling behind or before."""

    x: Node
    convs: list[Conv]
    """One, or two that follow each other directly."""
    resize: Resize | None
    nodes: list[Node]


class Join(NamedTuple):
    """A fusion; its first term is of the result's size. What else is in the same sum is added before the activation."""

    terms: list[Term]
    others: list[Node]
    activation: str
    align_corners: bool
    out: Node
    nodes: list[Node]

    def __str__(self) -> str:
        count = len(self.terms)
        inputs = f"{count} of {_inputs(count + len(self.others))}" if self.others else _inputs(count)
        return f"{inputs} to {self.terms[0].convs[-1].shape[0]} planes"


class Labels(NamedTuple):
    """Upsampled logits, and the class of the largest."""

    resize: Resize
    out: Node
    nodes: list[Node]


def chains(graph: Graph, reader: Reader, effects: Effects) -> Iterator[Chain | Refusal]:
    for node in graph.nodes:
        if reader.addition(node) and not _inner(node, reader):
            found = _chain(node, reader, effects)
            if found is not None:
                yield found


def joins(graph: Graph, reader: Reader, effects: Effects, pooled: Collection[Node]) -> Iterator[Join | Refusal]:
    """Sums with something upsampled in them, and what a chained residual pooling, of `pooled`, begins with."""
    done: set[Node] = set()
    for node in graph.nodes:
        activation = reader.activation(node)
        inner = activation.x if activation else node
        if inner in done or (activation and len(inner.users) > 1):
            continue
        if not activation and (not reader.addition(node) or _inner(node, reader) or _activated(node, reader)):
            continue
        name, behind = (activation.name, activation.nodes) if activation else ("none", (node,))
        found = _join(node, inner, name, behind, reader, effects, feeds=node in pooled)
        if found is not None:
            done.add(inner)
            yield found


def labels(graph: Graph, reader: Reader, effects: Effects) -> Iterator[Labels | Refusal]:
    for node in graph.nodes:
        x, nodes = _argmax_of(node)
        x, passed = reader.through(x)
        resize = reader.resize(x)
        if resize is None or len(x.users) > 1 or not resize.bilinear:
            continue
        tail = Labels(resize, node, [x, *passed, *nodes])
        reason = reader.mixed(x, [resize.x]) or effects.why_not(tail.nodes, node, reader.fresh)
        yield tail if reason is None else Refusal(node, "labels", "upsampling and argmax", reason)


def pools(graph: Graph, reader: Reader) -> Iterator[Node | Refusal]:
    """Of 5x5 with stride 1, and those that several of them make."""
    for node in graph.nodes:
        pool = reader.pool(node)
        if pool is None or (pool.steps == 0 and (pool.kernel != (5, 5) or pool.stride != (1, 1))):
            continue
        value = value_of(node)
        reason = pool.why_not_5x5() if pool.steps == 0 else None
        if reason is None and isinstance(value, Tensor) and value.device.type != "cpu":
            reason = f"a pool by itself is as fast as it is on {value.device.type}"
        if reason is None and isinstance(value, Tensor) and not value.is_floating_point():
            reason = f"its values are {str(value.dtype).removeprefix('torch.')}"
        yield node if reason is None else Refusal(node, "pool", f"1 of {pool.kernel[0]}x{pool.kernel[1]}", reason)


def _chain(out: Node, reader: Reader, effects: Effects) -> Chain | Refusal | None:
    terms, additions = _summed(out, reader)
    stage_of: dict[Node, tuple[Stage, Node]] = {}  # what a pool takes, to the stage that begins there
    results = set()
    for term in terms:
        found = _stage(term, terms, reader)
        if found is not None:
            results.add(term)
            stage_of[found[0]] = (found[1], term)
    starts = [term for term in terms if term in stage_of and term not in results]
    if len(set(starts)) != 1 or len(stage_of) != len(results):
        return _reversed(out, terms, reader)
    x = at = starts[0]
    stages, nodes, trouble = [], list(additions), False
    while at in stage_of:
        stage, result = stage_of.pop(at)
        stages.append(stage)
        nodes += stage.nodes
        following = stage_of[result][0].nodes if result in stage_of else ()
        trouble = trouble or any(user not in (*additions, *following) for user in result.users)
        at = result
    replaced = Counter([x, *(stage.conv.nodes[-1] for stage in stages)])
    others = list((Counter(terms) - replaced).elements())
    wide = all(stage.conv.shape[2:] == (3, 3) and stage.conv.stride == (1, 1) for stage in stages)
    chain = Chain(x, stages, others, out, sorted(set(nodes), key=effects.place.__getitem__), wide)
    reason = _why_not_crp(chain)
    if reason is None and not wide:
        reason = "a stage's result is used elsewhere too" if trouble or set(others) & results else None
        reason = reason or reader.mixed(out, [x, *(stage.conv.nodes[-1] for stage in stages)])
        reason = reason or effects.why_not(chain.nodes, out, reader.fresh)
    return chain if reason is None else Refusal(out, "crp", str(chain._replace(pools_only=False)), reason)


def _stage(term: Node, terms: Sequence[Node], reader: Reader) -> tuple[Node, Stage] | None:
    """What is pooled, and the pool and the convolution whose result the term is."""
    conv = reader.conv(term)
    if conv is None or len(conv.x.users) > 1:
        return None
    pooled, passed = reader.through(conv.x)
    pool = reader.pool(pooled)
    if pool is None or len(pooled.users) > 1:
        return None
    at, before = pool.x, []
    while at not in terms and len(at.users) == 1 and (inner := reader.unchanged(at)) is not None:
        before.append(at)
        at = inner
    return at, Stage(pool, pooled, conv, (*reversed(before), pooled, *passed, *conv.nodes))


def _reversed(out: Node, terms: Sequence[Node], reader: Reader) -> Refusal | None:
    """A chain whose convolutions come first: a sum of pools is no pool of a sum."""
    count = 0
    for term in terms:
        pool = reader.pool(term)
        conv = reader.conv(pool.x) if pool and pool.steps == 1 else None
        count += conv is not None and conv.x in terms
    if count == 0:
        return None
    what = f"{count} stage{'s' * (count > 1)}"
    return Refusal(out, "crp", what, "its convolutions come before the pools, not behind them; the pools are replaced")


def _why_not_crp(chain: Chain) -> str | None:
    planes, groups = chain.stages[0].conv.shape[0], chain.stages[0].conv.groups
    for pool, _, conv, _ in chain.stages:
        reason = pool.why_not_5x5() or (None if chain.pools_only else conv.why_not_1x1())
        if reason is not None:
            return reason
        if chain.pools_only:
            continue
        if conv.groups not in (1, planes) or conv.groups != groups:
            return f"a convolution has {conv.groups} groups, neither 1 nor {planes}"
        if conv.shape[:2] != (planes, planes // groups):
            return f"a convolution is from {conv.shape[1] * groups} to {conv.shape[0]} planes"
    return None


def _join(
    out: Node,
    inner: Node,
    activation: str,
    behind: Sequence[Node],
    reader: Reader,
    effects: Effects,
    feeds: bool,
) -> Join | Refusal | None:
    summands, nodes = _summed(inner, reader) if reader.addition(inner) else ([inner], [])
    terms, others = [], []
    for summand in summands:
        term = None if reader.broadcast(summand, inner) else _term(summand, reader)
        terms += [] if term is None else [term]
        others += [summand] if term is None else []
    first, resized = [term for term in terms if term.resize is None], [term for term in terms if term.resize]
    if others and (len(summands) == 1 or not (first and resized)):
        bilinear = any(resize and resize.mode == "bilinear" for resize in map(reader.resize, summands))
        if len(summands) == 1 or not (feeds or bilinear):
            return None
        return Refusal(out, "fusion", _inputs(len(summands)), _why_no_term(others[0], reader))
    if not summands or (not feeds and not (len(summands) > 1 and resized)):
        return None
    planes = terms[0].convs[-1].shape[0]
    what = f"{_inputs(len(summands))} to {planes} planes"
    modes = {term.resize.align_corners for term in resized if term.resize}
    members = {node for term in terms for node in term.nodes} | {*nodes, inner, *behind}
    ordered = sorted(members, key=effects.place.__getitem__)
    join = Join([*first, *resized], others, activation, modes.pop() if modes else True, out, ordered)
    reason = None
    if not first:
        reason = "every input is upsampled"
    elif modes:
        reason = "inputs differ in align_corners"
    elif any(term.convs[-1].shape[0] != planes for term in terms):
        reason = "inputs differ in planes, and are broadcast"
    reason = reason or reader.mixed(out, [node for node in summands if node not in others])
    reason = reason or effects.why_not(join.nodes, out, reader.fresh) or _written_later(join, effects)
    return join if reason is None else Refusal(out, "fusion", what, reason)


def _written_later(join: Join, effects: Effects) -> str | None:
    """Our backward pass needs the inputs and the result as they were; PyTorch's does not need all of them."""
    if not getattr(value_of(join.out), "requires_grad", False):
        return None
    needed = [term.x for term in join.terms] + ([] if join.activation == "none" else [join.out])
    end = effects.place[join.out]
    later = any(effects.place[writer] > end for node in needed for writer in effects.writes(node))
    return "what its gradient needs is written to afterwards" if later else None


def _inputs(count: int) -> str:
    return f"{count} input{'s' * (count > 1)}"


def _term(node: Node, reader: Reader) -> Term | None:
    """What a summand of a fusion is made of; its parts are of no use to anyone else."""
    if len(node.users) > 1:
        return None
    nodes: list[Node] = []
    convs: list[Conv] = []
    node, passed = reader.through(node)
    resize = reader.resize(node)
    if resize is None and passed:
        node = passed[-1]  # reader.conv looks through them too
    if resize is not None:
        if not resize.bilinear:
            return None
        nodes += [*passed, node]
        node, passed = reader.through(resize.x)
        nodes += passed
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
    resized, passed = reader.through(node)
    before = reader.resize(resized)
    if resize is None and before and before.bilinear and len(node.users) == len(resized.users) == 1:
        nodes += [resized, *passed]  # a 1x1 convolution and an interpolation may change places
        return Term(before.x, convs, before, nodes)
    return Term(node, convs, resize, nodes)


def _why_no_term(summand: Node, reader: Reader) -> str:
    node, _ = reader.through(summand)
    resize = reader.resize(node)
    if resize and resize.mode != "bilinear":
        return f"an input is upsampled by {resize.mode}"
    conv = reader.conv(resize.x if resize else summand)
    if conv is None and resize:
        return "an upsampled input has no convolution of its own, and the rest by itself is not faster fused"
    if conv is None:
        return "an input is not the result of a convolution"
    if conv.groups != 1:
        return conv.why_not_1x1() or f"a convolution has {conv.groups} groups"
    return conv.why_not_1x1() or "an input is used elsewhere too, or is broadcast"


def _summed(out: Node, reader: Reader) -> tuple[list[Node], list[Node]]:
    """The summands of a sum and all its nodes; nothing where a number is among them, but for the 0 of sum()."""
    found = reader.addition(out)
    if found is None or not all(_summand(operand) for operand in found.operands):
        return [], []
    summands: list[Node] = []
    nodes = list(found.nodes)
    for operand in found.operands:
        if not isinstance(operand, Node):
            continue
        node, passed = reader.through(operand)
        inner, more = _summed(node, reader) if len(operand.users) == len(node.users) == 1 else ([], [])
        if inner and found.operands.count(operand) == 1:
            summands += inner
            nodes += [*more, *passed]
        else:
            summands.append(operand)
    return summands, nodes


def _summand(operand: Any) -> bool:
    if isinstance(operand, Node):
        value = value_of(operand)
        return value is None or isinstance(value, Tensor)
    return isinstance(operand, int | float) and operand == 0


def _inner(node: Node, reader: Reader) -> bool:
    """Whether an addition is part of another one."""
    behind = _behind(node, reader)
    return bool(behind) and all(reader.addition(user) and node in _summed(user, reader)[1] for user in behind)


def _activated(node: Node, reader: Reader) -> bool:
    behind = _behind(node, reader)
    return len(behind) == 1 and all(reader.activation(user) for user in behind)


def _behind(node: Node, reader: Reader) -> list[Node]:
    """The only user of the node, but for what hands it on and for torch.stack; nothing where there are several."""
    at = node
    while len(at.users) == 1:
        at = next(iter(at.users))
        if reader.unchanged(at) is None and at.target is not torch.stack:
            return [at]
    return []


def _argmax_of(node: Node) -> tuple[Node | None, list[Node]]:
    """What the node takes the class of the largest value of, along dimension 1, and the nodes that do."""
    if node.target is operator.getitem and node.args[1:] == (1,):  # of the largest values and where they are
        pair = node.args[0]
        x = _along_planes(pair, "max", torch.max) if isinstance(pair, Node) and len(pair.users) == 1 else None
        return x, [pair, node] if isinstance(pair, Node) else []
    return _along_planes(node, "argmax", torch.argmax), [node]


def _along_planes(node: Node, name: str, function: Any) -> Node | None:
    called = (node.op == "call_function" and node.target is function) or (
        node.op == "call_method" and node.target == name
    )
    given = {**dict(zip(("input", "dim", "keepdim"), node.args, strict=False)), **node.kwargs}
    x = given.get("input")
    right = given.get("dim", given.get("axis")) == 1 and not given.get("keepdim") and "out" not in given
    return x if called and right and isinstance(x, Node) else None
