"""The operations of each op for torch.utils.flop_counter: those of the convolutions that it stands for.

As for PyTorch's own operators, a multiply-add counts as two, and neither pooling, upsampling, activations nor biases
count; stages that a backward pass computes again do not count either. So `FlopCounterMode` gives the same for every
backend, forward and backward.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from ..backends import triton

COUNTER = "torch.utils.flop_counter"
Shape = Sequence[int]


def none(*_: Any, **__: Any) -> int:
    """Return the operations of an op without a convolution."""
    return 0


def convolution(x: Shape, weight: Shape) -> int:
    """Return the operations of a 1x1 convolution."""
    return _counter().conv_flop_count(x, weight, x)


def convolution_backward(grad: Shape, x: Shape, weight: Shape, groups: int, need_x: bool, need_weight: bool) -> int:
    """Return the operations of the backward pass of a 1x1 convolution."""
    mask = [need_x, need_weight, False]
    arguments = (grad, x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], groups, mask)
    return _counter().conv_backward_flop(*arguments, out_val=[x, weight, None])


def register(name: str, formula: Callable[..., int]) -> None:
    """Register the formula of `torch.ops.lwrn_fast.<name>`, now or when the counter is imported."""
    counter = sys.modules.get(COUNTER)
    if counter is None:
        _deferred[name] = formula
        if _finder not in sys.meta_path:
            # The counter is not imported here: it imports Triton, which takes a third of a second.
            sys.meta_path.insert(0, _finder)
        return
    packet = getattr(torch.ops.lwrn_fast, name)
    if packet not in counter.flop_registry:
        counter.register_flop_formula(packet)(formula)


class _Finder:
    """A finder of the counter's module, which registers the formulas once the module has been run."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != COUNTER or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                if triton.missing() is None:
                    triton.load()  # a counter uses the formulas registered when it is made
                for op, formula in _deferred.items():
                    register(op, formula)

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def _counter() -> Any:
    return sys.modules[COUNTER]


_deferred: dict[str, Callable[..., int]] = {}
_finder: Any = _Finder()
