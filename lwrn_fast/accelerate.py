"""Existing networks: our ops in place of what a network of any class computes, on one instance, reversibly."""

import copy
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .models.decoder import LevelDecoder
from .models.refinenet import CRP3x3
from .ops.crp import CRP
from .ops.fusion import Fusion
from .rewrite import capture, tracing
from .rewrite.reading import Reader
from .rewrite.replacing import Rewriter
from .rewrite.report import Finding, Report

OURS = (CRP, Fusion, LevelDecoder, CRP3x3)


def accelerate(
    model: nn.Module, *, crp: bool = True, fusion: bool = True, fold: bool = True, channels_last: bool = True
) -> Report:
    """Give a network our ops where it computes the same, in place, and tell what was found; `restore` undoes it.

    Found by what is computed, whatever the classes and names: chained residual poolings and other 5x5 poolings of
    stride 1 (crp), sums of 1x1 convolutions with bilinear upsampling (fusion), and upsampling with argmax. Parameters,
    state-dict names, hooks, training and checkpoints stay as they are; other instances are not touched.
    fold: at inference, two 1x1 convolutions in a row are one. channels_last: computes in channels-last memory where
    anything was replaced.

    At its first call the network's forward is captured by Dynamo, torch.compile's front end, which takes seconds for a
    large network, and again when what it read has changed: sizes, modes, attributes, modules, hooks. What cannot be
    captured runs as it is. The report tells at once what is to be expected, and from the first call on what runs.
    Raises TypeError where model is no nn.Module.

    >>> import torch, lwrn_fast
    >>> block = torch.nn.Sequential(torch.nn.MaxPool2d(5, 1, 2), torch.nn.MaxPool2d(5, 1, 2))
    >>> lwrn_fast.accelerate(block).count("pool")
    1
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}")
    restore(model)
    wanted = {"crp": crp, "fusion": fusion, "labels": fusion, "fold": fold}
    found, modules = _expect(model, wanted)
    report = Report(found, expected=True)
    captured = capture.Capture({**wanted, "channels_last": channels_last}, report)
    for module in modules:
        capture.install(module, captured)
    return report


def restore(model: nn.Module) -> None:
    """Undo what `accelerate` did to the network.

    >>> import torch, lwrn_fast
    >>> block = torch.nn.Sequential(torch.nn.MaxPool2d(5, 1, 2))
    >>> report = lwrn_fast.accelerate(block)
    >>> lwrn_fast.restore(block)
    """
    for module in model.modules():
        capture.remove(module)


def _expect(model: nn.Module, wanted: dict[str, bool]) -> tuple[list[Finding], list[nn.Module]]:
    """What is likely to be found in a network, and the modules whose forwards are worth capturing.

    Forwards are recorded one by one with the small modules in them, on a copy that shares the parameters, so that
    nothing that a forward does on the way is seen. What cannot be recorded, Dynamo may well capture.
    """
    findings: list[Finding] = []
    modules: list[nn.Module] = []
    named = dict(model.named_modules())
    for where, module in named.items():
        if (reason := _why_closed(module)) is not None and _outermost(where, findings):
            findings.append(Finding(where, "module", type(module).__name__, reason))
    if "forward" in vars(model):
        return [Finding("", "module", type(model).__name__, "has a forward of its own instance")], []
    if any(finding.where == "" for finding in findings):
        return findings, []
    try:
        with _nothing_drawn():
            twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
            _record(twin, named, wanted, findings, modules)
    except Exception:  # somebody else's __deepcopy__
        findings.append(_unknown("", model))
        modules.append(model)
    places = {where: i for i, where in enumerate(named)}
    findings.sort(key=lambda finding: places.get(finding.where, len(places)))
    return findings, list(dict.fromkeys(modules))


def _record(
    twin: nn.Module,
    named: dict[str, nn.Module],
    wanted: dict[str, bool],
    findings: list[Finding],
    modules: list[nn.Module],
) -> None:
    """Record the forwards of `twin`, a copy of the network whose modules are `named`."""
    of_twin = dict(twin.named_modules())
    closed = {inner for module in of_twin.values() if _why_closed(module) for inner in module.modules()}
    for where, module in reversed(of_twin.items()):  # what is within comes before what is around it
        if module not in closed and _has_forward(module):
            try:
                tracing.trace(module, closed)
            except tracing.NotTraced:
                findings.append(_unknown(where, module))
                modules += [named[""], named[where]]
                closed.add(module)
    seen: set[nn.Module] = set()  # as a part of what is around it
    for where, module in of_twin.items():
        if module not in closed and module not in seen and _has_forward(module):
            graph, opened = tracing.trace(module, closed)
            seen.update(opened)
            rewriter = Rewriter(graph, module, where, **wanted)
            rewriter.run()
            if any(finding.replaced for finding in rewriter.findings):
                modules.append(named[where])
            findings += rewriter.findings


def _unknown(where: str, module: nn.Module) -> Finding:
    return Finding(where, "module", type(module).__name__, "what it computes is seen at its first call")


def _outermost(where: str, findings: list[Finding]) -> bool:
    return not any(finding.where == "" or where.startswith(f"{finding.where}.") for finding in findings)


def _why_closed(module: nn.Module) -> str | None:
    """Why a module stays as it is, with all that is in it."""
    if isinstance(module, OURS):
        return "is of lwrn_fast already"
    if isinstance(module, torch.jit.ScriptModule):
        return "is scripted"
    return "is quantised" if ".quantized" in type(module).__module__ else None


def _has_forward(module: nn.Module) -> bool:
    """Whether there is something to record: containers without a forward and PyTorch's own layers have nothing."""
    kind = type(module)
    of_torch = kind.__module__.startswith("torch.") and not isinstance(module, (nn.Sequential, fx.GraphModule))
    return not of_torch and kind.forward is not nn.Module.forward and "forward" not in vars(module)


@contextmanager
def _nothing_drawn() -> Iterator[None]:
    """Random numbers drawn within are drawn again after it."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  which others draw from
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def fold_norms(model: nn.Module) -> None:
    """Put every batch normalisation of running statistics into the convolution before it, for good, where nothing else
    sees the convolution's result; the network must be in eval mode, and its state dict is another afterwards."""
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    for module in places:
        if _why_closed(module) is not None or not _has_forward(module):
            continue
        try:
            graph, _ = tracing.trace(module, set())
        except tracing.NotTraced:
            continue
        called = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
        reader = Reader(graph, module)
        for node in graph.nodes:
            conv = reader.conv(node)
            if conv is None or conv.norm is None or any(inner.op != "call_module" for inner in conv.nodes):
                continue
            first, *others = (str(inner.target) for inner in conv.nodes)
            norms = [name for name in others if isinstance(module.get_submodule(name), nn.BatchNorm2d)]
            if not norms:  # folded by way of another node
                continue
            last = norms[0]
            modules: Any = module.get_submodule(first), module.get_submodule(last)
            if called[first] == called[last] == 1 and max(places[inner] for inner in modules) == 1:
                module.set_submodule(first, fuse_conv_bn_eval(*modules))
                module.set_submodule(last, nn.Identity())
