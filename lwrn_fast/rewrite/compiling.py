"""torch.compile with our ops: the backend for captured graphs, and compiled code that belongs to one model alone."""

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
    """Rewrite and compile a graph captured by `torch.compile(model, backend="lwrn_fast", options={...})`.

    Chained residual poolings, fusions with the batch normalisations in them, 5x5 pools, and upsampling with argmax
    become our ops, for any sizes, in training too. options, all of them optional: backend, the compiler for the rest,
    a name or a function, default "inductor"; report, a `lwrn_fast.Report` that takes the findings; crp, fusion,
    labels, fold, False to leave those alone; channels_last, True to compute in channels-last memory where anything was
    replaced; frozen, True where weights are constants, to fold batch normalisations into convolutions. All other
    options go to inductor, and so does mode. The logger "lwrn_fast" reports the findings at level INFO.
    Raises ValueError for options that inductor does not have, or that are given with another compiler.

    >>> import torch, lwrn_fast
    >>> compiled = torch.compile(lwrn_fast.CRP(8, 8), backend="lwrn_fast")
    """
    rest = dict(options or {})
    compiler = rest.pop("backend", "inductor")
    report = rest.pop("report", None)
    enabled = {name: rest.pop(name) for name in OPTIONS if name in rest}
    rewriter = Rewriter(graph_module.graph, None, "", **enabled)
    if rewriter.run():
        graph_module.graph.lint()
        graph_module.recompile()
    graph_report = Report(rewriter.findings)
    if graph_report.findings:
        log.info("in the captured graph:\n%s", graph_report)
    if report is not None:
        report.add(_graph_breaks(graph_module) + graph_report.findings, part=_frame_id())
    return _compile(graph_module, example_inputs, compiler, mode, rest)


def _frame_id() -> int | None:
    """Return Dynamo's number of the function, or part of one, being compiled. A second capture has the same number."""
    compiling = torch._guards.CompileContext.current_compile_id()
    return None if compiling is None else compiling.frame_id


def _graph_breaks(graph_module: fx.GraphModule) -> list[Finding]:
    """Return a finding with the reason why the graph ends before the forward does, nothing where it does not."""
    reason = getattr(graph_module, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return []
    lines = [line for line in str(reason.reason).splitlines() if line.strip()]
    last = reason.user_stack[-1] if reason.user_stack else None
    at = f" ({os.path.basename(last.filename)}:{last.lineno})" if last else ""
    why = lines[0].strip() if lines else "unknown"
    return [Finding("", "module", "a forward", f"is captured in parts{at}: {why}")]


# Compilations of one function that Dynamo may keep.
MAX_RECOMPILES = 64
_numbers = itertools.count()


def compile_alone(function: Callable[..., Any], options: dict[str, Any], **settings: Any) -> Callable[..., Any]:
    """Compile by torch.compile with this backend; the compiled code belongs to this call of `compile_alone` alone.

    Dynamo keeps compiled code with the code object of each Python function that it compiles, so models of one class
    share it, and only guards keep them apart. Here every call has a code object of its own. The frames behind a graph
    break are shared by all models of a class; for them every call has a backend of its own, which Dynamo compares too.
    So no call meets another model's code or its count of recompilations. settings: torch.compile's.
    """
    number = next(_numbers)
    code = function.__code__.replace(co_name=f"{function.__name__}_{number}")  # Dynamo keeps sizes by this name
    clone = types.FunctionType(
        code, function.__globals__, code.co_name, function.__defaults__, function.__closure__
    )
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:  # since torch 2.13
        settings = {"isolate_recompiles": True, "recompile_limit": MAX_RECOMPILES, **settings}
    filters = {"guard_filter_fn": options.pop("guard_filter_fn")} if "guard_filter_fn" in options else None
    # Dynamo holds compiled code objects, and with them the weights that were constants, until they are removed
    weakref.finalize(clone, _forget, code).atexit = False
    # a partial equals itself alone; torch.compile's own wrapper of a backend's name compares options
    its_backend = functools.partial(backend, options=options)
    return torch.compile(clone, backend=its_backend, options=filters, **settings)


def _forget(code: types.CodeType) -> None:
    torch._dynamo.eval_frame.remove_from_cache(code)


def _compile(
    graph_module: fx.GraphModule, example_inputs: Sequence[Tensor], compiler: Any, mode: str | None, settings: dict
) -> Callable[..., Any]:
    if compiler == "inductor":
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx

        patches = {**(list_mode_options(mode) if mode else {}), **settings}
        unknown = [name for name in patches if not hasattr(torch._inductor.config, name)]
        if unknown:
            raise ValueError(f"lwrn_fast: options must be of {', '.join(OPTIONS)} or inductor's, got {unknown[0]!r}")
        return compile_fx(graph_module, list(example_inputs), config_patches=patches)  # type: ignore[return-value]
    if settings or mode:
        first = [*settings, mode][0]
        raise ValueError(f"lwrn_fast: options and mode are for inductor, got {first!r} with {compiler!r}")
    function = torch._dynamo.lookup_backend(compiler) if isinstance(compiler, str) else compiler
    return function(graph_module, list(example_inputs))
