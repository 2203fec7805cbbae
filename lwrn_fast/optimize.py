"""`optimize`: a copy of a model for inference, rewritten, compiled and warmed up by one call."""

import copy
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from . import heap
from .accelerate import OURS, accelerate, fold_norms
from .log import log
from .rewrite import compiling, notes
from .rewrite.report import Report

HOW = ("compile", "eager")
# Held while the settings of the process are those of a capture.
_compiling = threading.RLock()


class Optimized(nn.Module):
    """The result of `optimize`: the model's forward without gradients. `report` holds the findings.

    `network` is the copy that runs; its weights are part of compiled code, so changing them changes nothing.
    """

    def __init__(
        self,
        network: nn.Module,
        report: Report,
        options: dict[str, Any] | None = None,
        dynamic: bool | None = None,
        narrow: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.network, self.report, self.training = network, report, False
        self._arguments = options, dynamic, narrow
        self._eager = options is None or options.get("backend") == "eager"
        self._dtype = narrow  # inputs' and results', where the model computes in float32 instead
        self._compiled: set[Any] = set()  # signatures of inputs with compiled code
        self._logged: set[str] = set()  # notes about code that runs as it is
        self._run: Callable[..., Any] | None = None  # called with the network and its arguments; None: the network is
        if options is not None:
            settings = {**options, "guard_filter_fn": _guards(network), "report": report}
            self._run = compiling.compile_alone(_run, settings, dynamic=dynamic)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # inference mode would compile and keep everything a second time
        with torch.inference_mode(False), torch.no_grad():
            args, kwargs = tree_map(_outside_inference_mode, (args, kwargs))
            if self._dtype is None:
                return self._call(args, kwargs)
            args, kwargs = _cast((args, kwargs), self._dtype, torch.float32)
            return _cast(self._call(args, kwargs), torch.float32, self._dtype)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._run is None:
            return self.network(*args, **kwargs)
        signature = _signature(args, kwargs)
        if signature in self._compiled:
            return self._run(self.network, args, kwargs)
        # not inductor alone, Dynamo too must know that weights are frozen, and reads it from settings of the process
        frozen = torch._inductor.config.patch(freezing=True)
        options = {"recompile_limit": compiling.MAX_RECOMPILES, "trace_numpy": False}  # PyTorch's NumPy differs
        if self._eager:  # nothing else was asked for, so a model that cannot be captured runs as it is
            options["suppress_errors"] = True
        dynamo = torch._dynamo.config.patch(options)
        with _compiling, frozen, dynamo, notes.collected() as messages:
            result = self._run(self.network, args, kwargs)
        notes.tell(messages, self._logged, "optimize", type(self.network).__name__, self.report)
        self._compiled.add(signature)
        return result

    def train(self, mode: bool = True) -> "Optimized":
        """Stay in inference mode; raise RuntimeError for mode=True."""
        if mode:
            raise RuntimeError("optimize: the network is for inference; train the one it was made from")
        return super().train(False)

    def __deepcopy__(self, memo: dict) -> "Optimized":
        cls, (network, _, *rest) = self.__reduce__()
        return cls(copy.deepcopy(network, memo), Report(), *rest)

    def __copy__(self) -> "Optimized":
        return self.__deepcopy__({})

    def __reduce__(self) -> tuple:
        """Leave out compiled or captured code; a copy makes its own at its first call."""
        options, dynamic, narrow = self._arguments
        if options is not None and not self._eager:
            raise TypeError(
                "optimize: compiled code can be neither copied nor pickled: optimize a copy of the network, "
                'take how="eager", or see lwrn_fast.export for files'
            )
        return Optimized, (self.network, Report(), options, dynamic, narrow)


def optimize(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    *,
    how: str = "compile",
    dynamic: bool = False,
    dtype: torch.dtype | None = None,
    options: dict[str, Any] | None = None,
) -> Optimized:
    """Return a copy of any model for inference alone: with our ops, batch normalisations folded into convolutions,
    channels-last memory, compiled, and warmed up. The model itself stays as it is.

    example: the input, or all positional ones, e.g. (N, 3, H, W); the first call with other sizes compiles again.
    how: "compile" for torch.compile's inductor with frozen weights, which takes some seconds and a C++ compiler;
    "eager" for `accelerate` on the copy, which takes none, and is taken where there is no compiler. dynamic: compile
    for any size at once, somewhat slower. dtype: cast the copy, and floating-point inputs by yourself. A CPU
    without instructions for a 16-bit type computes in float32, and casts the result.
    options: more of inductor's. On a CPU the process keeps freed memory for its next call from then on, up to 1 GB; see
    `lwrn_fast.heap.keep`.
    Returns an `Optimized` module, to be called as the model, without gradients.
    Raises TypeError or ValueError for wrong arguments, and any error of the model for the example.

    >>> import torch, lwrn_fast
    >>> fast = lwrn_fast.optimize(lwrn_fast.CRP(8, 8), torch.rand(1, 8, 6, 7), how="eager")
    >>> fast(torch.rand(1, 8, 6, 7)).shape
    torch.Size([1, 8, 6, 7])
    """
    inputs = _checked(model, example, how)
    model = getattr(model, "_orig_mod", model)  # the model that torch.compile wraps
    network = copy.deepcopy(model).eval().requires_grad_(False)
    on_cpu = all(parameter.is_cpu for parameter in network.parameters())
    inputs, narrow = _cast_to(network, inputs, dtype, on_cpu)
    if on_cpu:
        heap.keep()
    reason = _why_not_compiled() if how == "compile" and on_cpu else None
    if reason is not None:
        log.warning("optimize runs the network without torch.compile: %s", reason)
    eager = how == "eager" or reason is not None
    if isinstance(network, OURS):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if eager and isinstance(network, OURS):  # rewritten already; a capture would only cost time
        fold_norms(network)
        optimized = Optimized(network, accelerate(network), narrow=narrow)
    elif eager:
        settings = {"backend": "eager", "frozen": True, "channels_last": True}
        optimized = Optimized(network, Report(), settings, dynamic or None, narrow)
    else:  # cpp_wrapper: models measured faster on a CPU with the calls in C++ too
        settings = {"cpp_wrapper": on_cpu, "channels_last": True, **(options or {})}
        optimized = Optimized(network, Report(), settings, dynamic, narrow)
    optimized(*inputs)
    return optimized


def _checked(model: nn.Module, example: Tensor | Sequence[Tensor], how: str) -> tuple[Any, ...]:
    """Check the arguments of `optimize` and return all inputs of the example."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"optimize: model must be a torch.nn.Module, got {type(model).__name__}")
    if how not in HOW:
        raise ValueError(f'optimize: how must be "compile" or "eager", got {how!r}')
    if not isinstance(example, (Tensor, list, tuple)):
        got = type(example).__name__
        raise TypeError(f"optimize: example must be a tensor, or all inputs in a list, got {got}")
    return (example,) if isinstance(example, Tensor) else tuple(example)


def _cast_to(
    network: nn.Module, inputs: tuple[Any, ...], dtype: torch.dtype | None, on_cpu: bool
) -> tuple[tuple[Any, ...], torch.dtype | None]:
    """Cast the network in place to the dtype asked for, or its own 16-bit one; to float32 on a CPU without that type.

    Returns the inputs, cast alike, and the 16-bit dtype that inputs and results have in spite of float32, None without.
    """
    if dtype is None and {p.dtype for p in network.parameters()} in ({torch.bfloat16}, {torch.float16}):
        dtype = next(network.parameters()).dtype
    if dtype is None:
        return inputs, None
    narrow = None
    if on_cpu and (reason := _why_wide(dtype)) is not None:
        log.warning("optimize computes in float32: %s", reason)
        dtype, narrow = torch.float32, dtype
    network.to(dtype)
    cast = tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)
    return cast, narrow


def _run(optimized_network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return optimized_network(*args, **kwargs)


def _guards(network: nn.Module) -> Callable[[Sequence[Any]], list[bool]]:
    """Return a filter of the guards that Dynamo checks before each call.

    It keeps guards on inputs, on PyTorch's state, and on the plain values that a forward of the user's own reads from
    its modules and from global variables. The network is a copy with compiled code of its own, so its weights and
    layers do not change: a check of thousands of them took two milliseconds. Behind a graph break, where a module is
    not known by its path from the network, all guards stay.
    """
    whole = re.compile(r"(?:L\[')?optimized_network(?:'\])?((?:\._modules\['[^']*'\])*)(.*)", re.DOTALL)

    def keep(guard: Any) -> bool:
        if guard.is_global:
            return guard.guard_type in VALUE_GUARDS and not re.match(r"G\['__(builtins|import_torch)", guard.name)
        match = whole.fullmatch(guard.name)
        if match is None or guard.guard_type in GROWTH_GUARDS:
            return True
        path, attribute = match.groups()
        owner = network.get_submodule(".".join(re.findall(r"'([^']*)'", path)))
        known = type(owner).__module__.startswith(("torch.", f"{__package__}."))
        if not attribute:
            return not known and guard.guard_type == "NOT_PRESENT_IN_GENERIC_DICT"
        return not known and not re.match(r"\._parameters|\._modules|\.\w*_hooks", attribute)

    return lambda guards: [keep(guard) for guard in guards]


# Types of guards on global variables that a program changes as it runs; functions and classes are not replaced.
VALUE_GUARDS = ("CONSTANT_MATCH", "EQUALS_MATCH", "NONE_MATCH", "DICT_KEYS_MATCH", "SEQUENCE_LENGTH")
# Types of guards on content that a forward may add to its modules as it runs, layers made at need among it.
GROWTH_GUARDS = ("HASATTR", "DICT_CONTAINS", "DICT_NOT_CONTAINS", "DICT_KEYS_MATCH", "SET_CONTAINS", "SET_NOT_CONTAINS")


def _signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the properties of a call's arguments that compiled code depends on, hashable."""
    leaves, spec = tree_flatten((args, kwargs))
    return str(spec) if kwargs else len(args), *[
        (x.shape, x.dtype, x.stride(), x.device) if isinstance(x, Tensor) else repr(x) for x in leaves
    ]


def _outside_inference_mode(x: Any) -> Any:
    """Return a tensor on the same memory outside of inference mode, which would have everything compiled again."""
    return torch.from_dlpack(x) if isinstance(x, Tensor) and x.is_inference() else x


def _cast(values: Any, old: torch.dtype, new: torch.dtype) -> Any:
    """Cast the tensors of one dtype in nested values to another."""
    return tree_map(lambda x: x.to(new) if isinstance(x, Tensor) and x.dtype == old else x, values)


def _why_wide(dtype: torch.dtype) -> str | None:
    """Return the reason why a CPU is faster in float32, None where it has instructions for the type.

    Without these, convolutions take ten times as long.
    """
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    if dtype not in supported or not torch.backends.mkldnn.is_available() or supported[dtype]():
        return None
    return f"this CPU has no instructions for {str(dtype).removeprefix('torch.')}"


def _why_not_compiled() -> str | None:
    """Return the reason why inductor has no C++ compiler, None where it has one."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        return str(error).strip().splitlines()[0]
    return None
