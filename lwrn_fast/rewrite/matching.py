"""Pattern matching: find chained residual poolings, fusions, pools and label maps among the nodes of a graph.

A match holds for inputs of every size. Decisions that depend on sizes are left to running.py, which sees them.
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
    """A pattern that resembles an op of ours and cannot be replaced."""

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
    """A chained residual pooling: `out` = x + the results of the stages + the other summands."""

    x: Node
    stages: list[Stage]
    others: list[Node]
    out: Node
    # All nodes that it replaces, in the graph's order.
    nodes: list[Node]
    # True where its convolutions are 3x3, as in the original RefineNet, so that only the pools are replaced.
    pools_only: bool

    def __str__(self) -> str:
        count = len(self.stages)
        kind = " with 3x3 convolutions: the pools" if self.pools_only else ""
        return f"{count} stage{'s' * (count > 1)} of {self.stages[0].conv.shape[0]} channels{kind}"


class Term(NamedTuple):
    """One summand of a fusion: a map, its 1x1 convolutions, and the upsampling behind or before them."""

    x: Node
    # One, or two that follow each other directly.
    convs: list[Conv]
    resize: Resize | None
    nodes: list[Node]


class Join(NamedTuple):
    """A fusion. Its first term has the result's size; the other summands are added before the activation."""

    terms: list[Term]
    others: list[Node]
    activation: str
    align_corners: bool
    out: Node
    nodes: list[Node]

    def __str__(self) -> str:
        count = len(self.terms)
        inputs = f"{count} of {_inputs(count + len(self.others))}" if self.others else _inputs(count)
        return f"{inputs} to {self.terms[0].convs[-1].shape[0]} channels"


class Labels(NamedTuple):
    """A label map: the class of the maximum of upsampled logits."""

    resize: Resize
    out: Node
    nodes: list[Node]


def chains(graph: Graph, reader: Reader, effects: Effects) -> Iterator[Chain | Refusal]:
    """Find the chained residual poolings."""
    for node in graph.nodes:
        if reader.addition(node) and not _is_inner(node, reader):
            match = _chain(node, reader, effects)
            if match is not None:
                yield match


def joins(graph: Graph, reader: Reader, effects: Effects, pooled: Collection[Node]) -> Iterator[Join | Refusal]:
    """Find the fusions: sums with an upsampled summand, and sums that feed a chained residual pooling of `pooled`."""
    done: set[Node] = set()
    for node in graph.nodes:
        activation = reader.activation(node)
        inner = activation.x if activation else node
        if inner in done or (activation and len(inner.users) > 1):
            continue
        if not activation and (not reader.addition(node) or _is_inner(node, reader) or _is_activated(node, reader)):
            continue
        name, tail_nodes = (activation.name, activation.nodes) if activation else ("none", (node,))
        match = _join(node, inner, name, tail_nodes, reader, effects, feeds=node in pooled)
        if match is not None:
            done.add(inner)
            yield match


def labels(graph: Graph, reader: Reader, effects: Effects) -> Iterator[Labels | Refusal]:
    """Find the label maps."""
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
    """Find the pools of 5x5 with stride 1, and the larger ones that several of them compose."""
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
    stage_of: dict[Node, tuple[Stage, Node]] = {}  # a pool's input -> its stage and that one's result
    results = set()
    for term in terms:
        match = _stage(term, terms, reader)
        if match is not None:
            results.add(term)
            stage_of[match[0]] = (match[1], term)
    starts = [term for term in terms if term in stage_of and term not in results]
    if len(set(starts)) != 1 or len(stage_of) != len(results):
        return _reversed(out, terms, reader)
    x = start = starts[0]
    stages, nodes, is_used_elsewhere = [], list(additions), False
    while start in stage_of:
        stage, result = stage_of.pop(start)
        stages.append(stage)
        nodes += stage.nodes
        following = stage_of[result][0].nodes if result in stage_of else ()
        is_used_elsewhere = is_used_elsewhere or any(user not in (*additions, *following) for user in result.users)
        start = result
    replaced = Counter([x, *(stage.conv.nodes[-1] for stage in stages)])
    others = list((Counter(terms) - replaced).elements())
    is_3x3 = all(stage.conv.shape[2:] == (3, 3) and stage.conv.stride == (1, 1) for stage in stages)
    chain = Chain(x, stages, others, out, sorted(set(nodes), key=effects.index.__getitem__), is_3x3)
    reason = _why_not_crp(chain)
    if reason is None and not is_3x3:
        reason = "a stage's result is used elsewhere too" if is_used_elsewhere or set(others) & results else None
        reason = reason or reader.mixed(out, [x, *(stage.conv.nodes[-1] for stage in stages)])
        reason = reason or effects.why_not(chain.nodes, out, reader.fresh)
    return chain if reason is None else Refusal(out, "crp", str(chain._replace(pools_only=False)), reason)


def _stage(term: Node, terms: Sequence[Node], reader: Reader) -> tuple[Node, Stage] | None:
    """Return a pool's input and the stage, a pool and a convolution, whose result the term is."""
    conv = reader.conv(term)
    if conv is None or len(conv.x.users) > 1:
        return None
    pooled, passed = reader.through(conv.x)
    pool = reader.pool(pooled)
    if pool is None or len(pooled.users) > 1:
        return None
    x, before = pool.x, []
    while x not in terms and len(x.users) == 1 and (inner := reader.unchanged(x)) is not None:
        before.append(x)
        x = inner
    return x, Stage(pool, pooled, conv, (*reversed(before), pooled, *passed, *conv.nodes))


def _reversed(out: Node, terms: Sequence[Node], reader: Reader) -> Refusal | None:
    """Return a refusal for a chain whose convolutions come first: a sum of pools is no pool of a sum."""
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
    channels, groups = chain.stages[0].conv.shape[0], chain.stages[0].conv.groups
    for pool, _, conv, _ in chain.stages:
        reason = pool.why_not_5x5() or (None if chain.pools_only else conv.why_not_1x1())
        if reason is not None:
            return reason
        if chain.pools_only:
            continue
        if conv.groups not in (1, channels) or conv.groups != groups:
            return f"a convolution has {conv.groups} groups, neither 1 nor {channels}"
        if conv.shape[:2] != (channels, channels // groups):
            return f"a convolution is from {conv.shape[1] * groups} to {conv.shape[0]} channels"
    return None


def _join(
    out: Node,
    inner: Node,
    activation: str,
    tail_nodes: Sequence[Node],
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
    channels = terms[0].convs[-1].shape[0]
    what = f"{_inputs(len(summands))} to {channels} planes"
    modes = {term.resize.align_corners for term in resized if term.resize}
    members = {node for term in terms for node in term.nodes} | {*nodes, inner, *tail_nodes}
    ordered = sorted(members, key=effects.index.__getitem__)
    join = Join([*first, *resized], others, activation, modes.pop() if modes else True, out, ordered)
    reason = None
    if not first:
        reason = "every input is upsampled"
    elif modes:
        reason = "inputs differ in align_corners"
    elif any(term.convs[-1].shape[0] != channels for term in terms):
        reason = "inputs differ in planes, and are broadcast"
    reason = reason or reader.mixed(out, [node for node in summands if node not in others])
    reason = reason or effects.why_not(join.nodes, out, reader.fresh) or _written_later(join, effects)
    return join if reason is None else Refusal(out, "fusion", what, reason)


def _written_later(join: Join, effects: Effects) -> str | None:
    """Return a reason where a later write breaks our backward pass, which needs the inputs and the result unchanged.

    PyTorch's backward pass does not need all of them.
    """
    if not getattr(value_of(join.out), "requires_grad", False):
        return None
    needed = [term.x for term in join.terms] + ([] if join.activation == "none" else [join.out])
    end = effects.index[join.out]
    later = any(effects.index[writer] > end for node in needed for writer in effects.writes(node))
    return "what its gradient needs is written to afterwards" if later else None


def _inputs(count: int) -> str:
    return f"{count} input{'s' * (count > 1)}"


def _term(node: Node, reader: Reader) -> Term | None:
    """Return the term that ends at the node, None where there is none or where its parts are used elsewhere."""
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
        nodes += [resized, *passed]  # a 1x1 convolution and an interpolation commute
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
    """Return a sum's summands and all its nodes, nothing where one is a number other than the 0 of sum()."""
    addition = reader.addition(out)
    if addition is None or not all(_may_be_summand(operand) for operand in addition.operands):
        return [], []
    summands: list[Node] = []
    nodes = list(addition.nodes)
    for operand in addition.operands:
        if not isinstance(operand, Node):
            continue
        node, passed = reader.through(operand)
        inner, more = _summed(node, reader) if len(operand.users) == len(node.users) == 1 else ([], [])
        if inner and addition.operands.count(operand) == 1:
            summands += inner
            nodes += [*more, *passed]
        else:
            summands.append(operand)
    return summands, nodes


def _may_be_summand(operand: Any) -> bool:
    if isinstance(operand, Node):
        value = value_of(operand)
        return value is None or isinstance(value, Tensor)
    return isinstance(operand, int | float) and operand == 0


def _is_inner(node: Node, reader: Reader) -> bool:
    """Return whether an addition is part of another one."""
    users = _following(node, reader)
    return bool(users) and all(reader.addition(user) and node in _summed(user, reader)[1] for user in users)


def _is_activated(node: Node, reader: Reader) -> bool:
    """Return whether an activation is the node's only user."""
    users = _following(node, reader)
    return len(users) == 1 and all(reader.activation(user) for user in users)


def _following(node: Node, reader: Reader) -> list[Node]:
    """Return the node's only user, behind nodes that hand it on and torch.stack; nothing where there are several."""
    user = node
    while len(user.users) == 1:
        user = next(iter(user.users))
        if reader.unchanged(user) is None and user.target is not torch.stack:
            return [user]
    return []


def _argmax_of(node: Node) -> tuple[Node | None, list[Node]]:
    """Return the input of the argmax along dimension 1 that ends at the node, None without one, and its nodes."""
    if node.target is operator.getitem and node.args[1:] == (1,):  # the indices of max's pair
        pair = node.args[0]
        x = _along_channels(pair, "max", torch.max) if isinstance(pair, Node) and len(pair.users) == 1 else None
        return x, [pair, node] if isinstance(pair, Node) else []
    return _along_channels(node, "argmax", torch.argmax), [node]


def _along_channels(node: Node, name: str, function: Any) -> Node | None:
    """Return the input of a call of the function or method along dimension 1, None where the node is none."""
    is_call = (node.op == "call_function" and node.target is function) or (
        node.op == "call_method" and node.target == name
    )
    arguments = {**dict(zip(("input", "dim", "keepdim"), node.args, strict=False)), **node.kwargs}
    x = arguments.get("input")
    along = arguments.get("dim", arguments.get("axis")) == 1
    plain = not arguments.get("keepdim") and "out" not in arguments
    return x if is_call and along and plain and isinstance(x, Node) else None
