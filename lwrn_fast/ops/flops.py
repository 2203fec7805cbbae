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

COUNTER = "torch.utils.flop_counter"
Shape = Sequence[int]


def crp(x: Shape, weights: Sequence[Shape], biases: Sequence[Shape], groups: int, **_: Any) -> int:
    return sum(_counter().conv_flop_count(x, weight, x) for weight in weights)


def crp_backward(
    grad: Shape,
    x: Shape,
    stages: Sequence[Shape],
    weights: Sequence[Shape],
    biases: Sequence[Shape],
    groups: int,
    needs: Sequence[bool],
    **_: Any,
) -> int:
    count = len(weights)
    need_x, need_weights, need_biases = needs[0], needs[1 : count + 1], needs[count + 1 :]
    total = 0
    for i, weight in enumerate(weights):
        earlier = need_x or any(need_weights[:i]) or any(need_biases[:i])
        total += _convolution_backward(grad, x, weight, groups, earlier, need_weights[i])
    return total


def fusion(
    inputs: Sequence[Shape], weights: Sequence[Shape], biases: Sequence[Shape], activation: str, align: bool, **_: Any
) -> int:
    return sum(_counter().conv_flop_count(x, weight, x) for x, weight in zip(inputs, weights, strict=True))


def fusion_backward(
    grad: Shape,
    out: Shape | None,
    inputs: Sequence[Shape],
    weights: Sequence[Shape],
    biases: Sequence[Shape],
    activation: str,
    align: bool,
    needs: Sequence[bool],
    **_: Any,
) -> int:
    total = 0
    for k, (x, weight) in enumerate(zip(inputs, weights, strict=True)):
        low = [x[0], weight[0], *x[2:]]
        total += _convolution_backward(low, x, weight, 1, needs[k], needs[len(inputs) + k])
    return total


def none(*_: Any, **__: Any) -> int:
    """No convolution."""
    return 0


FORMULAS: dict[str, Callable[..., int]] = {
    "crp": crp,
    "crp_training": crp,
    "crp_backward": crp_backward,
    "fusion": fusion,
    "fusion_backward": fusion_backward,
    "upsample_argmax": none,
    "normalise": none,
}


def register(prefix: str = "") -> None:
    """Register the formulas of the ops that are called so with this prefix, now or when the counter is imported."""
    counter = sys.modules.get(COUNTER)
    if counter is None:
        _deferred.append(prefix)
        if _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)  # the counter imports Triton, which takes a third of a second
        return
    for name, formula in FORMULAS.items():
        packet = getattr(torch.ops.lwrn_fast, prefix + name)
        if packet not in counter.flop_registry:
            counter.register_flop_formula(packet)(formula)


class _Finder:
    """Lets Python find the counter's module, and registers the formulas once that has been run."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != COUNTER or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                _import_triton_library()
                for prefix in _deferred:
                    register(prefix)

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def _import_triton_library() -> None:
    """A counter knows the formulas that there are when it is made: those of Triton's ops have to be there too."""
    from ..backends import triton

    if triton.missing() is None:
        importlib.import_module("lwrn_fast.ops.triton_library")


def _convolution_backward(
    grad: Shape, x: Shape, weight: Shape, groups: int, need_x: bool, need_weight: bool
) -> int:
    mask = [need_x, need_weight, False]
    arguments = (grad, x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], groups, mask)
    return _counter().conv_backward_flop(*arguments, out_val=[x, weight, None])


def _counter() -> Any:
    return sys.modules[COUNTER]


_deferred: list[str] = []
_finder: Any = _Finder()
