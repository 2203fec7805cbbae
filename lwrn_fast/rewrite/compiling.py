"""torch.compile with our ops: the backend for captured graphs, and compiled code that belongs to one network alone."""

import functools
import inspect
import itertools
import os
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..log import log
from .replacing import Rewriter
from .report import Finding, Report

OPTIONS = ("backend", "report", "crp", "fusion", "labels", "fold", "channels_last", "frozen")


def backend(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Tensor],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """What `torch.compile(model, backend="lwrn_fast", options={...})` calls for each graph it captures.

    Chained residual poolings, fusions with the batch normalisations in them, 5x5 pools, and upsampling with argmax
    become our ops, for any sizes, in training too. options, all of them optional: backend, the compiler for the rest,
    a name or a function, default "inductor"; report, a `lwrn_fast.Report` that takes the findings; crp, fusion,
    labels, fold, False to leave those alone; channels_last, True to compute in channels-last memory where anything was
    replaced; frozen, True where weights are constants, to fold batch normalisations into convolutions; whatever else
    is there goes to inductor, and so does mode. The logger "lwrn_fast" tells what was found at level INFO.
    Raises ValueError for options that inductor does not have, or that are given with another compiler.

    >>> import torch, lwrn_fast
    >>> compiled = torch.compile(lwrn_fast.CRP(8, 8), backend="lwrn_fast")
    """
    given = dict(options or {})
    inner = given.pop("backend", "inductor")
    report = given.pop("report", None)
    wanted = {name: given.pop(name) for name in OPTIONS if name in given}
    rewriter = Rewriter(graph_module.graph, None, "", **wanted)
    if rewriter.run():
        graph_module.graph.lint()
        graph_module.recompile()
    found = Report(rewriter.findings)
    if found.findings:
        log.info("in the captured graph:\n%s", found)
    if report is not None:
        report.add(_broken(graph_module) + found.findings, part=_frame())
    return _compile(graph_module, example_inputs, inner, mode, given)


def _frame() -> int | None:
    """The number of the function, or part of one, that Dynamo is at; it is the same when that is captured again."""
    compiling = torch._guards.CompileContext.current_compile_id()
    return None if compiling is None else compiling.frame_id


def _broken(graph_module: fx.GraphModule) -> list[Finding]:
    """Why the graph ends before the network does, if so."""
    reason = getattr(graph_module, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return []
    lines = [line for line in str(reason.reason).splitlines() if line.strip()]
    last = reason.user_stack[-1] if reason.user_stack else None
    at = f" ({os.path.basename(last.filename)}:{last.lineno})" if last else ""
    why = lines[0].strip() if lines else "unknown"
    return [Finding("", "module", "a forward", f"is captured in parts{at}: {why}")]


MAX_RECOMPILES = 64
_numbers = itertools.count()


def compile_alone(function: Callable[..., Any], options: dict[str, Any], **settings: Any) -> Callable[..., Any]:
    """torch.compile by this backend, with compiled code that belongs to this call of `compile_alone` alone.

    Dynamo keeps compiled code with the code object of each Python function that it compiles, so networks of one class
    share it, and only guards keep them apart. Here every call has a code object of its own, and for the frames behind
    a graph break, which all networks of a class do share, a backend of its own, which Dynamo compares too. Neither
    another network's code nor its count of recompilations is then ever met. settings: torch.compile's.
    """
    number = next(_numbers)
    code = function.__code__.replace(co_name=f"{function.__name__}_{number}")  # Dynamo remembers sizes by this name
    own = types.FunctionType(
        code, function.__globals__, code.co_name, function.__defaults__, function.__closure__
    )
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:  # since torch 2.13
        settings = {"isolate_recompiles": True, "recompile_limit": MAX_RECOMPILES, **settings}
    filters = {"guard_filter_fn": options.pop("guard_filter_fn")} if "guard_filter_fn" in options else None
    # Dynamo keeps a code object for as long as it has compiled it, and with it the weights that were constants
    weakref.finalize(own, _forget, code).atexit = False
    # a partial equals nothing but itself, where torch.compile's own wrapper of a backend's name compares options
    own_backend = functools.partial(backend, options=options)
    return torch.compile(own, backend=own_backend, options=filters, **settings)


def _forget(code: types.CodeType) -> None:
    torch._dynamo.eval_frame.remove_from_cache(code)


def _compile(
    graph_module: fx.GraphModule, example_inputs: Sequence[Tensor], inner: Any, mode: str | None, settings: dict
) -> Callable[..., Any]:
    if inner == "inductor":
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx

        patches = {**(list_mode_options(mode) if mode else {}), **settings}
        unknown = [name for name in patches if not hasattr(torch._inductor.config, name)]
        if unknown:
            raise ValueError(f"lwrn_fast: options must be of {', '.join(OPTIONS)} or inductor's, got {unknown[0]!r}")
        return compile_fx(graph_module, list(example_inputs), config_patches=patches)  # type: ignore[return-value]
    if settings or mode:
        raise ValueError(f"lwrn_fast: options and mode are for inductor, got {[*settings, mode][0]!r} with {inner!r}")
    function = torch._dynamo.lookup_backend(inner) if isinstance(inner, str) else inner
    return function(graph_module, list(example_inputs))
