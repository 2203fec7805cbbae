"""What rewritten graphs call: our ops where they fit the tensors that come, and what the network did where not."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..models.folding import FoldCache, fold
from ..models.refinenet_blocks import pool5x5
from ..ops import reference
from ..ops.crp import crp
from ..ops.fusion import fusion
from ..ops.upsample_argmax import MAX_CLASSES, upsample_argmax

Statistics = tuple[Tensor, Tensor, Tensor | None, Tensor | None, float]
"""Of a batch normalisation: mean, variance, weight, bias, epsilon."""
Step = tuple[Tensor, Tensor | None, Statistics | None]
"""A 1x1 convolution, weight and bias, with the normalisation behind it."""
Target = tuple[Any, Any, bool] | None
"""How a map is upsampled: size, scale_factor and recompute_scale_factor, as interpolate takes them."""


def run_crp(x: Tensor, steps: Sequence[Step], groups: int) -> Tensor:
    """x (N, C, H, W) to the same, by the stages' convolutions."""
    parameters = [_normalised(*step) for step in steps]
    if x.dim() == 4:
        weights, biases = _all_or_none(parameters)
        return crp(x, weights, biases, groups)
    out = stage = x  # one image without a batch
    for weight, bias in parameters:
        stage = F.conv2d(F.max_pool2d(stage, 5, 1, 2), weight, bias, groups=groups)
        out = out + stage
    return out


def run_fusion(
    inputs: Sequence[Tensor],
    chains: Sequence[Sequence[Step]],
    targets: Sequence[Target],
    activation: str,
    align_corners: bool,
    folded: bool,
) -> Tensor:
    """Maps (N, C_k, H_k, W_k), each through its convolutions and, where it has a target, upsampled; summed."""
    maps, parameters = [], []
    for x, chain in zip(inputs, chains, strict=True):
        x, last = _last(x, [_normalised(*step) for step in chain], folded)
        maps.append(x)
        parameters.append(last)
    sizes = [
        tuple(x.shape[2:]) if to is None else _size(x, to, align_corners) for x, to in zip(maps, targets, strict=True)
    ]
    batch = maps[0].shape[0]
    if maps[0].dim() == 4 and all(size == sizes[0] for size in sizes) and all(x.shape[0] == batch for x in maps):
        weights, biases = _all_or_none(parameters)
        return fusion(maps, weights, biases, activation, align_corners)
    out: Tensor | None = None  # something is broadcast, or there is no batch
    for x, (weight, bias), to in zip(maps, parameters, targets, strict=True):
        x = F.conv2d(x, weight, bias)
        x = x if to is None else _interpolate(x, to, align_corners)
        out = x if out is None else out + x
    assert out is not None
    return reference.ACTIVATIONS[activation](out)


def run_labels(logits: Tensor, target: tuple[Any, Any, bool], align_corners: bool) -> Tensor:
    """Logits (N, classes, h, w) to the classes of the upsampled ones, int64 (N, H, W), as argmax gives them."""
    size = _size(logits, target, align_corners) if logits.dim() == 4 else None
    if size is not None and logits.shape[1] <= MAX_CLASSES:
        return upsample_argmax(logits, size, align_corners).long()
    return _interpolate(logits, target, align_corners).argmax(1)


def run_pool(x: Tensor, steps: int, whole: Tensor, done: int) -> Tensor:
    """The maximum of (4 steps + 1) x (4 steps + 1) with stride 1 of `whole`, (N, C, H, W) to the same, from x, which
    is that of `done` steps. It is made of 5x5 pools without gradients, whose way through ties is another."""
    learns = (torch.is_grad_enabled() and whole.requires_grad) or _dual()
    if learns or whole.dim() != 4 or not whole.is_cpu or not whole.is_floating_point() or whole.numel() == 0:
        return F.max_pool2d(whole, 4 * steps + 1, 1, 2 * steps)
    for _ in range(steps - done):
        x = pool5x5(x)
    return x


def run_format(x: Tensor, order: Sequence[int]) -> Tensor:
    """x, its dimensions in memory in this order, from the outermost to the innermost; itself where they are."""
    if x.dim() != len(order):  # changed in place since
        return x
    ordered = x.permute(*order)
    if ordered.is_contiguous():
        return x
    if (usual := USUAL.get(tuple(order))) is not None:
        return x.contiguous(memory_format=usual)  # which is no view, as a result seldom is
    return ordered.contiguous().permute(*(order.index(dim) for dim in range(x.dim())))


USUAL: dict[tuple[int, ...], torch.memory_format] = {
    (0, 1, 2, 3): torch.contiguous_format,
    (0, 2, 3, 1): torch.channels_last,
}
"""Memory formats that PyTorch has a name for, by the order of dimensions."""


def _dual() -> bool:
    """Whether tensors may carry derivatives, or batches, that they do not tell of."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def _normalised(weight: Tensor, bias: Tensor | None, norm: Statistics | None) -> tuple[Tensor, Tensor | None]:
    """The convolution that also normalises."""
    if norm is None:
        return weight, bias
    mean, variance, scale, shift, eps = norm
    factor = torch.rsqrt(variance.double() + eps)
    if scale is not None:
        factor = factor * scale
    offset = -mean * factor if bias is None else (bias - mean) * factor
    if shift is not None:
        offset = offset + shift
    return (weight * factor[:, None, None, None]).to(weight.dtype), offset.to(weight.dtype)


def _last(
    x: Tensor, chain: list[tuple[Tensor, Tensor | None]], wanted: bool
) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
    """A map and the one convolution that is left to do on it."""
    if len(chain) == 1:
        return x, chain[0]
    (inner, inner_bias), (outer, outer_bias) = chain
    if not wanted or inner.dtype != outer.dtype or _learning([inner, outer]):
        return F.conv2d(x, inner, inner_bias), chain[1]
    if torch.compiler.is_compiling() or type(inner) not in (Tensor, torch.nn.Parameter):
        folded = fold(outer, inner)  # part of the graph
    else:
        folded = folds.setdefault(inner, FoldCache()).get(str(id(outer)), outer, inner)
    if inner_bias is not None:
        through = F.conv2d(inner_bias[None, :, None, None], outer, outer_bias)
        outer_bias = through.flatten()
    return x, (folded, outer_bias)


folds = WeakTensorKeyDictionary()
"""Of each inner convolution's weight."""


def _all_or_none(parameters: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[list[Tensor], list[Tensor] | None]:
    """Weights and biases, zeros where only some have one."""
    weights = [weight for weight, _ in parameters]
    if all(bias is None for _, bias in parameters):
        return weights, None
    return weights, [weight.new_zeros(weight.shape[0]) if bias is None else bias for weight, bias in parameters]


def _interpolate(x: Tensor, target: tuple[Any, Any, bool], align_corners: bool) -> Tensor:
    size, scale, recomputed = target
    return F.interpolate(
        x,
        size=size,
        scale_factor=scale,
        mode="bilinear",
        align_corners=align_corners,
        recompute_scale_factor=recomputed or None,
    )


def _size(x: Tensor, target: tuple[Any, Any, bool], align_corners: bool) -> tuple[int, ...] | None:
    """Of the upsampled map; None where that does not tell how it is interpolated."""
    size, scale, recomputed = target
    count = x.dim() - 2
    if size is not None:
        return tuple(size) if isinstance(size, (tuple, list)) else (size,) * count
    scales = scale if isinstance(scale, (tuple, list)) else (scale,) * count
    lengths = tuple(int(length * factor) for length, factor in zip(x.shape[2:], scales, strict=True))
    exact = all(new == old * factor for new, old, factor in zip(lengths, x.shape[2:], scales, strict=True))
    return lengths if exact or align_corners or recomputed else None


def _learning(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
