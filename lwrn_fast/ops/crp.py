"""Chained residual pooling: the function and the module."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .. import backends
from ..backends import triton
from . import autocast, checks, conv_parameters, reference


def crp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None, groups: int = 1) -> Tensor:
    """Chained residual pooling: t_0 = x, t_i = W_i * maxpool5x5(t_{i-1}) + b_i, result x + sum t_i.

    x: (N, C, H, W), of any strides; channels-last memory is read as it lies, other layouts cost one conversion.
    weights: a list of (C, C, 1, 1), or with groups = C of (C, 1, 1, 1). biases: None, or a list of as many (C,).
    All of one floating-point dtype on one device; under autocast, cast to its dtype.
    Returns (N, C, H, W) of that dtype in new channels-last memory. A NaN in a window gives NaN.
    Raises ValueError or TypeError for what does not fit, RuntimeError where the backend asked for cannot run.
    Source: Nekrasov et al., Light-Weight RefineNet for Real-Time Semantic Segmentation, section 3.

    >>> import torch, lwrn_fast
    >>> lwrn_fast.crp(torch.rand(1, 8, 6, 7), [torch.rand(8, 8, 1, 1)] * 4).shape
    torch.Size([1, 8, 6, 7])
    """
    dtype = autocast.dtype_for(x)
    if dtype is not None:
        with autocast.off(x):
            return crp(autocast.cast(x, dtype), autocast.cast(weights, dtype), autocast.cast(biases, dtype), groups)
    tensors = checks.crp(x, weights, biases, groups)
    if type(groups) is not int:
        groups = int(groups)  # one of NumPy's
    backend = backends.select("crp", tensors)
    if backend in ("reference", backends.PLAIN):
        out = reference.crp(x, weights, biases, groups)
        return out if backend == backends.PLAIN else reference.channels_last(out)
    if backend == "triton":
        arguments = (x, list(weights), list(biases or []), groups)
        if _trains(tensors):
            out, _ = triton.run("crp_training", tensors, *arguments)
            return out
        return triton.run("crp", tensors, *arguments)
    if backend == "cpu" and _trains(tensors):
        out, _ = torch.ops.lwrn_fast.crp_training(x, weights, biases or [], groups)
        return out
    return torch.ops.lwrn_fast.crp(x, weights, biases or [], groups)


def _trains(tensors: Sequence[Tensor]) -> bool:
    """Whether a backward pass may follow, for which the results of the stages are worth keeping."""
    if not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return False
    return any(tensor.requires_grad for tensor in tensors)


class CRP(nn.Module):
    """The published CRP block: constructor, attributes and state-dict names are the same, and so are the results.

    in_planes, out_planes: channels C; equal, for the result is a sum with the input.
    n_stages: poolings and 1x1 convolutions; parameters `1_outvar_dimred.weight`, `2_outvar_dimred.weight`, ...
    groups: True for one scale per channel, weights (C, 1, 1, 1). bias: also `1_outvar_dimred.bias`, ...
    Input and result as for `lwrn_fast.crp`. A child with hooks or a forward of its own, or
    replaced by another kind of module, is called as it is, and the block then runs on the reference backend.
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
        """(N, C, H, W) to (N, C, H, W)."""
        modules = self._modules  # a fifth of the time of getattr
        convs = [cast(nn.Conv2d, modules[f"{i}_outvar_dimred"]) for i in range(1, self.n_stages + 1)]
        pool = cast(nn.Module, modules["maxpool"])
        found = conv_parameters.why_not_pool5x5(pool) or conv_parameters.parameters(convs, depthwise=True)
        if not isinstance(found, str):
            return crp(x, *found, groups=convs[0].groups)
        backend = backends.select("crp", [x], hindrance=found)
        dtype = autocast.dtype_for(x)
        out = stage = x if dtype is None else autocast.cast(x, dtype)
        for conv in convs:
            stage = conv(pool(stage))
            out = out + stage
        return out if backend == backends.PLAIN else reference.channels_last(out)

    def extra_repr(self) -> str:
        return f"n_stages={self.n_stages}, groups={self.groups}"

    def __prepare_scriptable__(self) -> nn.Module:
        raise checks.not_scriptable(self)


torch.fx.wrap("crp")  # one node of a graph, as PyTorch's own functions
