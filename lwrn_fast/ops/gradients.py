"""Gradients of the ops in PyTorch's own operators: what autograd does with the reference.

They are spelled out, because below autograd, where an op's kernel runs, autograd records nothing. Autograd can derive
them in turn: `pull_back` does so for second derivatives, of which there are no kernels.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import autocast, reference

_aten = torch.ops.aten
_POOL = ([5, 5], [1, 1], [2, 2])


def crp(
    grad: Tensor,
    x: Tensor,
    stages: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    groups: int,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of x, weights and biases, None where `needs` says so. grad, x: (N, C, H, W), the rest as in `crp`.

    stages: t_1, ... of all stages but the last, or none, and they are computed again.
    """
    count = len(weights)
    need_x, need_weights, need_biases = needs[0], needs[1 : count + 1], needs[count + 1 :] or [False] * count
    stages = [x, *(stages or crp_stages(x, weights[:-1], biases, groups))]
    pooled, places = [], []
    for i in range(count):
        maximum, place = _aten.max_pool2d_with_indices(stages[i], *_POOL)
        pooled.append(maximum)
        places.append(place)
    weight_grads: list[Tensor | None] = [None] * count
    bias_grads: list[Tensor | None] = [None] * count
    stage_grad = grad
    for i in reversed(range(count)):
        earlier = need_x or any(need_weights[:i]) or any(need_biases[:i])
        mask = [earlier, need_weights[i], need_biases[i]]
        pooled_grad, weight_grads[i], bias_grads[i] = _convolution(stage_grad, pooled[i], weights[i], groups, mask)
        if not earlier:
            break
        stage_grad = grad + _aten.max_pool2d_with_indices_backward(
            pooled_grad, stages[i], *_POOL, [1, 1], False, places[i]
        )
    return [stage_grad if need_x else None, *weight_grads, *(bias_grads if biases else [])]


def crp_stages(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], groups: int) -> list[Tensor]:
    """t_1, t_2, ..., one for each of the weights."""
    stages = [x]
    for i, weight in enumerate(weights):
        stages.append(torch.conv2d(reference.pool(stages[-1]), weight, biases[i] if biases else None, groups=groups))
    return stages[1:]


def fusion(
    grad: Tensor,
    out: Tensor | None,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    align_corners: bool,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of inputs, weights and biases, None where `needs` says so. grad, out: (N, P, H_0, W_0), the rest as in
    `fusion`. out: its result, needed where there is an activation."""
    count = len(inputs)
    if activation == "relu":
        grad = _aten.threshold_backward(grad, out, 0)
    elif activation == "relu6":
        grad = _aten.hardtanh_backward(grad, out, 0, 6)
    size = list(grad.shape[2:])
    found = []
    for k, (x, weight) in enumerate(zip(inputs, weights, strict=True)):
        low_grad = grad
        if list(x.shape[2:]) != size:
            low_size = [grad.shape[0], grad.shape[1], x.shape[2], x.shape[3]]
            low_grad = _aten.upsample_bilinear2d_backward(grad, size, low_size, align_corners)
        mask = [needs[k], needs[count + k], bool(biases) and needs[2 * count + k]]
        found.append(_convolution(low_grad, x, weight, 1, mask))
    by_kind = list(zip(*found, strict=True))
    return [g for kind in by_kind[: 3 if biases else 2] for g in kind]


def pull_back(
    backward: Callable[..., Sequence[Tensor | None]], tensors: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """The gradients of `tensors` from those of what `backward` makes of them, leaving out None; differentiable again.

    A gradient of None counts as zero.
    """

    def needed(*given: Tensor) -> tuple[Tensor, ...]:
        return tuple(g for g in backward(*given) if g is not None)

    with autocast.off(tensors[0]):
        out, pull, *_ = torch.func.vjp(needed, *tensors)
        return pull(tuple(torch.zeros_like(o) if g is None else g for o, g in zip(out, grads, strict=True)))


def _convolution(
    grad: Tensor, x: Tensor, weight: Tensor, groups: int, mask: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input, the weight and the bias of a 1x1 convolution, those of the mask."""
    return _aten.convolution_backward(
        grad, x, weight, [weight.shape[0]], [1, 1], [0, 0], [1, 1], False, [0, 0], groups, mask
    )
