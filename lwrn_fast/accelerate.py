"""`accelerate`: replace patterns in an existing model of any class by our ops, on one instance, reversibly."""

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
    """Replace parts of a model by our ops where these compute the same, in place; `restore` undoes it.

    The computation decides, not classes or names: chained residual poolings and other 5x5 poolings of stride 1 (crp),
    sums of 1x1 convolutions with bilinear upsampling (fusion), and upsampling with argmax are replaced. Parameters,
    state-dict names, hooks, training and checkpoints stay as they are; other instances are not touched.
    fold: at inference, two 1x1 convolutions in a row are one. channels_last: computes in channels-last memory where
    anything was replaced.

    At its first call the model's forward is captured by Dynamo, torch.compile's front end, which takes seconds for a
    large model, and again when something that it read has changed: sizes, modes, attributes, modules, hooks. Code that
    cannot be captured runs as it is. The returned report holds the expected findings, and from the first call on those
    of the code that runs.
    Raises TypeError where model is no nn.Module.

    >>> import torch, lwrn_fast
    >>> block = torch.nn.Sequential(torch.nn.MaxPool2d(5, 1, 2), torch.nn.MaxPool2d(5, 1, 2))
    >>> lwrn_fast.accelerate(block).count("pool")
    1
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}")
    restore(model)
    enabled = {"crp": crp, "fusion": fusion, "labels": fusion, "fold": fold}
    findings, modules = _expect(model, enabled)
    report = Report(findings, expected=True)
    shared_capture = capture.Capture({**enabled, "channels_last": channels_last}, report)
    for module in modules:
        capture.install(module, shared_capture)
    return report


def restore(model: nn.Module) -> None:
    """Undo `accelerate`.

    >>> import torch, lwrn_fast
    >>> block = torch.nn.Sequential(torch.nn.MaxPool2d(5, 1, 2))
    >>> report = lwrn_fast.accelerate(block)
    >>> lwrn_fast.restore(block)
    """
    for module in model.modules():
        capture.remove(module)


def _expect(model: nn.Module, enabled: dict[str, bool]) -> tuple[list[Finding], list[nn.Module]]:
    """Return the expected findings in a model, and the modules whose forwards are worth capturing.

    Forwards are recorded one by one with the small modules in them, on a copy that shares the parameters, so that
    their side effects are not seen. Dynamo may well capture forwards that cannot be recorded.
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
        with _random_state_kept():
            twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
            _record(twin, named, enabled, findings, modules)
    except Exception:  # a user's __deepcopy__ may raise anything
        findings.append(_unknown("", model))
        modules.append(model)
    index = {where: i for i, where in enumerate(named)}
    findings.sort(key=lambda finding: index.get(finding.where, len(index)))
    return findings, list(dict.fromkeys(modules))


def _record(
    twin: nn.Module,
    named: dict[str, nn.Module],
    enabled: dict[str, bool],
    findings: list[Finding],
    modules: list[nn.Module],
) -> None:
    """Record the forwards of `twin`, a copy of the model whose modules are `named`; extend `findings` and `modules`."""
    of_twin = dict(twin.named_modules())
    closed = {inner for module in of_twin.values() if _why_closed(module) for inner in module.modules()}
    for where, module in reversed(of_twin.items()):  # inner modules first
        if module not in closed and _has_forward(module):
            try:
                tracing.trace(module, closed)
            except tracing.NotTraced:
                findings.append(_unknown(where, module))
                modules += [named[""], named[where]]
                closed.add(module)
    seen: set[nn.Module] = set()  # traced as a part of another module
    for where, module in of_twin.items():
        if module not in closed and module not in seen and _has_forward(module):
            graph, opened = tracing.trace(module, closed)
            seen.update(opened)
            rewriter = Rewriter(graph, module, where, **enabled)
            rewriter.run()
            if any(finding.replaced for finding in rewriter.findings):
                modules.append(named[where])
            findings += rewriter.findings


def _unknown(where: str, module: nn.Module) -> Finding:
    return Finding(where, "module", type(module).__name__, "what it computes is seen at its first call")


def _outermost(where: str, findings: list[Finding]) -> bool:
    return not any(finding.where == "" or where.startswith(f"{finding.where}.") for finding in findings)


def _why_closed(module: nn.Module) -> str | None:
    """Return the reason why a module stays as it is, with all modules in it, None where it may change."""
    if isinstance(module, OURS):
        return "is of lwrn_fast already"
    if isinstance(module, torch.jit.ScriptModule):
        return "is scripted"
    return "is quantised" if ".quantized" in type(module).__module__ else None


def _has_forward(module: nn.Module) -> bool:
    """Return whether there is a forward to record: containers without one and PyTorch's own layers have none."""
    cls = type(module)
    of_torch = cls.__module__.startswith("torch.") and not isinstance(module, (nn.Sequential, fx.GraphModule))
    return not of_torch and cls.forward is not nn.Module.forward and "forward" not in vars(module)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restore the states of the random number generators at the end: Python's, NumPy's and PyTorch's on the CPU."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  user code draws from it
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def fold_norms(model: nn.Module) -> None:
    """Fold every batch normalisation of running statistics into the convolution before it, in place and for good.

    A convolution stays where anything else sees its result. The model must be in eval mode; its state dict changes.
    """
    uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    for module in uses:
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
            if not norms:  # folded already, from another node
                continue
            last = norms[0]
            modules: Any = module.get_submodule(first), module.get_submodule(last)
            if called[first] == called[last] == 1 and max(uses[inner] for inner in modules) == 1:
                module.set_submodule(first, fuse_conv_bn_eval(*modules))
                module.set_submodule(last, nn.Identity())
