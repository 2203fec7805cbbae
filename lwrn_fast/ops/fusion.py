"""Fusion of feature maps: function, module, argument checks, gradients, registration with PyTorch's dispatcher."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import backends
from ..backends import Call, Op
from . import autocast, backward, checks, conv_parameters, flops, reference
from .registration import Definition, define


def fusion(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    activation: str = "relu",
    align_corners: bool = True,
) -> Tensor:
    """Return act(sum_k up(W_k x_k + b_k)), upsampled bilinearly to the size of inputs[0].

    inputs: a list of (N, C_k, H_k, W_k), of any strides; channels-last memory is read as it lies, other layouts cost
    one conversion. weights: a list of (P, C_k, 1, 1). biases: None, or a list of (P,). activation: "relu", "relu6" or
    "none". align_corners: as in torch.nn.functional.interpolate.
    All of one floating-point dtype on one device; under autocast, cast to its dtype.
    Returns (N, P, H_0, W_0) of that dtype in new channels-last memory.
    Raises ValueError or TypeError for invalid arguments, RuntimeError where the backend asked for cannot run.
    Source: Nekrasov et al., Light-Weight RefineNet for Real-Time Semantic Segmentation, section 3.

    >>> import torch, lwrn_fast
    >>> maps = [torch.rand(1, 8, 6, 7), torch.rand(1, 4, 3, 4)]
    >>> lwrn_fast.fusion(maps, [torch.rand(5, 8, 1, 1), torch.rand(5, 4, 1, 1)]).shape
    torch.Size([1, 5, 6, 7])
    """
    if isinstance(inputs, (list, tuple)) and inputs and autocast.is_on(inputs[0]):
        return autocast.call(fusion, inputs[0], inputs, weights, biases, activation, align_corners)
    tensors = check(inputs, weights, biases, activation, align_corners)
    call = Call(OP, tensors, (list(inputs), list(weights), list(biases or ()), activation, align_corners))
    return backends.select(call).run(call)


class Fusion(nn.Module):
    """`lwrn_fast.fusion` with its weights: parameters `convs.0.weight`, `convs.1.weight`, ...

    in_planes: channels C_k of each input, the one of the result's size first. out_planes: channels P of the result.
    activation: "relu", "relu6" or "none". align_corners: of the upsampling. bias: also `convs.0.bias`, ...
    A child with hooks or a forward of its own, or replaced by a module of another class, is called as it is, and the
    block then runs on the reference backend.

    >>> import torch, lwrn_fast
    >>> lwrn_fast.Fusion([8, 4], 5)(torch.rand(1, 8, 6, 7), torch.rand(1, 4, 3, 4)).shape
    torch.Size([1, 5, 6, 7])
    """

    def __init__(
        self,
        in_planes: Sequence[int],
        out_planes: int,
        activation: str = "relu",
        align_corners: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        in_channels = () if isinstance(in_planes, int) else checks.integers("Fusion", "in_planes", in_planes)
        if not in_channels or min(in_channels) < 1:
            raise ValueError(f"Fusion: in_planes must be one number >= 1 for each input, got {in_planes!r}")
        out_planes = checks.integer("Fusion", "out_planes", out_planes)
        if out_planes < 1:
            raise ValueError(f"Fusion: out_planes must be >= 1, got {out_planes}")
        if activation not in reference.ACTIVATIONS:
            raise ValueError(f'Fusion: activation must be "relu", "relu6" or "none", got {activation!r}')
        self.convs = nn.ModuleList(nn.Conv2d(channels, out_planes, 1, bias=bias) for channels in in_channels)
        self.activation = activation
        self.align_corners = bool(align_corners)

    def forward(self, *inputs: Tensor | Sequence[Tensor]) -> Tensor:
        """Return (N, P, H_0, W_0). inputs: (N, C_k, H_k, W_k), as arguments or as one list."""
        maps = cast(
            list[Tensor], list(inputs[0] if len(inputs) == 1 and isinstance(inputs[0], (list, tuple)) else inputs)
        )
        if len(maps) != len(self.convs):
            raise ValueError(f"Fusion: inputs must be {len(self.convs)} tensors, got {len(maps)}")
        convs = [cast(nn.Conv2d, conv) for conv in self.convs]
        parameters = conv_parameters.parameters(convs)
        if not isinstance(parameters, str):
            return fusion(maps, *parameters, self.activation, self.align_corners)
        backend = backends.fall_back(OP, maps, reason=parameters)
        called = [conv(x) for conv, x in zip(convs, maps, strict=True)]
        out = reference.join(called, self.activation, self.align_corners)
        return backend.lay_out(out)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, align_corners={self.align_corners}"

    def __prepare_scriptable__(self) -> nn.Module:
        raise checks.not_scriptable(self)


def check(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    activation: str = "relu",
    align_corners: bool = True,
) -> list[Tensor]:
    """Return all tensors of a call; raise ValueError or TypeError for invalid arguments."""
    if checks.tracing_state() is not None:
        return checks.untraced(check, inputs, weights, biases, activation, align_corners)
    checks.count("fusion", "inputs", inputs, None)
    first = inputs[0]
    for k, x in enumerate(inputs):
        checks.image("fusion", f"inputs[{k}]", x)
        if x.shape[0] != first.shape[0]:
            checks.fail("fusion", f"inputs[{k}]", f"of batch size {first.shape[0]}, as inputs[0]", x.shape[0])
        checks.same("fusion", f"inputs[{k}]", x, first)
    checks.count("fusion", "weights", weights, len(inputs))
    checks.tensor("fusion", "weights[0]", weights[0])
    channels = weights[0].shape[0] if weights[0].dim() else 0
    if channels < 1:
        expected = "(out_channels, in_channels, 1, 1) with out_channels >= 1"
        checks.fail("fusion", "weights[0]", expected, tuple(weights[0].shape))
    if activation not in reference.ACTIVATIONS:
        checks.fail("fusion", "activation", '"relu", "relu6" or "none"', repr(activation))
    return [*inputs, *checks.parameters("fusion", first, weights, biases, channels, [x.shape[1] for x in inputs])]


def gradients(
    grad: Tensor,
    out: Tensor | None,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    align_corners: bool,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of inputs, weights and biases, None where `needs` is False, in PyTorch's own operators.

    grad, out: (N, P, H_0, W_0), the rest as in `fusion`. out: its result, needed where there is an activation.
    """
    aten = torch.ops.aten
    count = len(inputs)
    if activation == "relu":
        grad = aten.threshold_backward(grad, out, 0)
    elif activation == "relu6":
        grad = aten.hardtanh_backward(grad, out, 0, 6)
    size = list(grad.shape[2:])
    per_input = []
    for k, (x, weight) in enumerate(zip(inputs, weights, strict=True)):
        low_grad = grad
        if list(x.shape[2:]) != size:
            low_size = [grad.shape[0], grad.shape[1], x.shape[2], x.shape[3]]
            low_grad = aten.upsample_bilinear2d_backward(grad, size, low_size, align_corners)
        mask = [needs[k], needs[count + k], bool(biases) and needs[2 * count + k]]
        per_input.append(backward.convolution(low_grad, x, weight, 1, mask))
    by_role = list(zip(*per_input, strict=True))
    return [g for grads in by_role[: 3 if biases else 2] for g in grads]


def _run(
    inputs: list[Tensor], weights: list[Tensor], biases: list[Tensor], activation: str, align_corners: bool
) -> Tensor:
    out = reference.fusion(inputs, weights, biases, activation, align_corners)
    return out.clone(memory_format=torch.channels_last)


def _fake(
    inputs: list[Tensor], weights: list[Tensor], biases: list[Tensor], activation: str, align_corners: bool
) -> Tensor:
    batch, _, height, width = inputs[0].shape
    return backward.channels_last(inputs[0], (batch, weights[0].shape[0], height, width))


def _run_backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
    with autocast.off(grad):
        return backward.own_memory(gradients(grad, *arguments), arguments[-1])


def _fake_backward(
    grad: Tensor,
    out: Tensor | None,
    inputs: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    activation: str,
    align_corners: bool,
    needs: list[bool],
) -> list[Tensor]:
    return backward.fake([*inputs, *weights, *biases], needs)


def _batched_backward(*arguments: Any) -> list[Tensor]:
    return backward.needed(gradients(*arguments), arguments[-1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, weights, biases, ctx.activation, ctx.align_corners = inputs
    ctx.counts = (len(maps), len(weights), len(biases))
    out = None if ctx.activation == "none" else output
    ctx.save_for_backward(out, *maps, *weights, *biases)


def _differentiate(prefix: str) -> Callable[..., tuple[Any, ...]]:
    def differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        out, *tensors = ctx.saved_tensors
        needs = backward.flat(ctx.needs_input_grad[:3])
        given = backward.split(tensors, ctx.counts)
        run = getattr(torch.ops.lwrn_fast, f"{prefix}fusion_backward")
        grads = backward.spread(run(grad, out, *given, ctx.activation, ctx.align_corners, needs), needs)
        map_grads, weight_grads, bias_grads = backward.split(grads, ctx.counts)
        return (map_grads, backward.strided_as(given[1], weight_grads), bias_grads, None, None)

    return differentiate


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad, out, maps, weights, biases, ctx.activation, ctx.align_corners, ctx.needs = inputs
    ctx.counts = (len(maps), len(weights), len(biases))
    ctx.save_for_backward(out, grad, *maps, *weights, *biases)


def _differentiate_backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    out, *tensors = ctx.saved_tensors

    def function(grad: Tensor, *given: Tensor) -> Any:
        maps, weights, biases = backward.split(given, ctx.counts)
        all_grads = gradients(grad, out, maps, weights, biases, ctx.activation, ctx.align_corners, ctx.needs)
        return backward.masked(all_grads, ctx.needs)

    grad, *others = backward.pull_back(function, tensors, grads)
    return (grad, None, *backward.split(others, ctx.counts), None, None, None)  # the activation has no curvature


def _flops(inputs: Sequence[flops.Shape], weights: Sequence[flops.Shape], *_: Any, **__: Any) -> int:
    return sum(flops.convolution(x, weight) for x, weight in zip(inputs, weights, strict=True))


def _flops_backward(
    grad: flops.Shape,
    out: flops.Shape | None,
    inputs: Sequence[flops.Shape],
    weights: Sequence[flops.Shape],
    biases: Sequence[flops.Shape],
    activation: str,
    align_corners: bool,
    needs: Sequence[bool],
    **_: Any,
) -> int:
    total = 0
    for k, (x, weight) in enumerate(zip(inputs, weights, strict=True)):
        low = [x[0], weight[0], *x[2:]]
        total += flops.convolution_backward(low, x, weight, 1, needs[k], needs[len(inputs) + k])
    return total


OP = Op("fusion", check, reference.fusion)
define(
    Definition(
        "fusion(Tensor[] inputs, Tensor[] weights, Tensor[] biases, str activation, bool align_corners) -> Tensor",
        run=_run,
        fake=_fake,
        save=_save,
        differentiate=_differentiate,
        casts=True,
        batched=reference.fusion,
        flops=_flops,
        kernel="fusion",
    ),
    # `out` is the result of `fusion` where there is an activation. Returns the gradients that `needs` asks for, of
    # inputs, weights and biases in this order.
    Definition(
        "fusion_backward(Tensor grad, Tensor? out, Tensor[] inputs, Tensor[] weights, Tensor[] biases, str activation, "
        "bool align_corners, bool[] needs) -> Tensor[]",
        run=_run_backward,
        fake=_fake_backward,
        save=_save_backward,
        differentiate=lambda prefix: _differentiate_backward,
        batched=_batched_backward,
        flops=_flops_backward,
        kernel="fusion_backward",
    ),
)


# One node of a graph, as PyTorch's own functions.
torch.fx.wrap("fusion")
