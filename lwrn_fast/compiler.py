"""The backend "lwrn_fast" of torch.compile: our ops in the captured graph, and another compiler for the rest."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .rewrite.replacing import Rewriter
from .rewrite.report import Report

log = logging.getLogger("lwrn_fast")
OPTIONS = ("backend", "report", "crp", "fusion", "labels", "fold")


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
    labels, fold, False to leave those alone; whatever else is there goes to inductor, and so does mode. The
    logger "lwrn_fast" tells what was found at level INFO.
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
        report.add(found)
    return _compile(graph_module, example_inputs, inner, mode, given)


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
