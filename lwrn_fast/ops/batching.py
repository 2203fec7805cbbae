"""The ops on batched tensors: those of torch.vmap, and those of torch.autograd.grad(is_grads_batched=True), with which
vectorised Jacobians are made. Each is made of PyTorch's operators, which know both."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import gradients, reference

# of torch.vmap, and of torch.autograd
KEYS = ("FuncTorchBatched", "Batched")


def crp_training(x: Tensor, weights: list[Tensor], biases: list[Tensor], groups: int) -> tuple[Tensor, list[Tensor]]:
    return reference.crp(x, weights, biases, groups), gradients.crp_stages(x, weights[:-1], biases, groups)


def crp_backward(*arguments: Any) -> list[Tensor]:
    return _needed(gradients.crp(*arguments), arguments[-1])


def fusion_backward(*arguments: Any) -> list[Tensor]:
    return _needed(gradients.fusion(*arguments), arguments[-1])


def upsample_argmax(logits: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    return reference.upsample_argmax(logits, (height, width), align_corners)


def normalise(
    images: Tensor, height: int, width: int, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> Tensor:
    return reference.normalise(images, (height, width), dtype, mean, std)


def _needed(found: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor]:
    return [g for g, need in zip(found, needs, strict=True) if need and g is not None]


FUNCTIONS = {
    "crp": reference.crp,
    "crp_training": crp_training,
    "crp_backward": crp_backward,
    "fusion": reference.fusion,
    "fusion_backward": fusion_backward,
    "upsample_argmax": upsample_argmax,
    "normalise": normalise,
}
