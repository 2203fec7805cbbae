"""The fusion of feature maps of several sizes: the function and the module."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .. import backends
from ..backends import triton
from . import autocast, checks, conv_parameters, reference


def fusion(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    activation: str = "relu",
    align_corners: bool = True,
) -> Tensor:
    """act(sum_k up(W_k x_k + b_k)), upsampled bilinearly to the size of inputs[0].

    inputs: a list of (N, C_k, H_k, W_k), of any strides; channels-last memory is read as it lies, other layouts cost
    one conversion. weights: a list of (P, C_k, 1, 1). biases: None, or a list of (P,). activation: "relu", "relu6" or
    "none". align_corners: as in torch.nn.functional.interpolate.
    All of one floating-point dtype on one device; under autocast, cast to its dtype.
    Returns (N, P, H_0, W_0) of that dtype in new channels-last memory.
    Raises ValueError or TypeError for what does not fit, RuntimeError where the backend asked for cannot run.
    Source: Nekrasov et al., Light-Weight RefineNet for Real-Time Semantic Segmentation, section 3.

    >>> import torch, lwrn_fast
    >>> maps = [torch.rand(1, 8, 6, 7), torch.rand(1, 4, 3, 4)]
    >>> lwrn_fast.fusion(maps, [torch.rand(5, 8, 1, 1), torch.rand(5, 4, 1, 1)]).shape
    torch.Size([1, 5, 6, 7])
    """
    dtype = autocast.dtype_for(inputs[0]) if isinstance(inputs, (list, tuple)) and inputs else None
    if dtype is not None:
        inputs, weights, biases = autocast.cast([inputs, weights, biases], dtype)
        with autocast.off(inputs[0]):
            return fusion(inputs, weights, biases, activation, align_corners)
    tensors = checks.fusion(inputs, weights, biases, activation, align_corners)
    backend = backends.select("fusion", tensors)
    if backend in ("reference", backends.PLAIN):
        out = reference.fusion(inputs, weights, biases, activation, align_corners)
        return out if backend == backends.PLAIN else reference.channels_last(out)
    if backend == "triton":
        maps, weights, biases = list(inputs), list(weights), list(biases or [])
        return triton.run("fusion", tensors, maps, weights, biases, activation, align_corners)
    return torch.ops.lwrn_fast.fusion(inputs, weights, biases or [], activation, align_corners)


class Fusion(nn.Module):
    """`lwrn_fast.fusion` with its weights: parameters `convs.0.weight`, `convs.1.weight`, ...

    in_planes: channels C_k of each input, the one of the result's size first. out_planes: channels P of the result.
    activation: "relu", "relu6" or "none". align_corners: of the upsampling. bias: also `convs.0.bias`, ...
    A child with hooks or a forward of its own, or replaced by another kind of module, is called as it is, and the block
    then runs on the reference backend.

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
        planes = () if isinstance(in_planes, int) else checks.integers("Fusion", "in_planes", in_planes)
        if not planes or min(planes) < 1:
            raise ValueError(f"Fusion: in_planes must be one number >= 1 for each input, got {in_planes!r}")
        out_planes = checks.integer("Fusion", "out_planes", out_planes)
        if out_planes < 1:
            raise ValueError(f"Fusion: out_planes must be >= 1, got {out_planes}")
        if activation not in reference.ACTIVATIONS:
            raise ValueError(f'Fusion: activation must be "relu", "relu6" or "none", got {activation!r}')
        self.convs = nn.ModuleList(nn.Conv2d(channels, out_planes, 1, bias=bias) for channels in planes)
        self.activation = activation
        self.align_corners = bool(align_corners)

    def forward(self, *inputs: Tensor | Sequence[Tensor]) -> Tensor:
        """(N, C_k, H_k, W_k), as arguments or as one list, to (N, P, H_0, W_0)."""
        maps = cast(
            list[Tensor], list(inputs[0] if len(inputs) == 1 and isinstance(inputs[0], (list, tuple)) else inputs)
        )
        if len(maps) != len(self.convs):
            raise ValueError(f"Fusion: inputs must be {len(self.convs)} tensors, got {len(maps)}")
        convs = [cast(nn.Conv2d, conv) for conv in self.convs]
        found = conv_parameters.parameters(convs)
        if not isinstance(found, str):
            return fusion(maps, *found, self.activation, self.align_corners)
        backend = backends.select("fusion", maps, hindrance=found)
        called = [conv(x) for conv, x in zip(convs, maps, strict=True)]
        out = reference.join(called, self.activation, self.align_corners)
        return out if backend == backends.PLAIN else reference.channels_last(out)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, align_corners={self.align_corners}"

    def __prepare_scriptable__(self) -> nn.Module:
        raise checks.not_scriptable(self)


torch.fx.wrap("fusion")  # one node of a graph, as PyTorch's own functions
