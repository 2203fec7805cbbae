"""Small arguments of the differentiable ops, for the tests of gradients and of PyTorch's tools on the ops."""

import torch
from torch import Tensor

import lwrn_fast
from lwrn_fast import reference

OPS = torch.ops.lwrn_fast


def crp_arguments(dtype=torch.float32, bias=True, groups=1, grad=False):
    weights = [torch.randn(6, 6 // groups, 1, 1) / 3 for _ in range(3)]
    biases = [torch.randn(6) for _ in range(3)] if bias else []
    return leaves([torch.randn(2, 6, 7, 9), weights, biases, groups], dtype, grad)


def fusion_arguments(dtype=torch.float32, bias=True, activation="relu", grad=False):
    inputs = [torch.randn(2, 6, 7, 9), torch.randn(2, 4, 3, 5), torch.randn(2, 3, 7, 9)]
    weights = [torch.randn(5, channels, 1, 1) for channels in (6, 4, 3)]
    biases = [torch.randn(5) for _ in range(3)] if bias else []
    return leaves([inputs, weights, biases, activation, True], dtype, grad)


def whole_crp(shape, stages=3, groups=1, dtype=torch.float32):
    """Return grad, x, weights, biases and groups in small whole numbers: sums are exact, and ties everywhere."""
    channels = shape[1]
    weights = []
    for _ in range(stages):
        if groups > 1:
            weight = torch.randint(0, 2, (channels, 1)) * 2 - 1
        else:
            weight = torch.zeros(channels, channels).long()
            weight[torch.arange(channels), torch.randint(channels, (channels,))] = torch.randint(-1, 2, (channels,))
        weights.append(weight.view(channels, -1, 1, 1).to(dtype))
    biases = [torch.randint(-1, 2, (channels,)).to(dtype) for _ in range(stages)]
    maps = [torch.randint(-2, 3, shape).to(dtype) for _ in range(2)]
    return [*maps, weights, biases, groups]


def leaves(item, dtype, grad):
    if isinstance(item, list):
        return [leaves(i, dtype, grad) for i in item]
    return item.to(dtype).detach().requires_grad_(grad) if isinstance(item, Tensor) else item


def tensors_of(item) -> list[Tensor]:
    if isinstance(item, (list, tuple)):
        return [tensor for i in item for tensor in tensors_of(i)]
    return [item] if isinstance(item, Tensor) else []


# The public function, the op, the reference, and the function that makes their arguments.
DIFFERENTIABLE = {
    "crp": (lwrn_fast.crp, OPS.crp, reference.crp, crp_arguments),
    "crp_depthwise": (lwrn_fast.crp, OPS.crp, reference.crp, lambda **given: crp_arguments(groups=6, **given)),
    "crp_without_bias": (lwrn_fast.crp, OPS.crp, reference.crp, lambda **given: crp_arguments(bias=False, **given)),
    "fusion": (lwrn_fast.fusion, OPS.fusion, reference.fusion, fusion_arguments),
    "fusion_relu6": (
        lwrn_fast.fusion,
        OPS.fusion,
        reference.fusion,
        lambda **g: fusion_arguments(activation="relu6", **g),
    ),
    "fusion_none": (
        lwrn_fast.fusion,
        OPS.fusion,
        reference.fusion,
        lambda **g: fusion_arguments(activation="none", **g),
    ),
}


def refilled(given: list, tensors) -> list:
    """Return `given` with its tensors replaced in turn."""
    remaining = iter(tensors)

    def fill(item):
        if isinstance(item, list):
            return [fill(i) for i in item]
        return next(remaining) if isinstance(item, Tensor) else item

    return fill(given)
