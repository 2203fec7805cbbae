"""The ops in plain PyTorch: the oracle (in float64), the fallback and the baseline.

The signatures are those of the public functions; shapes are not checked here, and the memory format is PyTorch's own.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Mean and standard deviation of ImageNet's pixels (0 to 1; red, green, blue), with which the published models were
# trained.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
ACTIVATIONS = {"relu": F.relu, "relu6": F.relu6, "none": lambda x: x}


def crp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None, groups: int = 1) -> Tensor:
    """Apply chained residual pooling: t_0 = x, t_i = W_i * maxpool5x5(t_{i-1}) + b_i, result x + sum t_i.

    x: (N, C, H, W). weights: n times (C, C / groups, 1, 1). biases: none or n times (C,). Returns (N, C, H, W).
    Source: Nekrasov et al., Light-Weight RefineNet for Real-Time Semantic Segmentation, section 3.

    >>> import torch; from lwrn_fast import reference
    >>> reference.crp(torch.ones(1, 2, 3, 4), [torch.zeros(2, 2, 1, 1)]).sum().item()
    24.0
    """
    out = stage = x
    for weight, bias in _pairs(weights, biases):
        stage = F.conv2d(pool(stage), weight, bias, groups=groups)
        out = out + stage
    return out


def fusion(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None = None,
    activation: str = "relu",
    align_corners: bool = True,
) -> Tensor:
    """Return act(sum_k up(W_k x_k + b_k)), upsampled bilinearly to the size of inputs[0].

    inputs: (N, C_k, H_k, W_k). weights: (P, C_k, 1, 1). biases: none or (P,) each. Returns (N, P, H_0, W_0).
    Source: Nekrasov et al., Light-Weight RefineNet for Real-Time Semantic Segmentation, section 3.

    >>> import torch; from lwrn_fast import reference
    >>> reference.fusion([torch.ones(1, 2, 3, 4)], [torch.ones(5, 2, 1, 1)]).sum().item()
    120.0
    """
    maps = [F.conv2d(x, weight, bias) for x, (weight, bias) in zip(inputs, _pairs(weights, biases), strict=True)]
    return join(maps, activation, align_corners)


def upsample_argmax(logits: Tensor, size: int | Sequence[int], align_corners: bool = True) -> Tensor:
    """Return the class of the largest bilinearly upsampled logit.

    Ties go to the lowest class, and a NaN counts as the largest.
    logits: (N, classes, h, w). size: H = W, or (H, W). Returns (N, H, W) uint8.

    >>> import torch; from lwrn_fast import reference
    >>> reference.upsample_argmax(torch.eye(2).view(1, 2, 2, 1), (3, 1)).flatten().tolist()
    [0, 0, 1]
    """
    height, width = _height_and_width(size)
    return resize(logits, height, width, align_corners).argmax(1).to(torch.uint8)


def normalise(
    images: Tensor,
    size: int | Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Tensor:
    """Return (images / 255 - mean) / std, resized bilinearly before, antialiased where it shrinks.

    images: uint8 (N, H, W, 3) or (H, W, 3). size: h = w, or (h, w). Returns (N, 3, h, w) of dtype, channels-last.

    >>> import torch; from lwrn_fast import reference
    >>> reference.normalise(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), (2, 6)).shape
    torch.Size([2, 3, 2, 6])
    """
    images = images if images.dim() == 4 else images[None]
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    x = images.permute(0, 3, 1, 2).to(exact)
    if size is not None:
        height, width = _height_and_width(size)
        if (height, width) != tuple(x.shape[2:]):
            x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
    shift, scale = (255 * torch.tensor(n, dtype=exact, device=x.device)[:, None, None] for n in (mean, std))
    return ((x - shift) / scale).to(dtype)


def pool(x: Tensor) -> Tensor:
    """Return the maximum of the 5x5 window around each pixel of (N, C, H, W), NaN where one is in it."""
    return F.max_pool2d(x, 5, stride=1, padding=2)


def join(maps: Sequence[Tensor], activation: str, align_corners: bool) -> Tensor:
    """Do the part of `fusion` after its convolutions. maps: (N, P, H_k, W_k). Returns (N, P, H_0, W_0)."""
    out = maps[0]
    for other in maps[1:]:
        out = out + resize(other, out.shape[2], out.shape[3], align_corners)
    return ACTIVATIONS[activation](out)


def resize(x: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """Resize (N, C, h, w) to (N, C, height, width), bilinearly; return x itself where it has that size."""
    # While torch.jit.trace is at work, resize in any case: it would keep the comparison of its example.
    if torch._C._get_tracing_state() is None and x.shape[2] == height and x.shape[3] == width:
        return x
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=bool(align_corners))


def channels_last(x: Tensor) -> Tensor:
    """Return x in channels-last memory, where every backend leaves its results."""
    if torch._C._are_functorch_transforms_active():  # torch.vmap knows no memory formats
        return x
    return x.contiguous(memory_format=torch.channels_last)


def _height_and_width(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, Integral) else size


def _pairs(weights: Sequence[Tensor], biases: Sequence[Tensor] | None) -> list[tuple[Tensor, Tensor | None]]:
    """Return each weight with its bias, None where there are none."""
    return list(zip(weights, biases if biases else [None] * len(weights), strict=True))
