"""Existing networks: our ops in place of what a network of any class computes, on one instance, reversibly.

A forward is traced with the small modules in it; larger ones, and those that cannot be traced, are left whole in it and
looked at for themselves, so that what cannot be traced costs only itself.
"""

import copy
import functools
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from . import children
from .crp import CRP
from .fusion import Fusion
from .models.decoder import LevelDecoder
from .models.refinenet import CRP3x3
from .rewrite import tracing
from .rewrite.reading import Reader
from .rewrite.replacing import Rewriter
from .rewrite.report import Finding, Report

OURS = (CRP, Fusion, LevelDecoder, CRP3x3)
FORMATS = "_lwrn_fast_formats"
"""Where a network keeps the memory formats that its parameters had."""


def accelerate(
    model: nn.Module, *, crp: bool = True, fusion: bool = True, fold: bool = True, channels_last: bool = True
) -> Report:
    """Give a network our ops where it computes the same, in place, and tell what was found; `restore` undoes it.

    Found by what is computed, whatever the classes and names: chained residual poolings and other 5x5 poolings of
    stride 1 (crp), sums of 1x1 convolutions with bilinear upsampling (fusion), and upsampling with argmax. Parameters,
    state-dict names, hooks, training and checkpoints stay as they are; other instances are not touched.
    fold: at inference, two 1x1 convolutions in a row are one. channels_last: brings the parameters into channels-last
    memory if anything was replaced.
    An accelerated forward sees changed weights, modes, attributes and modules; a call with optional arguments runs the
    network's own. Raises TypeError where model is no nn.Module.

    >>> import torch, lwrn_fast
    >>> block = torch.nn.Sequential(torch.nn.MaxPool2d(5, 1, 2), torch.nn.MaxPool2d(5, 1, 2))
    >>> lwrn_fast.accelerate(block).count("pool")
    1
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}")
    restore(model)
    wanted = {"crp": crp, "fusion": fusion, "labels": fusion, "fold": fold}
    report = Report()
    named = dict(model.named_modules())
    closed: set[nn.Module] = set()  # not to be looked into
    for where, module in named.items():
        reason = _why_closed(module)
        if reason is not None and module not in closed:
            report.add([Finding(where, "module", type(module).__name__, reason)])
            closed.update(module.modules())
    for where, module in reversed(named.items()):  # what is within comes before what is around it
        if module not in closed and _has_forward(module):
            try:
                tracing.trace(module, closed)
            except tracing.NotTraced as error:
                report.add([Finding(where, "module", type(module).__name__, str(error))])
                closed.add(module)
    seen: set[nn.Module] = set()  # as a part of what is around it
    for where, module in named.items():
        if module not in closed and module not in seen and _has_forward(module):
            program, findings = write(module, where, wanted, closed)
            report.add(findings)
            seen.update(program.watched)
            if program.run is not None:
                module.forward = Accelerated(module, wanted, closed, [program])
    places = {where: i for i, where in enumerate(named)}
    report.findings.sort(key=lambda finding: places.get(finding.where, len(places)))
    if report and channels_last:
        _to_channels_last(model)
    return report


def restore(model: nn.Module) -> None:
    """Undo what `accelerate` did to the network: its own forwards, and its parameters' memory formats.

    >>> import torch, lwrn_fast
    >>> block = torch.nn.Sequential(torch.nn.MaxPool2d(5, 1, 2))
    >>> report = lwrn_fast.accelerate(block)
    >>> lwrn_fast.restore(block)
    """
    for module in model.modules():
        if isinstance(vars(module).get("forward"), Accelerated):
            del module.forward  # the class's own is seen again
    formats = vars(model).pop(FORMATS, {})
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if formats.get(name):
            tensor.data = tensor.data.contiguous()


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
            first, last = (str(inner.target) for inner in conv.nodes)
            modules: Any = module.get_submodule(first), module.get_submodule(last)
            if called[first] == called[last] == 1 and max(places[inner] for inner in modules) == 1:
                module.set_submodule(first, fuse_conv_bn_eval(*modules))
                module.set_submodule(last, nn.Identity())


class Accelerated:
    """The forward of an accelerated module. It follows the module: what it was traced with is compared at each call,
    and if that is another, it is traced anew."""

    def __init__(
        self, module: nn.Module, wanted: dict[str, bool], closed: set[nn.Module], programs: "list[Program]"
    ) -> None:
        self.module, self.wanted, self.closed, self.programs = module, wanted, closed, programs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        program = self._program()
        if program.run is None or kwargs or len(args) != program.arguments:
            return type(self.module).forward(self.module, *args, **kwargs)
        return program.run(self.module, *args)

    def _program(self) -> "Program":
        if torch.compiler.is_compiling():  # which guards on what it sees of the module
            return next((p for p in self.programs if p.training == self.module.training), NO_PROGRAM)
        for program in self.programs:
            if program.holds():
                return program
        program, _ = write(self.module, "", self.wanted, self.closed)
        self.programs = [program, *self.programs[: MOST_PROGRAMS - 1]]
        return program

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(type(self.module).forward.__get__(self.module))

    @property
    def __code__(self) -> Any:  # torch.export tells where a graph comes from
        return type(self.module).forward.__code__

    def __deepcopy__(self, memo: dict) -> "Accelerated":
        copied = memo[id(self)] = Accelerated.__new__(Accelerated)
        module, closed = copy.deepcopy(self.module, memo), copy.deepcopy(self.closed, memo)
        # programs take the module as an argument; torch.compile cannot make them anew
        programs = [p._replace(watched=[copy.deepcopy(inner, memo) for inner in p.watched]) for p in self.programs]
        Accelerated.__init__(copied, module, dict(self.wanted), closed, programs)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "programs": []}  # made again at the next call


class Program(NamedTuple):
    """A forward with our ops in it, and what it was made from."""

    run: Callable[..., Any] | None
    """Takes the module and its arguments; None where the module's own forward is as good."""
    arguments: int
    training: bool
    watched: list[nn.Module]
    seen: list[tuple]

    def holds(self) -> bool:
        return all(_state(module) == state for module, state in zip(self.watched, self.seen, strict=True))


NO_PROGRAM = Program(None, 0, False, [], [])
MOST_PROGRAMS = 4
"""Kept for each module: training and not, with and without something the user changes."""


def write(
    module: nn.Module, where: str, wanted: dict[str, bool], closed: set[nn.Module]
) -> tuple[Program, list[Finding]]:
    """The program of a module as it is now, and what was found in it."""
    watched = [module]
    run, arguments, findings = None, 0, []
    try:
        graph, opened = tracing.trace(module, closed)
        watched += opened
        rewriter = Rewriter(graph, module, where, **wanted)
        if rewriter.run():
            run, arguments = _function(graph), len(tracing.required(module))
        findings = rewriter.findings
        for path in dict.fromkeys(str(node.target) for node in rewriter.nodes if node.op == "call_module"):
            names = path.split(".")  # and the containers it is in
            watched += [module.get_submodule(".".join(names[:depth])) for depth in range(1, len(names) + 1)]
    except tracing.NotTraced as error:
        findings = [Finding(where, "module", type(module).__name__, str(error))]
    watched = list(dict.fromkeys(watched))
    return Program(run, arguments, module.training, watched, [_state(inner) for inner in watched]), findings


def _why_closed(module: nn.Module) -> str | None:
    """Why a module stays as it is, with all that is in it."""
    if isinstance(module, OURS):
        return "is of lwrn_fast already"
    if isinstance(module, torch.jit.ScriptModule):
        return "is scripted"
    if ".quantized" in type(module).__module__:
        return "is quantised"
    return "has a forward of its own instance" if "forward" in vars(module) else None


def _has_forward(module: nn.Module) -> bool:
    """Whether there is something to trace: containers without a forward and PyTorch's own layers have nothing."""
    kind = type(module)
    of_torch = kind.__module__.startswith("torch.") and not isinstance(module, (nn.Sequential, fx.GraphModule))
    return not of_torch and kind.forward is not nn.Module.forward


def _function(graph: fx.Graph) -> Callable[..., Any]:
    """The graph as a function of the module and its arguments."""
    graph.lint()
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, "<accelerated by lwrn_fast>", "exec"), namespace)
    return namespace["forward"]


def _state(module: nn.Module) -> tuple:
    """What a traced forward has taken for constant: attributes, modules, and that there are no hooks."""
    own = vars(module)
    values = [own[name] for name in _names(cast(Any, type(module))) if name in own]
    simple = tuple(value if type(value) in SIMPLE else id(value) for value in values)
    return simple, module.training, tuple(map(id, module._modules.values())), children.has_hooks(module)


SIMPLE = (bool, int, float, str, tuple, type(None))


@functools.cache
def _names(kind: Any) -> tuple[str, ...]:
    """The names that a class's forward, and what it calls of the class, takes from somewhere."""
    names: set[str] = set()
    todo = ["forward"]
    while todo:
        name = todo.pop()
        code = getattr(getattr(kind, name, None), "__code__", None)
        if name not in names and code is not None:
            todo += code.co_names
        names.add(name)
    return tuple(sorted(names - {"training", "forward"}))


def _to_channels_last(model: nn.Module) -> None:
    formats = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.dim() == 4 and tensor.is_contiguous() and not tensor.is_contiguous(memory_format=torch.channels_last):
            formats[name] = True
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    vars(model)[FORMATS] = formats

