"""Functions that rewritten graphs call: our ops where they fit the given tensors, PyTorch's operations where not."""

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

# The parameters of a batch normalisation: mean, variance, weight, bias, epsilon.
Statistics = tuple[Tensor, Tensor, Tensor | None, Tensor | None, float]
# A 1x1 convolution, weight and bias, with the normalisation behind it.
Step = tuple[Tensor, Tensor | None, Statistics | None]
# The upsampling of a map: size, scale_factor and recompute_scale_factor, as interpolate takes them.
Target = tuple[Any, Any, bool] | None


def run_crp(x: Tensor, steps: Sequence[Step], groups: int) -> Tensor:
    """Return the chained residual pooling of x (N, C, H, W), the same shape, by the stages' convolutions."""
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
    """Return the activated sum of maps (N, C_k, H_k, W_k), each convolved and, where it has a target, upsampled."""
    maps, parameters = [], []
    for x, chain in zip(inputs, chains, strict=True):
        x, conv = _fold_two(x, [_normalised(*step) for step in chain], folded)
        maps.append(x)
        parameters.append(conv)
    sizes = [
        tuple(x.shape[2:]) if target is None else _size(x, target, align_corners)
        for x, target in zip(maps, targets, strict=True)
    ]
    batch = maps[0].shape[0]
    if maps[0].dim() == 4 and all(size == sizes[0] for size in sizes) and all(x.shape[0] == batch for x in maps):
        weights, biases = _all_or_none(parameters)
        return fusion(maps, weights, biases, activation, align_corners)
    out: Tensor | None = None  # something is broadcast, or there is no batch
    for x, (weight, bias), target in zip(maps, parameters, targets, strict=True):
        x = F.conv2d(x, weight, bias)
        x = x if target is None else _interpolate(x, target, align_corners)
        out = x if out is None else out + x
    assert out is not None
    return reference.ACTIVATIONS[activation](out)


def run_labels(logits: Tensor, target: tuple[Any, Any, bool], align_corners: bool) -> Tensor:
    """Return the classes of the upsampled logits (N, classes, h, w), int64 (N, H, W), as argmax gives them."""
    size = _size(logits, target, align_corners) if logits.dim() == 4 else None
    if size is not None and logits.shape[1] <= MAX_CLASSES:
        return upsample_argmax(logits, size, align_corners).long()
    return _interpolate(logits, target, align_corners).argmax(1)


def run_pool(x: Tensor, steps: int, source: Tensor, steps_done: int) -> Tensor:
    """Return the (4 steps + 1) x (4 steps + 1) maximum of `source`, (N, C, H, W) to the same, with stride 1.

    x: the maximum of `source` after `steps_done` steps. 5x5 pools compute the rest where no gradient is needed: at ties
    their gradients would go elsewhere.
    """
    learns = (torch.is_grad_enabled() and source.requires_grad) or _is_transformed()
    if learns or source.dim() != 4 or not source.is_cpu or not source.is_floating_point() or source.numel() == 0:
        return F.max_pool2d(source, 4 * steps + 1, 1, 2 * steps)
    for _ in range(steps - steps_done):
        x = pool5x5(x)
    return x


def run_format(x: Tensor, order: Sequence[int]) -> Tensor:
    """Return x with its dimensions in memory in this order, the outermost first; x itself where they are already."""
    if x.dim() != len(order):  # changed in place since
        return x
    ordered = x.permute(*order)
    if ordered.is_contiguous():
        return x
    if (named := FORMATS.get(tuple(order))) is not None:
        return x.contiguous(memory_format=named)  # not a view, as results seldom are
    return ordered.contiguous().permute(*(order.index(dim) for dim in range(x.dim())))


# PyTorch's named memory formats by their order of dimensions, the outermost first.
FORMATS: dict[tuple[int, ...], torch.memory_format] = {
    (0, 1, 2, 3): torch.contiguous_format,
    (0, 2, 3, 1): torch.channels_last,
}


def _is_transformed() -> bool:
    """Return whether a transform is active in which tensors may carry hidden derivatives or batches."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def _normalised(weight: Tensor, bias: Tensor | None, norm: Statistics | None) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of the convolution that also normalises."""
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


def _fold_two(
    x: Tensor, chain: list[tuple[Tensor, Tensor | None]], enabled: bool
) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
    """Return a map and the one convolution that is left to run on it: of two, both folded or the second."""
    if len(chain) == 1:
        return x, chain[0]
    (inner, inner_bias), (outer, outer_bias) = chain
    if not enabled or inner.dtype != outer.dtype or _needs_gradient([inner, outer]):
        return F.conv2d(x, inner, inner_bias), chain[1]
    if torch.compiler.is_compiling() or type(inner) not in (Tensor, torch.nn.Parameter):
        folded = fold(outer, inner)  # part of the graph
    else:
        folded = _folds.setdefault(inner, FoldCache()).get(str(id(outer)), outer, inner)
    if inner_bias is not None:
        through = F.conv2d(inner_bias[None, :, None, None], outer, outer_bias)
        outer_bias = through.flatten()
    return x, (folded, outer_bias)


# A `FoldCache` for each inner convolution's weight.
_folds = WeakTensorKeyDictionary()


def _all_or_none(parameters: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[list[Tensor], list[Tensor] | None]:
    """Return weights and biases: zeros where only some have a bias, None where none has."""
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
    """Return the size of the upsampled map, None where the size does not determine the interpolation."""
    size, scale, recomputed = target
    count = x.dim() - 2
    if size is not None:
        return tuple(size) if isinstance(size, (tuple, list)) else (size,) * count
    scales = scale if isinstance(scale, (tuple, list)) else (scale,) * count
    lengths = tuple(int(length * factor) for length, factor in zip(x.shape[2:], scales, strict=True))
    exact = all(new == old * factor for new, old, factor in zip(lengths, x.shape[2:], scales, strict=True))
    return lengths if exact or align_corners or recomputed else None


def _needs_gradient(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
