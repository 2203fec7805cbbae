"""The ops as PyTorch's dispatcher knows them: `torch.ops.lwrn_fast.<name>`, and `triton_<name>` for Triton's kernels.

Each op's file describes its operators by a `Definition`; `define` registers them all in the same way.
The C++ kernels define the schemas; where those kernels are absent, `define` does.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..backends import native, triton
from . import autocast, flops

# The keys of torch.vmap, and of torch.autograd.grad(is_grads_batched=True).
_BATCHING = ("FuncTorchBatched", "Batched")
_library = torch.library.Library("lwrn_fast", "FRAGMENT")
_batched_triton = torch.library.Library("lwrn_fast", "FRAGMENT")
# All definitions, in the order in which they were made.
DEFINITIONS: list["Definition"] = []


@dataclass(frozen=True, eq=False)
class Definition:
    """An operator of PyTorch: all its functions take the arguments of the schema, in order."""

    schema: str
    # PyTorch's own operations, for every device and dtype without a kernel; the result is fresh memory.
    run: Callable[..., Any]
    # A result of the true shape, dtype and strides, without values.
    fake: Callable[..., Any]
    # Autograd's setup_context; None where there is no gradient.
    save: Callable[..., None] | None = None
    # Takes the prefix of the operators to use, "" or "triton_", and returns autograd's backward function.
    differentiate: Callable[[str], Callable[..., Any]] | None = None
    # True where it runs in the dtype of autocast.
    casts: bool = False
    # PyTorch's own operations that torch.vmap knows.
    batched: Callable[..., Any] | None = None
    # Operations, from the arguments' shapes.
    flops: Callable[..., int] = flops.none
    # The module of lwrn_fast.kernels whose `prepare` takes the same arguments; None where Triton has no kernel.
    kernel: str | None = None
    # Takes Triton's launch and returns its results; None where `launch.run()` does.
    read_launch: Callable[[Any], Any] | None = None

    @property
    def name(self) -> str:
        return self.schema.split("(")[0]


def define(*definitions: Definition) -> None:
    """Register operators with PyTorch."""
    for definition in definitions:
        DEFINITIONS.append(definition)
        name = definition.name
        if native.MISSING is not None:
            _library.define(definition.schema)
        _library.impl(name, definition.run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"lwrn_fast::{name}", definition.fake, lib=_library)
        if definition.differentiate is not None:
            torch.library.register_autograd(
                f"lwrn_fast::{name}", definition.differentiate(""), setup_context=definition.save, lib=_library
            )
        elif definition.batched is not None:
            _library.impl(name, torch.library.fallthrough_kernel, "Autograd")  # neither labels nor bytes have gradients
        if definition.casts:
            for key in ("AutocastCPU", "AutocastCUDA"):
                _library.impl(name, _cast(name), key)
        if definition.batched is not None:
            for key in _BATCHING:
                _library.impl(name, definition.batched, key)
            flops.register(name, definition.flops)


def _cast(name: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        return autocast.call(getattr(torch.ops.lwrn_fast, name), autocast.first_tensor(arguments), *arguments)

    return run


def define_triton() -> None:
    """Register Triton's kernels; torch.compile sees the launches in them."""
    interpreted = importlib.import_module("lwrn_fast.kernels.values").INTERPRETED.value
    # Interpreted kernels cannot be traced.
    make = torch.library.custom_op if interpreted else torch.library.triton_op
    for definition in DEFINITIONS:
        if definition.kernel is None:
            continue
        name = f"triton_{definition.name}"
        schema = definition.schema[len(definition.name) :]
        op: Any = make(f"lwrn_fast::{name}", _launch(definition), mutates_args=(), schema=schema)
        op.register_fake(definition.fake)
        if definition.differentiate is not None:
            op.register_autograd(definition.differentiate("triton_"), setup_context=definition.save)
        for key in _BATCHING:
            _batched_triton.impl(name, definition.batched, key)
        flops.register(name, definition.flops)


def _launch(definition: Definition) -> Callable[..., Any]:
    prepare = importlib.import_module(f"lwrn_fast.kernels.{definition.kernel}").prepare
    read = definition.read_launch

    def run(*arguments: Any) -> Any:
        launch = prepare(*arguments, traced=True)
        return launch.run() if read is None else read(launch)

    return run


triton.on_first_use.append(define_triton)
