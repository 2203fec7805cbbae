"""Fold two consecutive 1x1 convolutions with nothing between them into one, at inference."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

# Modules whose dispatch modes only count operations.
COUNTERS = ("torch.utils.flop_counter", "lwrn_fast.profiling.layers")


def fold(outer: Tensor, inner: Tensor) -> Tensor:
    """Return the weight of one 1x1 convolution equal to `inner`, then `outer`; multiplied in float64, rounded once.

    outer (out, mid, 1, 1), inner (mid, in, 1, 1), one dtype. Returns (out, in, 1, 1) of that dtype. Differentiable.

    >>> tuple(fold(torch.ones(4, 3, 1, 1), torch.ones(3, 2, 1, 1)).shape)
    (4, 2, 1, 1)
    """
    product = outer.flatten(1).double() @ inner.flatten(1).double()
    return product.to(outer.dtype)[:, :, None, None]


def why_not_folded(*weights: Tensor) -> str | None:
    """Return the reason why a result depends on more than the values of these weights, None where it does not.

    Derivatives, batches of weights, tracing, subclasses of Tensor and modes that replace operations all need the
    convolutions themselves. torch.compile sees folding as a part of its graph, and a counter of operations counts the
    one convolution that runs, not the folding.
    """
    if torch.compiler.is_compiling():
        return None
    if any(type(weight) not in (Tensor, torch.nn.Parameter) for weight in weights):
        return "a weight is a subclass of Tensor"
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func is active"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    if torch.jit.is_tracing() or not all(type(mode).__module__ in COUNTERS for mode in _modes()):
        return "operations are traced or replaced"
    return None


def _modes() -> list[Any]:
    """Return the dispatch modes that see every operation of this thread."""
    return _get_current_dispatch_mode_stack() if torch._C._len_torch_dispatch_stack() else []


class FoldCache:
    """Folded weights by name; a weight is folded again when either of its factors has changed.

    On the CPU a comparison with a copy detects a change: it costs little beside folding and sees even a write through
    `.data`. On other devices, where a comparison would wait for the device, storage and version counter detect it.
    Copies and pickles of a cache are empty: it can always be filled again.
    """

    def __init__(self) -> None:
        self._entries: dict[str, tuple[list[_Snapshot], Tensor]] = {}

    def get(self, name: str, outer: Tensor, inner: Tensor) -> Tensor | None:
        """Return `fold(outer, inner)`, detached: from the cache where neither weight has changed.

        None where a result depends on more than the values of the weights, so that the two convolutions must run.
        """
        if why_not_folded(outer, inner) is not None:
            return None
        if torch.compiler.is_compiling():
            return fold(outer, inner)  # part of the graph, so a compiled model follows its weights as well
        key = f"{name} on {outer.device}"
        entry = self._entries.get(key)
        if entry is None or not all(old.matches(new) for old, new in zip(entry[0], (outer, inner), strict=True)):
            # a tensor born in inference mode could not be used where gradients flow later
            with torch.inference_mode(False), torch.no_grad(), _disable_current_modes() if _modes() else nullcontext():
                entry = ([_Snapshot(outer), _Snapshot(inner)], fold(outer, inner))
            self._entries[key] = entry  # this may replace another thread's entry: each uses its own
        return entry[1]

    def __deepcopy__(self, memo: dict) -> "FoldCache":
        return FoldCache()

    def __reduce__(self) -> tuple:
        return FoldCache, ()


class _Snapshot:
    """A weight as it was when it was folded."""

    def __init__(self, weight: Tensor) -> None:
        # off the CPU the alias keeps the old storage alive, so its address cannot come back with other values
        self.kept = weight.detach().clone() if weight.is_cpu else weight.detach()
        self.version = _version(weight)

    def matches(self, weight: Tensor) -> bool:
        if self.kept.dtype != weight.dtype or self.kept.device != weight.device:
            return False
        if weight.is_cpu:
            return torch.equal(self.kept, weight)
        same = self.kept.data_ptr() == weight.data_ptr() and self.kept.shape == weight.shape
        return same and self.kept.stride() == weight.stride() and self.version == _version(weight) != -1


def _version(weight: Tensor) -> int:
    """Return the version counter, or -1 where there is none."""
    return -1 if weight.is_inference() else weight._version
