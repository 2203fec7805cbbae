"""The blocks of the original RefineNet with 3x3 convolutions, and the light-weight residual convolution unit."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import backends
from ..ops import checks, reference


class ResidualUnits(nn.Module):
    """Residual convolution units (RCU), one after another: ReLU, 3x3 with bias, ReLU, 3x3 without, plus the input.

    count: units; parameters `1_conv.weight`, `1_conv.bias`, `1_conv_relu_varout_dimred.weight`, ...
    Source: Lin et al., RefineNet: Multi-Path Refinement Networks, section 3.2.

    >>> tuple(ResidualUnits(8, count=2)(torch.rand(1, 8, 6, 7)).shape)
    (1, 8, 6, 7)
    """

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.count = count
        for i in range(1, count + 1):
            self.add_module(f"{i}_conv", nn.Conv2d(channels, channels, 3, padding=1))
            self.add_module(f"{i}_conv_relu_varout_dimred", conv3x3(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        for i in range(1, self.count + 1):
            inner = getattr(self, f"{i}_conv")(F.relu(x))
            x = x + getattr(self, f"{i}_conv_relu_varout_dimred")(F.relu(inner))
        return x


class LightResidualUnits(nn.Module):
    """Light-weight RCU, one after another: ReLU, 1x1 to half the channels, ReLU, 3x3, ReLU, 1x1, plus the input.

    planes: channels, even. count: units; parameters `1_reduce.weight`, `1_conv.weight`, `1_expand.weight`, ...,
    all but the last of each unit with a bias. Half the channels gives the parameters and operations of the paper.
    Source: Nekrasov et al., Light-Weight RefineNet for Real-Time Semantic Segmentation, figure 2 and table 1.

    >>> tuple(LightResidualUnits(8, count=2)(torch.rand(1, 8, 6, 7)).shape)
    (1, 8, 6, 7)
    """

    def __init__(self, planes: int, count: int) -> None:
        super().__init__()
        planes, count = (checks.integer("LightResidualUnits", *item) for item in (("planes", planes), ("count", count)))
        if planes % 2:
            raise ValueError(f"LightResidualUnits: planes must be even, got {planes}")
        self.count = count
        for i in range(1, count + 1):
            self.add_module(f"{i}_reduce", nn.Conv2d(planes, planes // 2, 1))
            self.add_module(f"{i}_conv", nn.Conv2d(planes // 2, planes // 2, 3, padding=1))
            self.add_module(f"{i}_expand", nn.Conv2d(planes // 2, planes, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        for i in range(1, self.count + 1):
            inner = x
            for step in ("reduce", "conv", "expand"):
                inner = getattr(self, f"{i}_{step}")(F.relu(inner))
            x = x + inner
        return x


def pool5x5(x: Tensor) -> Tensor:
    """Return the maximum of the 5x5 window around each pixel of (N, C, H, W), NaN where one is in it; same strides.

    Without gradients, maxima of shifted maps, down the columns and then along the rows, take a third to two thirds of
    the time of `torch.nn.functional.max_pool2d`; with gradients it is that function, because of ties.

    >>> pool5x5(torch.eye(6)[None, None])[0, 0, 0].tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return F.max_pool2d(x, 5, stride=1, padding=2)
    x = F.pad(x, (2, 2, 2, 2), value=float("-inf"))
    for dim in (2, 3):
        size = x.shape[dim]
        max2 = torch.maximum(x.narrow(dim, 0, size - 1), x.narrow(dim, 1, size - 1))
        max4 = torch.maximum(max2.narrow(dim, 0, size - 3), max2.narrow(dim, 2, size - 3))
        x = torch.maximum(max4.narrow(dim, 0, size - 4), x.narrow(dim, 4, size - 4))
    return x


class CRP3x3(nn.Module):
    """Chained residual pooling with 3x3 convolutions: t_0 = x, t_i = W_i * maxpool5x5(t_{i-1}), result x + sum t_i.

    n_stages: poolings and convolutions; parameters `1_outvar_dimred.weight`, ...
    Source: Lin et al., RefineNet: Multi-Path Refinement Networks, section 3.2; the caller applies the ReLU before it.

    >>> tuple(CRP3x3(8)(torch.rand(1, 8, 6, 7)).shape)
    (1, 8, 6, 7)
    """

    def __init__(self, channels: int, n_stages: int = 4) -> None:
        super().__init__()
        self.n_stages = n_stages
        for i in range(1, n_stages + 1):
            self.add_module(f"{i}_outvar_dimred", conv3x3(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        pool = reference.pool if backends.requested() == backends.PLAIN else pool5x5
        out = stage = x
        for i in range(1, self.n_stages + 1):
            stage = getattr(self, f"{i}_outvar_dimred")(pool(stage))
            out = out + stage
        return out


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
