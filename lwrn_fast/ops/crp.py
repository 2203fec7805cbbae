"""Chained residual pooling: function, module, argument checks, gradients, registration with PyTorch's dispatcher."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import backends
from ..backends import Call, Op
from . import autocast, backward, checks, conv_parameters, flops, reference
from .registration import Definition, define


def crp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None, groups: int = 1) -> Tensor:
    """Apply chained residual pooling: t_0 = x, t_i = W_i * maxpool5x5(t_{i-1}) + b_i, result x + sum t_i.

    x: (N, C, H, W), of any strides; channels-last memory is read as it lies, other layouts cost one conversion.
    weights: a list of (C, C, 1, 1), or with groups = C of (C, 1, 1, 1). biases: None, or a list of as many (C,).
    All of one floating-point dtype on one device; under autocast, cast to its dtype.
    Returns (N, C, H, W) of that dtype in new channels-last memory. A NaN in a window gives NaN.
    Raises ValueError or TypeError for invalid arguments, RuntimeError where the backend asked for cannot run.
    Source: Nekrasov et al., Light-Weight RefineNet for Real-Time Semantic Segmentation, section 3.

    >>> import torch, lwrn_fast
    >>> lwrn_fast.crp(torch.rand(1, 8, 6, 7), [torch.rand(8, 8, 1, 1)] * 4).shape
    torch.Size([1, 8, 6, 7])
    """
    if autocast.is_on(x):
        return autocast.call(crp, x, x, weights, biases, groups)
    tensors = check(x, weights, biases, groups)
    if type(groups) is not int:
        groups = int(groups)  # a NumPy integer
    call = Call(OP, tensors, (x, list(weights), list(biases or ()), groups))
    return backends.select(call).run(call)


class CRP(nn.Module):
    """The published CRP block: constructor, attributes and state-dict names are the same, and so are the results.

    in_planes, out_planes: channels C; equal, because the result is a sum with the input.
    n_stages: poolings and 1x1 convolutions; parameters `1_outvar_dimred.weight`, `2_outvar_dimred.weight`, ...
    groups: True for one scale per channel, weights (C, 1, 1, 1). bias: also `1_outvar_dimred.bias`, ...
    Input and result as for `lwrn_fast.crp`. A child with hooks or a forward of its own, or replaced by a module of
    another class, is called as it is, and the block then runs on the reference backend.
    Source: Nekrasov et al., Light-Weight RefineNet for Real-Time Semantic Segmentation, section 3.

    >>> import torch, lwrn_fast
    >>> lwrn_fast.CRP(8, 8)(torch.rand(1, 8, 6, 7)).shape
    torch.Size([1, 8, 6, 7])
    """

    def __init__(
        self, in_planes: int, out_planes: int, n_stages: int = 4, groups: bool = False, bias: bool = False
    ) -> None:
        super().__init__()
        in_planes = checks.integer("CRP", "in_planes", in_planes)
        out_planes = checks.integer("CRP", "out_planes", out_planes)
        if in_planes < 1 or in_planes != out_planes:
            raise ValueError(f"CRP: out_planes must equal in_planes and be >= 1, got {in_planes} and {out_planes}")
        n_stages = checks.integer("CRP", "n_stages", n_stages)
        if n_stages < 1:
            raise ValueError(f"CRP: n_stages must be >= 1, got {n_stages}")
        for i in range(1, n_stages + 1):
            conv = nn.Conv2d(in_planes, out_planes, 1, bias=bias, groups=in_planes if groups else 1)
            self.add_module(f"{i}_outvar_dimred", conv)
        self.stride = 1
        self.n_stages = n_stages
        self.groups = groups
        self.maxpool = nn.MaxPool2d(kernel_size=5, stride=1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's result for x; both are (N, C, H, W)."""
        modules = self._modules  # takes a fifth of the time of getattr
        convs = [cast(nn.Conv2d, modules[f"{i}_outvar_dimred"]) for i in range(1, self.n_stages + 1)]
        pool = cast(nn.Module, modules["maxpool"])
        parameters = conv_parameters.why_not_pool5x5(pool) or conv_parameters.parameters(convs, depthwise=True)
        if not isinstance(parameters, str):
            return crp(x, *parameters, groups=convs[0].groups)
        backend = backends.fall_back(OP, [x], reason=parameters)
        out = stage = autocast.cast(x, torch.get_autocast_dtype(x.device.type)) if autocast.is_on(x) else x
        for conv in convs:
            stage = conv(pool(stage))
            out = out + stage
        return backend.lay_out(out)

    def extra_repr(self) -> str:
        return f"n_stages={self.n_stages}, groups={self.groups}"

    def __prepare_scriptable__(self) -> nn.Module:
        raise checks.not_scriptable(self)


def check(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None, groups: int = 1
) -> list[Tensor]:
    """Return all tensors of a call; raise ValueError or TypeError for invalid arguments."""
    if checks.tracing_state() is not None:
        return checks.untraced(check, x, weights, biases, groups)
    checks.image("crp", "x", x)
    channels = x.shape[1]
    if type(groups) is not int:
        checks.integer("crp", "groups", groups)
    # With one channel both values of groups mean the same.
    if groups not in (1, channels):
        checks.fail("crp", "groups", f"1 or the number of channels ({channels})", groups)
    checks.count("crp", "weights", weights, None)
    per_group = 1 if groups == channels else channels
    return [x, *checks.parameters("crp", x, weights, biases, channels, [per_group] * len(weights))]


def gradients(
    grad: Tensor,
    x: Tensor,
    stages: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    groups: int,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of x, weights and biases, None where `needs` is False, in PyTorch's own operators.

    These are the operators that autograd would run for the reference. They are written out because an op's kernel runs
    below autograd, which records nothing there. grad, x: (N, C, H, W), the rest as in `crp`. stages: t_1, ... of all
    stages but the last; where the list is empty, they are computed again.
    """
    aten, window = torch.ops.aten, ([5, 5], [1, 1], [2, 2])
    count = len(weights)
    need_x, need_weights, need_biases = needs[0], needs[1 : count + 1], needs[count + 1 :] or [False] * count
    stages = [x, *(stages or compute_stages(x, weights[:-1], biases, groups))]
    pooled, indices = [], []
    for i in range(count):
        maximum, index = aten.max_pool2d_with_indices(stages[i], *window)
        pooled.append(maximum)
        indices.append(index)
    weight_grads: list[Tensor | None] = [None] * count
    bias_grads: list[Tensor | None] = [None] * count
    stage_grad = grad
    for i in reversed(range(count)):
        earlier = need_x or any(need_weights[:i]) or any(need_biases[:i])
        mask = [earlier, need_weights[i], need_biases[i]]
        pooled_grad, weight_grads[i], bias_grads[i] = backward.convolution(
            stage_grad, pooled[i], weights[i], groups, mask
        )
        if not earlier:
            break
        stage_grad = grad + aten.max_pool2d_with_indices_backward(
            pooled_grad, stages[i], *window, [1, 1], False, indices[i]
        )
    return [stage_grad if need_x else None, *weight_grads, *(bias_grads if biases else [])]


def compute_stages(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], groups: int) -> list[Tensor]:
    """Return t_1, t_2, ..., one for each of the weights."""
    stages = [x]
    for i, weight in enumerate(weights):
        stages.append(torch.conv2d(reference.pool(stages[-1]), weight, biases[i] if biases else None, groups=groups))
    return stages[1:]


def _run(x: Tensor, weights: list[Tensor], biases: list[Tensor], groups: int) -> Tensor:
    return reference.crp(x, weights, biases, groups).clone(memory_format=torch.channels_last)


def _fake(x: Tensor, weights: list[Tensor], biases: list[Tensor], groups: int) -> Tensor:
    return backward.channels_last(x, x.shape)


def _run_training(x: Tensor, weights: list[Tensor], biases: list[Tensor], groups: int) -> tuple[Tensor, list[Tensor]]:
    stages = compute_stages(x, weights[:-1], biases, groups)
    return _run(x, weights, biases, groups), [t.clone(memory_format=torch.channels_last) for t in stages]


def _fake_training(x: Tensor, weights: list[Tensor], biases: list[Tensor], groups: int) -> tuple[Tensor, list[Tensor]]:
    return _fake(x, weights, biases, groups), [backward.channels_last(x, x.shape) for _ in weights[1:]]


def _batched_training(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], groups: int
) -> tuple[Tensor, list[Tensor]]:
    return reference.crp(x, weights, biases, groups), compute_stages(x, weights[:-1], biases, groups)


def _launched_training(launch: Any) -> tuple[Tensor, list[Tensor]]:
    # An op's results may not share memory. Separate results in the kernel would cost registers, which it would spill.
    return launch.run(), [stage.clone(memory_format=torch.channels_last) for stage in launch.kept]


def _run_backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
    with autocast.off(grad):
        return backward.own_memory(gradients(grad, *arguments), arguments[-1])


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    stages: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    groups: int,
    needs: list[bool],
) -> list[Tensor]:
    return backward.fake([x, *weights, *biases], needs)


def _batched_backward(*arguments: Any) -> list[Tensor]:
    return backward.needed(gradients(*arguments), arguments[-1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _save_training(ctx, inputs, (output, []))


def _save_training(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    x, weights, biases, ctx.groups = inputs
    stages = output[1]
    ctx.set_materialize_grads(False)
    ctx.counts = (len(stages), len(weights), len(biases))
    ctx.save_for_backward(x, *stages, *weights, *biases)


def _differentiate(prefix: str) -> Callable[..., tuple[Any, ...]]:
    def differentiate(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        x, *others = ctx.saved_tensors
        stages, weights, biases = backward.split(others, ctx.counts)
        need_x, *need_parameters, _ = ctx.needs_input_grad
        needs = [need_x, *backward.flat(need_parameters)]
        if grad is None:
            return (None, [None] * len(weights), [None] * len(biases), None)
        run = getattr(torch.ops.lwrn_fast, f"{prefix}crp_backward")
        grad_x, *grads = backward.spread(run(grad, x, stages, weights, biases, ctx.groups, needs), needs)
        weight_grads, bias_grads = backward.split(grads, ctx.counts[1:])
        return (grad_x, backward.strided_as(weights, weight_grads), bias_grads, None)

    return differentiate


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad, x, stages, weights, biases, ctx.groups, ctx.needs = inputs
    ctx.stages, ctx.counts = len(stages), (len(weights), len(biases))
    ctx.save_for_backward(grad, x, *weights, *biases)  # the stages are computed from x


def _differentiate_backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    def function(grad: Tensor, x: Tensor, *parameters: Tensor) -> Any:
        weights, biases = backward.split(parameters, ctx.counts)
        return backward.masked(gradients(grad, x, [], weights, biases, ctx.groups, ctx.needs), ctx.needs)

    grad, x, *parameters = backward.pull_back(function, ctx.saved_tensors, grads)
    return (grad, x, [None] * ctx.stages, *backward.split(parameters, ctx.counts), None, None)


def _flops(x: flops.Shape, weights: Sequence[flops.Shape], *_: Any, **__: Any) -> int:
    return sum(flops.convolution(x, weight) for weight in weights)


def _flops_backward(
    grad: flops.Shape,
    x: flops.Shape,
    stages: Sequence[flops.Shape],
    weights: Sequence[flops.Shape],
    biases: Sequence[flops.Shape],
    groups: int,
    needs: Sequence[bool],
    **_: Any,
) -> int:
    count = len(weights)
    need_x, need_weights, need_biases = needs[0], needs[1 : count + 1], needs[count + 1 :]
    total = 0
    for i, weight in enumerate(weights):
        earlier = need_x or any(need_weights[:i]) or any(need_biases[:i])
        total += flops.convolution_backward(grad, x, weight, groups, earlier, need_weights[i])
    return total


OP = Op("crp", check, reference.crp, keeps_stages=True)
define(
    Definition(
        "crp(Tensor x, Tensor[] weights, Tensor[] biases, int groups) -> Tensor",
        run=_run,
        fake=_fake,
        save=_save,
        differentiate=_differentiate,
        casts=True,
        batched=reference.crp,
        flops=_flops,
        kernel="crp",
    ),
    # Also returns t_1, ... of all stages but the last, which `crp_backward` takes as `stages`.
    Definition(
        "crp_training(Tensor x, Tensor[] weights, Tensor[] biases, int groups) -> (Tensor, Tensor[])",
        run=_run_training,
        fake=_fake_training,
        save=_save_training,
        differentiate=_differentiate,
        casts=True,
        batched=_batched_training,
        flops=_flops,
        kernel="crp",
        read_launch=_launched_training,
    ),
    # Returns the gradients that `needs` asks for, of x, weights and biases in this order.
    Definition(
        "crp_backward(Tensor grad, Tensor x, Tensor[] stages, Tensor[] weights, Tensor[] biases, int groups, "
        "bool[] needs) -> Tensor[]",
        run=_run_backward,
        fake=_fake_backward,
        save=_save_backward,
        differentiate=lambda prefix: _differentiate_backward,
        batched=_batched_backward,
        flops=_flops_backward,
        kernel="crp_backward",
    ),
)


# One node of a graph, as PyTorch's own functions.
torch.fx.wrap("crp")
