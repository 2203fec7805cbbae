"""Helpers of the ops' backward passes: lists of gradients of which some are needed, and second derivatives."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import autocast


def convolution(
    grad: Tensor, x: Tensor, weight: Tensor, groups: int, mask: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the input, the weight and the bias of a 1x1 convolution that the mask selects."""
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.shape[0]], [1, 1], [0, 0], [1, 1], False, [0, 0], groups, mask
    )


def pull_back(
    backward: Callable[..., Sequence[Tensor | None]], tensors: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Return the gradients of `tensors` from those of the results of `backward`; differentiable again.

    Results of None are left out; a gradient of None counts as zero.
    """

    def needed(*given: Tensor) -> tuple[Tensor, ...]:
        return tuple(g for g in backward(*given) if g is not None)

    with autocast.off(tensors[0]):
        out, pull, *_ = torch.func.vjp(needed, *tensors)
        return pull(tuple(torch.zeros_like(o) if g is None else g for o, g in zip(out, grads, strict=True)))


def needed(grads: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor]:
    """Return the gradients that are needed, without gaps."""
    return [g for g, need in zip(grads, needs, strict=True) if need and g is not None]


def masked(grads: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients that are needed, None instead of the others."""
    return [g if need else None for g, need in zip(grads, needs, strict=True)]


def spread(grads: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """Return one entry per tensor: its gradient, or None where none was needed."""
    remaining = iter(grads)
    return [next(remaining) if need else None for need in needs]


def own_memory(grads: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor]:
    """Return copies of the gradients that are needed, with the strides that `fake` promises."""
    return [g.clone(memory_format=_format(g)) for g in needed(grads, needs)]


def fake(tensors: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    """Return gradients without values of the tensors that need them."""
    return [
        torch.empty(t.shape, dtype=t.dtype, device=t.device, memory_format=_format(t))
        for t, need in zip(tensors, needs, strict=True)
        if need
    ]


def channels_last(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a map without values, channels-last."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def strided_as(weights: list[Tensor], grads: list[Tensor | None]) -> list[Tensor | None]:
    """Return the gradients with the strides of their 1x1 weights, where only those of the last two dimensions differ.

    Such strides carry no meaning, but DistributedDataParallel compares them and warns.
    """
    for i, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
        if grad is not None and grad.shape == weight.shape and not torch.compiler.is_compiling():
            strides, own = weight.stride(), grad.stride()
            if strides != own and strides[0] == own[0] and (strides[1] == own[1] or grad.shape[1] == 1):
                grads[i] = grad.as_strided(weight.shape, strides)
    return grads


def split(items: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    """Return consecutive lists of these lengths."""
    rest, parts = list(items), []
    for count in counts:
        parts.append(rest[:count])
        rest = rest[count:]
    return parts


def flat(lists: Sequence[Sequence[bool]]) -> list[bool]:
    """Return the items of all lists as one."""
    return [item for items in lists for item in items]


def _format(tensor: Tensor) -> torch.memory_format:
    return torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
