"""The ops as torch.library knows them, beside the C++ kernels: schemas where those are absent, PyTorch's own operations
for every device and dtype without a kernel, fake kernels with the true strides, autograd and autocast.

`torch.ops.lwrn_fast.crp`, `.fusion` and `.upsample_argmax` return fresh memory: maps channels-last, labels contiguous.
`crp_training` also returns t_1, ... of all stages but the last, which `crp_backward` takes as `stages`; without them it
computes them again. `fusion_backward` takes the result as `out`, where there is an activation. Both return the
gradients that `needs` asks for, in the order of the tensors. `normalise` makes the
input of a network from uint8 (N, H, W, 3). `package_input` copies to channels-last memory what goes into a package of
AOTInductor, of any strides, and refuses another size (-1 for any) or dtype.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import native
from . import autocast, batching, flops, gradients, reference

SCHEMAS = (
    "crp(Tensor x, Tensor[] weights, Tensor[] biases, int groups) -> Tensor",
    "fusion(Tensor[] inputs, Tensor[] weights, Tensor[] biases, str activation, bool align_corners) -> Tensor",
    "upsample_argmax(Tensor logits, SymInt height, SymInt width, bool align_corners) -> Tensor",
    "crp_training(Tensor x, Tensor[] weights, Tensor[] biases, int groups) -> (Tensor, Tensor[])",
    "crp_backward(Tensor grad, Tensor x, Tensor[] stages, Tensor[] weights, Tensor[] biases, int groups, "
    "bool[] needs) -> Tensor[]",
    "fusion_backward(Tensor grad, Tensor? out, Tensor[] inputs, Tensor[] weights, Tensor[] biases, str activation, "
    "bool align_corners, bool[] needs) -> Tensor[]",
    "normalise(Tensor images, SymInt height, SymInt width, float[] mean, float[] std, ScalarType dtype) -> Tensor",
    "package_input(Tensor x, int[] size, ScalarType dtype) -> Tensor",
)

_library = torch.library.Library("lwrn_fast", "FRAGMENT")
if native.missing() is not None:
    for _schema in SCHEMAS:
        _library.define(_schema)


def crp(x: Tensor, weights: list[Tensor], biases: list[Tensor], groups: int) -> Tensor:
    return reference.crp(x, weights, biases, groups).clone(memory_format=torch.channels_last)


def crp_fake(x: Tensor, weights: list[Tensor], biases: list[Tensor], groups: int) -> Tensor:
    return _channels_last(x, x.shape)


def crp_autocast(op: str) -> Callable[..., Any]:
    def cast(x: Tensor, weights: list[Tensor], biases: list[Tensor], groups: int) -> Any:
        arguments = autocast.cast([x, weights, biases], torch.get_autocast_dtype(x.device.type))
        with autocast.off(x):
            return getattr(torch.ops.lwrn_fast, op)(*arguments, groups)

    return cast


def crp_training(x: Tensor, weights: list[Tensor], biases: list[Tensor], groups: int) -> tuple[Tensor, list[Tensor]]:
    stages = gradients.crp_stages(x, weights[:-1], biases, groups)
    return crp(x, weights, biases, groups), [t.clone(memory_format=torch.channels_last) for t in stages]


def crp_training_fake(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], groups: int
) -> tuple[Tensor, list[Tensor]]:
    return _channels_last(x, x.shape), [_channels_last(x, x.shape) for _ in weights[1:]]


def crp_backward(
    grad: Tensor,
    x: Tensor,
    stages: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    groups: int,
    needs: list[bool],
) -> list[Tensor]:
    with autocast.off(grad):
        return _own_memory(gradients.crp(grad, x, stages, weights, biases, groups, needs), needs)


def crp_backward_fake(
    grad: Tensor,
    x: Tensor,
    stages: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    groups: int,
    needs: list[bool],
) -> list[Tensor]:
    return _gradients_fake([x, *weights, *biases], needs)


def save_crp(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    save_crp_training(ctx, inputs, (output, []))


def save_crp_training(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    x, weights, biases, ctx.groups = inputs
    stages = output[1]
    ctx.set_materialize_grads(False)
    ctx.counts = (len(stages), len(weights), len(biases))
    ctx.save_for_backward(x, *stages, *weights, *biases)


def differentiate_crp(backward: str) -> Callable[..., tuple[Any, ...]]:
    """The gradient of an op that saves as `save_crp` or `save_crp_training` do, by the op named `backward`."""

    def differentiate(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        x, *others = ctx.saved_tensors
        stages, weights, biases = _split(others, ctx.counts)
        need_x, *need_parameters, _ = ctx.needs_input_grad
        needs = [need_x, *_flat(need_parameters)]
        if grad is None:
            return (None, [None] * len(weights), [None] * len(biases), None)
        run = getattr(torch.ops.lwrn_fast, backward)
        grad_x, *grads = _spread(run(grad, x, stages, weights, biases, ctx.groups, needs), needs)
        weight_grads, bias_grads = _split(grads, ctx.counts[1:])
        return (grad_x, _strided_as(weights, weight_grads), bias_grads, None)

    return differentiate


def save_crp_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad, x, stages, weights, biases, ctx.groups, ctx.needs = inputs
    ctx.stages, ctx.counts = len(stages), (len(weights), len(biases))
    ctx.save_for_backward(grad, x, *weights, *biases)  # the stages follow from x


def differentiate_crp_backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    def backward(grad: Tensor, x: Tensor, *parameters: Tensor) -> Any:
        weights, biases = _split(parameters, ctx.counts)
        return _masked(gradients.crp(grad, x, [], weights, biases, ctx.groups, ctx.needs), ctx.needs)

    grad, x, *parameters = gradients.pull_back(backward, ctx.saved_tensors, grads)
    return (grad, x, [None] * ctx.stages, *_split(parameters, ctx.counts), None, None)


def fusion(
    inputs: list[Tensor], weights: list[Tensor], biases: list[Tensor], activation: str, align_corners: bool
) -> Tensor:
    out = reference.fusion(inputs, weights, biases, activation, align_corners)
    return out.clone(memory_format=torch.channels_last)


def fusion_fake(
    inputs: list[Tensor], weights: list[Tensor], biases: list[Tensor], activation: str, align_corners: bool
) -> Tensor:
    batch, _, height, width = inputs[0].shape
    return _channels_last(inputs[0], (batch, weights[0].shape[0], height, width))


def fusion_autocast(
    inputs: list[Tensor], weights: list[Tensor], biases: list[Tensor], activation: str, align_corners: bool
) -> Tensor:
    arguments = autocast.cast([inputs, weights, biases], torch.get_autocast_dtype(inputs[0].device.type))
    with autocast.off(inputs[0]):
        return torch.ops.lwrn_fast.fusion(*arguments, activation, align_corners)


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
    with autocast.off(grad):
        found = gradients.fusion(grad, out, inputs, weights, biases, activation, align_corners, needs)
    return _own_memory(found, needs)


def fusion_backward_fake(
    grad: Tensor,
    out: Tensor | None,
    inputs: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    activation: str,
    align_corners: bool,
    needs: list[bool],
) -> list[Tensor]:
    return _gradients_fake([*inputs, *weights, *biases], needs)


def save_fusion(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, weights, biases, ctx.activation, ctx.align_corners = inputs
    ctx.counts = (len(maps), len(weights), len(biases))
    out = None if ctx.activation == "none" else output
    ctx.save_for_backward(out, *maps, *weights, *biases)


def differentiate_fusion(backward: str) -> Callable[..., tuple[Any, ...]]:
    """The gradient of an op that saves as `save_fusion` does, by the op named `backward`."""

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        out, *tensors = ctx.saved_tensors
        needs = _flat(ctx.needs_input_grad[:3])
        given = _split(tensors, ctx.counts)
        run = getattr(torch.ops.lwrn_fast, backward)
        found = _spread(run(grad, out, *given, ctx.activation, ctx.align_corners, needs), needs)
        map_grads, weight_grads, bias_grads = _split(found, ctx.counts)
        return (map_grads, _strided_as(given[1], weight_grads), bias_grads, None, None)

    return differentiate


def save_fusion_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad, out, maps, weights, biases, ctx.activation, ctx.align_corners, ctx.needs = inputs
    ctx.counts = (len(maps), len(weights), len(biases))
    ctx.save_for_backward(out, grad, *maps, *weights, *biases)


def differentiate_fusion_backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    out, *tensors = ctx.saved_tensors

    def backward(grad: Tensor, *given: Tensor) -> Any:
        maps, weights, biases = _split(given, ctx.counts)
        found = gradients.fusion(grad, out, maps, weights, biases, ctx.activation, ctx.align_corners, ctx.needs)
        return _masked(found, ctx.needs)

    grad, *others = gradients.pull_back(backward, tensors, grads)
    return (grad, None, *_split(others, ctx.counts), None, None, None)  # the activation has no curvature


def upsample_argmax(logits: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    return reference.upsample_argmax(logits, (height, width), align_corners)


def upsample_argmax_fake(logits: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    return torch.empty((logits.shape[0], height, width), dtype=torch.uint8, device=logits.device)


def normalise(
    images: Tensor, height: int, width: int, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> Tensor:
    made = reference.normalise(images, (height, width), dtype, mean, std)
    return made.clone(memory_format=torch.channels_last)


def normalise_fake(
    images: Tensor, height: int, width: int, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> Tensor:
    shape = (images.shape[0], 3, height, width)
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)


def package_input(x: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    fits = x.numel() and len(size) == x.dim() == 4
    if not fits or any(want not in (-1, got) for want, got in zip(size, x.shape, strict=True)):
        expected = ", ".join("any" if length == -1 else str(length) for length in size)
        raise RuntimeError(f"the package's input must be ({expected}), got {tuple(x.shape)}")
    if x.dtype != dtype:
        raise RuntimeError("the package's input must be of the dtype it was exported with")
    return x.clone(memory_format=torch.channels_last)


def package_input_fake(x: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    return _channels_last(x, x.shape)


def _own_memory(found: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor]:
    """The gradients that are needed, with the strides that the fake kernel promises."""
    return [g.clone(memory_format=_format(g)) for g, need in zip(found, needs, strict=True) if need and g is not None]


def _masked(found: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
    return [g if need else None for g, need in zip(found, needs, strict=True)]


def _gradients_fake(tensors: list[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    return [
        torch.empty(t.shape, dtype=t.dtype, device=t.device, memory_format=_format(t))
        for t, need in zip(tensors, needs, strict=True)
        if need
    ]


def _format(tensor: Tensor) -> torch.memory_format:
    return torch.channels_last if tensor.dim() == 4 else torch.contiguous_format


def _channels_last(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _strided_as(weights: list[Tensor], grads: list[Tensor | None]) -> list[Tensor | None]:
    """The gradients with the strides of their 1x1 weights, where only those of the last two dimensions differ.

    Such strides say nothing, but DistributedDataParallel compares them and warns.
    """
    for i, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
        if grad is not None and grad.shape == weight.shape and not torch.compiler.is_compiling():
            strides, own = weight.stride(), grad.stride()
            if strides != own and strides[0] == own[0] and (strides[1] == own[1] or grad.shape[1] == 1):
                grads[i] = grad.as_strided(weight.shape, strides)
    return grads


def _split(items: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    rest, parts = list(items), []
    for count in counts:
        parts.append(rest[:count])
        rest = rest[count:]
    return parts


def _flat(lists: Sequence[Sequence[bool]]) -> list[bool]:
    return [item for items in lists for item in items]


def _spread(found: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """One entry per tensor: its gradient, or None where none was needed."""
    gradients = iter(found)
    return [next(gradients) if need else None for need in needs]


_library.impl("crp", crp, "CompositeExplicitAutograd")
_library.impl("crp_training", crp_training, "CompositeExplicitAutograd")
_library.impl("crp_backward", crp_backward, "CompositeExplicitAutograd")
_library.impl("fusion", fusion, "CompositeExplicitAutograd")
_library.impl("fusion_backward", fusion_backward, "CompositeExplicitAutograd")
_library.impl("upsample_argmax", upsample_argmax, "CompositeExplicitAutograd")
_library.impl("normalise", normalise, "CompositeExplicitAutograd")
_library.impl("package_input", package_input, "CompositeExplicitAutograd")

torch.library.register_fake("lwrn_fast::crp", crp_fake, lib=_library)
torch.library.register_fake("lwrn_fast::crp_training", crp_training_fake, lib=_library)
torch.library.register_fake("lwrn_fast::crp_backward", crp_backward_fake, lib=_library)
torch.library.register_fake("lwrn_fast::fusion", fusion_fake, lib=_library)
torch.library.register_fake("lwrn_fast::fusion_backward", fusion_backward_fake, lib=_library)
torch.library.register_fake("lwrn_fast::upsample_argmax", upsample_argmax_fake, lib=_library)
torch.library.register_fake("lwrn_fast::normalise", normalise_fake, lib=_library)
torch.library.register_fake("lwrn_fast::package_input", package_input_fake, lib=_library)

for _op, _setup in (("crp", save_crp), ("crp_training", save_crp_training)):
    torch.library.register_autograd(
        f"lwrn_fast::{_op}", differentiate_crp("crp_backward"), setup_context=_setup, lib=_library
    )
torch.library.register_autograd(
    "lwrn_fast::fusion", differentiate_fusion("fusion_backward"), setup_context=save_fusion, lib=_library
)
torch.library.register_autograd(
    "lwrn_fast::crp_backward", differentiate_crp_backward, setup_context=save_crp_backward, lib=_library
)
torch.library.register_autograd(
    "lwrn_fast::fusion_backward", differentiate_fusion_backward, setup_context=save_fusion_backward, lib=_library
)
for _op, _function in batching.FUNCTIONS.items():
    for _key in batching.KEYS:
        _library.impl(_op, _function, _key)
for _op in ("upsample_argmax", "normalise"):  # labels have no gradient, and bytes neither
    _library.impl(_op, torch.library.fallthrough_kernel, "Autograd")

for _key in ("AutocastCPU", "AutocastCUDA"):
    for _op in ("crp", "crp_training"):
        _library.impl(_op, crp_autocast(_op), _key)
    _library.impl("fusion", fusion_autocast, _key)

flops.register()
