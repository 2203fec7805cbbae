"""The 1x1 convolutions inside a fused block: whether their weights are all there is to them."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations


def parameters(convs: Sequence[nn.Module]) -> tuple[list[Tensor], list[Tensor]] | str:
    """Weights and biases, as the functions take them; or why a fused op cannot stand for these children of a block."""
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for conv in convs:
        if type(conv) is not nn.Conv2d:
            kind = type_before_parametrizations(conv)  # a parametrized weight is a weight like any other
            if kind is not nn.Conv2d:
                return f"a module inside the block is a {kind.__name__}, not a Conv2d"
        if has_hooks(conv):
            return "a Conv2d inside the block has hooks"
        if conv.kernel_size != (1, 1) or conv.stride != (1, 1) or conv.padding != (0, 0):
            return "a Conv2d inside the block is not a 1x1 convolution"
        if conv.groups != convs[0].groups:
            return "the Conv2d inside the block differ in groups"
        weights.append(cast(Tensor, conv.weight))
        bias = cast(Tensor | None, conv.bias)
        if bias is not None:
            biases.append(bias)
    if biases and len(biases) != len(weights):
        return "some Conv2d inside the block have a bias and some have none"
    return weights, biases


def has_hooks(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks)
