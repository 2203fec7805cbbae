"""The empirical receptive field: the pixels that influence a unit before and after chained residual pooling.

Source: Luo et al., Understanding the Effective Receptive Field in Deep Convolutional Neural Networks (NIPS 2016),
section 3, and Nekrasov et al., Light-Weight RefineNet for Real-Time Semantic Segmentation, section 3.
"""

import copy
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import backends, models
from ..models.decoder import LevelDecoder
from ..models.refinenet import CRP3x3
from ..ops.crp import CRP

# Percent of the gradient's magnitude.
SHARES = (50, 95)


class Box(NamedTuple):
    """Pixels of the image: rows top to bottom - 1, columns left to right - 1."""

    top: int
    left: int
    bottom: int
    right: int


class Field(NamedTuple):
    """The receptive field of one unit."""

    # Each pixel's share of the gradient's magnitude: (H, W) float32, sum 1.
    map: Tensor
    # The minimum number of pixels that hold 50 and 95 % of it.
    area: dict[int, int]
    # Row and column of its centre of gravity.
    centre: tuple[float, float]
    # Radius in pixels of the disc around the centre that holds 50 and 95 % of it.
    radius: dict[int, float]
    # The pixels that can have an influence with any weights, clipped to the image.
    theoretical: Box


class Fields(NamedTuple):
    """The fields of one level: of the middle unit of CRP's input and of its result."""

    before: Field
    after: Field
    # Row and column of the unit.
    unit: tuple[int, int]
    # (h, w) of the unit's map.
    size: tuple[int, int]


def receptive_field(
    model: nn.Module,
    names: Sequence[str] | None = None,
    *,
    size: tuple[int, int] = (512, 512),
    images: int | Sequence[Any] = 8,
    seed: int = 0,
    progress: Callable[[Sequence], Iterable] = iter,
) -> dict[str, Fields]:
    """Return the empirical receptive field of the middle unit before and after each CRP: the gradient of the sum of its
    channels with respect to the image, as its magnitude summed over the colours and averaged over images.

    model: takes (1, 3, H, W), on any device; a copy of it runs, in eval mode and float32.
    names: modules whose first argument and result are examined; by default every level's CRP, deepest first.
    size: (H, W) of the model's input. images: the number of inputs of normal noise, drawn from `seed`, or one or
    several images as `models.preprocess` takes them, which are resized. progress: wraps the images, as tqdm does.
    Returns the fields by the modules' names.
    Raises TypeError or ValueError for arguments that do not fit, and where no gradient reaches the image.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), CRP(4, 4))
    >>> fields = receptive_field(net, size=(32, 32), images=1)["1"]
    >>> fields.before.theoretical, fields.after.theoretical
    (Box(top=15, left=15, bottom=18, right=18), Box(top=7, left=7, bottom=26, right=26))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"receptive_field: model must be a torch.nn.Module, got {type(model).__name__}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"receptive_field: size must be (H, W), both at least 1, got {size!r}")
    height, width = size
    names = list(_default_names(model) if names is None else names)
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise ValueError(f"receptive_field: names must be of the model's modules, got {name!r}")
    if not names:
        raise ValueError("receptive_field: the model has no CRP; names must say which modules to look at")
    images = _several(images)
    count = images if isinstance(images, int) else len(images)
    if count < 1:
        raise ValueError(f"receptive_field: images must be at least 1, got {count}")
    with torch.inference_mode(False):  # tensors of inference mode have no gradients, not even in a copy
        copied = copy.deepcopy(model).eval().requires_grad_(False).float()
    if isinstance(copied, models.base.Network):
        copied.memory_format = torch.channels_last  # so that CRP is called as a module
    device = next(copied.parameters(), torch.empty(0)).device
    sums: dict[tuple[str, int], Tensor] = {}
    with torch.inference_mode(False), torch.enable_grad():
        for number in progress(range(count)):
            x = _input(images, number, (height, width), seed).to(device)
            for key, gradient in _gradients(copied, names, x):
                sums[key] = sums.get(key, 0) + gradient / gradient.sum().clamp_min(torch.finfo(gradient.dtype).tiny)
        for (name, _), total in sums.items():
            if not 0 < total.sum() < torch.inf:
                raise ValueError(f"receptive_field: no finite gradient reaches the image from {name!r}")
        boxes, sizes = _theoretical(copied, names, (height, width), device)
    fields = {}
    for name, (h, w) in sizes.items():
        before, after = (field(sums[name, i], boxes[name, i]) for i in range(2))
        fields[name] = Fields(before, after, (h // 2, w // 2), (h, w))
    return fields


def field(gradient: Tensor, theoretical: Box) -> Field:
    """Return the figures of a map (H, W) of magnitudes.

    >>> field(torch.ones(3, 3), Box(0, 0, 3, 3)).area
    {50: 5, 95: 9}
    """
    exact = (gradient / gradient.sum()).double().cpu()
    down, along = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in exact.shape), indexing="ij")
    row, column = (exact * down).sum().item(), (exact * along).sum().item()
    descending = exact.flatten().sort(descending=True).values.cumsum(0)
    distance, order = ((down - row) ** 2 + (along - column) ** 2).sqrt().flatten().sort()
    from_centre = exact.flatten()[order].cumsum(0)
    area, radius = {}, {}
    for share in SHARES:
        threshold = torch.tensor(share / 100 - 1e-9, dtype=torch.float64)
        area[share] = int(torch.searchsorted(descending, threshold)) + 1
        last = min(int(torch.searchsorted(from_centre, threshold)), len(order) - 1)
        radius[share] = distance[last].item() + 0.5  # to the pixel's edge
    return Field(exact.float(), area, (row, column), radius, theoretical)


def _default_names(model: nn.Module) -> list[str]:
    if isinstance(model, LevelDecoder):
        return [level.crp for level in model.levels if level.crp is not None]
    return [name for name, module in model.named_modules() if isinstance(module, (CRP, CRP3x3))]


def _several(images: Any) -> int | Sequence[Any]:
    """Return the number of inputs of noise, or a sequence of images, also of a single one."""
    if isinstance(images, numbers.Integral):
        return int(images)
    single = isinstance(images, (str, os.PathLike)) or not hasattr(images, "__len__") or getattr(images, "ndim", 4) == 3
    return [images] if single else images


def _input(images: int | Sequence[Any], number: int, size: tuple[int, int], seed: int) -> Tensor:
    """Return the model's input (1, 3, H, W) of this number."""
    if isinstance(images, int):
        generator = torch.Generator().manual_seed(1_000_003 * seed + number)
        return torch.randn(1, 3, *size, generator=generator)
    return models.preprocess(images[number], size)


@contextmanager
def _watched(model: nn.Module, names: Sequence[str]) -> Iterator[dict[tuple[str, int], Tensor]]:
    """Record the first argument (name, 0) and the result (name, 1) of the last call of each module."""
    seen: dict[tuple[str, int], Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple, result: Any) -> None:
            seen[name, 0], seen[name, 1] = args[0], result

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in hooks:
            handle.remove()


def _gradients(model: nn.Module, names: Sequence[str], x: Tensor) -> Iterator[tuple[tuple[str, int], Tensor]]:
    """Yield (name, 0) and (name, 1) with the gradient (H, W) of the middle unit before and after each module."""
    x = x.requires_grad_()
    with _watched(model, names) as seen:
        model(x)
    for name in names:
        for i in range(2):
            unit = _middle(name, seen.get((name, i)))
            if not unit.requires_grad:
                raise ValueError(f"receptive_field: no finite gradient reaches the image from {name!r}")
            (gradient,) = torch.autograd.grad(unit, x, retain_graph=True)
            yield (name, i), gradient[0].abs().sum(0)


def _middle(name: str, value: Any) -> Tensor:
    """Return the sum of the channels of the unit in the middle."""
    if value is None:
        raise ValueError(f"receptive_field: the model's forward does not call {name!r}")
    if not isinstance(value, Tensor) or value.dim() != 4 or len(value) != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"receptive_field: {name!r} must take and give a map (1, C, H, W), got {got}")
    return value[0, :, value.shape[2] // 2, value.shape[3] // 2].sum()


def _theoretical(
    model: nn.Module, names: Sequence[str], size: tuple[int, int], device: torch.device
) -> tuple[dict[tuple[str, int], Box], dict[str, tuple[int, int]]]:
    """Return the pixels that can have an influence, and by name the size of the module's result."""
    x = torch.ones(1, 3, *size, dtype=torch.float64, device=device)
    boxes, sizes = {}, {}
    with backends.use_backend("reference"), _Paths(), _watched(model.double(), names) as seen:
        model(x.requires_grad_())
    for name in names:
        for i in range(2):
            (paths,) = torch.autograd.grad(_middle(name, seen[name, i]), x, retain_graph=True)
            rows, columns = paths[0].sum(0).nonzero().unbind(1)
            top, left, bottom, right = (int(n) for n in (rows.min(), columns.min(), rows.max(), columns.max()))
            boxes[name, i] = Box(top, left, bottom + 1, right + 1)
        sizes[name] = (seen[name, 1].shape[2], seen[name, 1].shape[3])
    return boxes, sizes


class _Paths(TorchFunctionMode):
    """Replace every operation by an average of its inputs, so that a gradient is zero only where there is no path.

    Convolutions and poolings average their windows over all channels, activations and normalisations do nothing.
    """

    ACTIVATIONS = ("relu", "relu_", "relu6", "leaky_relu", "prelu", "elu", "elu_", "selu", "celu", "gelu", "silu")
    LIMITS = ("mish", "hardtanh", "hardtanh_", "hardswish", "hardsigmoid", "sigmoid", "tanh", "softplus", "clamp")
    NORMALISATIONS = ("batch_norm", "group_norm", "instance_norm")
    NOTHING = frozenset(ACTIVATIONS + LIMITS + NORMALISATIONS)

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in self.NOTHING:
            return args[0]
        if name == "conv2d":
            return _average_convolution(*args, **kwargs)
        if name in ("max_pool2d", "max_pool2d_with_indices"):
            return _average_pool(*args, **kwargs)
        return function(*args, **kwargs)


def _average_convolution(
    x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    height, width = weight.shape[2:]
    window = torch.full((1, 1, height, width), 1 / (height * width), dtype=x.dtype, device=x.device)
    averages = F.conv2d(x.mean(1, keepdim=True), window, None, stride, padding, dilation)
    return averages.expand(-1, weight.shape[0], -1, -1)


def _average_pool(
    x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:  # fmt: skip
    sides = [side if isinstance(side, (tuple, list)) else (side, side) for side in (kernel_size, dilation)]
    spread = [(kernel - 1) * apart + 1 for kernel, apart in zip(*sides, strict=True)]
    return F.avg_pool2d(x, spread, kernel_size if stride is None else stride, padding, ceil_mode)
