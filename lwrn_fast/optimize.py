"""A network for inference, as fast as it gets here, by one call."""

import copy
import logging
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from . import heap
from .accelerate import accelerate, fold_norms
from .rewrite.report import Report

log = logging.getLogger("lwrn_fast")
HOW = ("compile", "eager")


class Optimized(nn.Module):
    """What `optimize` returns: the network's forward without gradients. `report` tells what was replaced.

    `network` is the copy that runs; its weights are part of compiled code, so changing them changes nothing.
    """

    def __init__(
        self,
        network: nn.Module,
        run: Any,
        report: Report,
        settings: AbstractContextManager,
        narrow: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.network, self.report = network, report
        self._run = run
        self._settings = settings
        self._narrow = narrow  # of what goes in and out, where the network computes in float32 instead

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # not in inference mode, for which everything would be compiled and kept a second time
        # and frozen where this call compiles: Dynamo must know that, not inductor alone
        with torch.inference_mode(False), torch.no_grad(), self._settings:
            args, kwargs = tree_map(_normal, (args, kwargs))
            if self._narrow is None:
                return self._run(*args, **kwargs)
            args, kwargs = _cast((args, kwargs), self._narrow, torch.float32)
            return _cast(self._run(*args, **kwargs), torch.float32, self._narrow)

    def train(self, mode: bool = True) -> "Optimized":
        """Always for inference; RuntimeError for anything else."""
        if mode:
            raise RuntimeError("optimize: the network is for inference; train the one it was made from")
        return super().train(False)

    def __deepcopy__(self, memo: dict) -> "Optimized":
        raise TypeError("optimize: compiled code cannot be copied; optimize a copy of the network")

    def __reduce__(self) -> tuple:
        raise TypeError("optimize: compiled code cannot be pickled; see lwrn_fast.export for files")


def optimize(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    *,
    how: str = "compile",
    dynamic: bool = False,
    dtype: torch.dtype | None = None,
    options: dict[str, Any] | None = None,
) -> Optimized:
    """A copy of any network, for inference alone and as fast as it gets: our ops, batch normalisations folded into
    convolutions, channels-last memory, compiled, and warmed up. The network itself stays as it is.

    example: the input, or all positional ones, e.g. (N, 3, H, W); the first call with other sizes compiles again.
    how: "compile" for torch.compile's inductor with frozen weights, which takes some seconds and a C++ compiler;
    "eager" for `accelerate` on the copy, which takes none, and is taken where there is no compiler. dynamic: compile
    for any size at once, somewhat slower. dtype: cast the copy, and floating-point inputs by yourself. A CPU
    without instructions for a 16-bit type computes in float32, and casts the result.
    options: more of inductor's. On a CPU the process keeps freed memory for its next call from then on, up to 1 GB; see
    `lwrn_fast.heap.keep`.
    Returns an `Optimized` module, to be called as the network, without gradients.
    Raises TypeError or ValueError for wrong arguments, and what the network raises for the example.

    >>> import torch, lwrn_fast
    >>> fast = lwrn_fast.optimize(lwrn_fast.CRP(8, 8), torch.rand(1, 8, 6, 7), how="eager")
    >>> fast(torch.rand(1, 8, 6, 7)).shape
    torch.Size([1, 8, 6, 7])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"optimize: model must be a torch.nn.Module, got {type(model).__name__}")
    if how not in HOW:
        raise ValueError(f'optimize: how must be "compile" or "eager", got {how!r}')
    if not isinstance(example, (Tensor, list, tuple)):
        found = type(example).__name__
        raise TypeError(f"optimize: example must be a tensor, or all inputs in a list, got {found}")
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    network = copy.deepcopy(model).eval().requires_grad_(False)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    on_cpu = all(parameter.is_cpu for parameter in network.parameters())
    narrow = None
    if dtype is None and {p.dtype for p in network.parameters()} in ({torch.bfloat16}, {torch.float16}):
        dtype = next(network.parameters()).dtype
    if dtype is not None:
        if on_cpu and (reason := _why_wide(dtype)) is not None:
            log.warning("optimize computes in float32: %s", reason)
            dtype, narrow = torch.float32, dtype
        network.to(dtype)
        inputs = tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)
    if on_cpu:
        heap.keep()
    reason = _why_not_compiled() if how == "compile" and on_cpu else None
    if reason is not None:
        log.warning("optimize runs the network without torch.compile: %s", reason)
    if how == "eager" or reason is not None:
        fold_norms(network)
        optimized = Optimized(network, network, accelerate(network), nullcontext(), narrow)
    else:
        report = Report()
        # with the calls in C++ too, networks measured faster on a CPU
        settings = {"cpp_wrapper": on_cpu, "guard_filter_fn": _of_inputs, **(options or {}), "report": report}
        run = torch.compile(network, backend="lwrn_fast", dynamic=dynamic, options=settings)
        optimized = Optimized(network, run, report, torch._inductor.config.patch(freezing=True), narrow)
    optimized(*inputs)
    return optimized


def _of_inputs(guards: Sequence[Any]) -> list[bool]:
    """What is looked at before each call: the inputs and PyTorch's state. The network is a copy that nobody changes,
    and Dynamo would hold thousands of its attributes against what they were, for two milliseconds."""
    return [not guard.is_global and not re.search(r"\bself\b", guard.name) for guard in guards]


def _normal(x: Any) -> Any:
    """The same memory as a tensor that is not of inference mode, for which everything would be compiled again."""
    return torch.from_dlpack(x) if isinstance(x, Tensor) and x.is_inference() else x


def _cast(values: Any, old: torch.dtype, new: torch.dtype) -> Any:
    return tree_map(lambda x: x.to(new) if isinstance(x, Tensor) and x.dtype == old else x, values)


def _why_wide(dtype: torch.dtype) -> str | None:
    """Why a CPU does better in float32: without instructions for the type, convolutions take ten times as long."""
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    if dtype not in supported or not torch.backends.mkldnn.is_available() or supported[dtype]():
        return None
    return f"this CPU has no instructions for {str(dtype).removeprefix('torch.')}"


def _why_not_compiled() -> str | None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        return str(error).strip().splitlines()[0]
    return None
