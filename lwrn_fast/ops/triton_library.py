"""The Triton kernels as PyTorch's dispatcher knows them: `torch.ops.lwrn_fast.triton_crp` and so on, with fake kernels
and autograd. torch.compile sees the launches in them. This module is imported when they are first used."""

from typing import Any

import torch
from torch import Tensor

from ..kernels import crp as crp_kernel
from ..kernels import crp_backward as crp_backward_kernel
from ..kernels import fusion as fusion_kernel
from ..kernels import fusion_backward as fusion_backward_kernel
from ..kernels import normalise as normalise_kernel
from ..kernels import upsample_argmax as upsample_argmax_kernel
from ..kernels.numerics import INTERPRETED
from . import batching, flops, library

KERNELS = {
    "crp": crp_kernel.prepare,
    "fusion": fusion_kernel.prepare,
    "upsample_argmax": upsample_argmax_kernel.prepare,
    "normalise": normalise_kernel.prepare,
}


def crp(x: Tensor, weights: list[Tensor], biases: list[Tensor], groups: int) -> Tensor:
    return crp_kernel.prepare(x, weights, biases, groups, traced=True).run()


def crp_training(x: Tensor, weights: list[Tensor], biases: list[Tensor], groups: int) -> tuple[Tensor, list[Tensor]]:
    launch = crp_kernel.prepare(x, weights, biases, groups, traced=True)
    # What an op returns may not share memory: separate results would cost the kernel registers, which it would spill.
    return launch.run(), [stage.clone(memory_format=torch.channels_last) for stage in launch.kept]


def crp_backward(
    grad: Tensor,
    x: Tensor,
    stages: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    groups: int,
    needs: list[bool],
) -> list[Tensor]:
    return crp_backward_kernel.prepare(grad, x, stages, weights, biases, groups, needs, traced=True).run()


def fusion(
    inputs: list[Tensor], weights: list[Tensor], biases: list[Tensor], activation: str, align_corners: bool
) -> Tensor:
    return fusion_kernel.prepare(inputs, weights, biases, activation, align_corners, traced=True).run()


def fusion_backward(
    grad: Tensor,
    out: Tensor | None,
    inputs: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    activation: str,
    align_corners: bool,
    needs: list[bool],
) -> list[Tensor]:
    return fusion_backward_kernel.prepare(
        grad, out, inputs, weights, biases, activation, align_corners, needs, traced=True
    ).run()


def upsample_argmax(logits: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    return upsample_argmax_kernel.prepare(logits, height, width, align_corners, traced=True).run()


def normalise(
    images: Tensor, height: int, width: int, mean: list[float], std: list[float], dtype: torch.dtype
) -> Tensor:
    return normalise_kernel.prepare(images, height, width, mean, std, dtype, traced=True).run()


# What the interpreter runs cannot be traced.
_define: Any = torch.library.custom_op if INTERPRETED.value else torch.library.triton_op

_crp = _define("lwrn_fast::triton_crp", crp, mutates_args=())
_crp.register_fake(library.crp_fake)
_crp.register_autograd(library.differentiate_crp("triton_crp_backward"), setup_context=library.save_crp)
_crp_training = _define("lwrn_fast::triton_crp_training", crp_training, mutates_args=())
_crp_training.register_fake(library.crp_training_fake)
_crp_training.register_autograd(
    library.differentiate_crp("triton_crp_backward"), setup_context=library.save_crp_training
)
_crp_backward = _define("lwrn_fast::triton_crp_backward", crp_backward, mutates_args=())
_crp_backward.register_fake(library.crp_backward_fake)
_crp_backward.register_autograd(library.differentiate_crp_backward, setup_context=library.save_crp_backward)
_fusion = _define("lwrn_fast::triton_fusion", fusion, mutates_args=())
_fusion.register_fake(library.fusion_fake)
_fusion.register_autograd(library.differentiate_fusion("triton_fusion_backward"), setup_context=library.save_fusion)
_fusion_backward = _define("lwrn_fast::triton_fusion_backward", fusion_backward, mutates_args=())
_fusion_backward.register_fake(library.fusion_backward_fake)
_fusion_backward.register_autograd(library.differentiate_fusion_backward, setup_context=library.save_fusion_backward)
_upsample_argmax = _define("lwrn_fast::triton_upsample_argmax", upsample_argmax, mutates_args=())
_upsample_argmax.register_fake(library.upsample_argmax_fake)
_normalise = _define("lwrn_fast::triton_normalise", normalise, mutates_args=())
_normalise.register_fake(library.normalise_fake)

_library = torch.library.Library("lwrn_fast", "FRAGMENT")
for _name, _function in batching.FUNCTIONS.items():
    for _key in batching.KEYS:
        _library.impl(f"triton_{_name}", _function, _key)
flops.register("triton_")
