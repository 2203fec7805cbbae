"""Whole models: alone, and from an image to its label map.

The plain model is the same module on the reference backend; "ours" is `lwrn_fast.optimize` of it, and "ours, eager"
the model as it is. Everybody's image is normalised, and everybody's logits made labels, in the way that is fastest for
them: by PyTorch, and by normalise and upsample_argmax for ours.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ... import backends, models
from ...models.networks import Network
from ...ops.normalise import normalise
from ...ops.upsample_argmax import upsample_argmax
from ...optimize import optimize
from .. import peers
from ..accuracy import label_error, overall_error
from ..cases import CLASSES, ModelCase
from ..paired import Call, Contest

CONTESTANTS = (peers.OURS, peers.OURS_EAGER, *(n for n in peers.ENGINES if not n.startswith(peers.OURS)))
# The argument `how` of lwrn_fast.optimize.
HOW = "compile"
# Norm of the error relative to that of all logits: a hundred layers of rounding.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}


class Plain(nn.Module):
    """The model through `lwrn_fast.reference`, in one memory format."""

    def __init__(self, model: Network, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.memory_format = memory_format
        self.model.to(memory_format=memory_format)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        with backends.use_backend("reference"):
            return self.model(x)


def set_up(case: ModelCase, dtype: torch.dtype) -> Contest:
    """Set up a random image (height, width, 3), normalised, and random weights."""
    torch.manual_seed(0)
    image = torch.randint(0, 256, (case.height, case.width, 3), dtype=torch.uint8)
    x = models.preprocess(image).contiguous().to(dtype)
    model = random_model(case.network).to(dtype)
    plain, plain_channels_last = (Plain(model, f) for f in (torch.contiguous_format, torch.channels_last))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        expected = Plain(model, torch.channels_last).float()(x.float())
        with FlopCounterMode(display=False) as counter:
            plain_channels_last(x)  # in which convolutions in a row are folded
    contestants = peers.field(plain, [x], model, CONTESTANTS, plain_channels_last=plain_channels_last)
    nhwc = x.contiguous(memory_format=torch.channels_last)
    optimized = functools.cache(lambda: optimize(model, nhwc, how=HOW))
    contestants[peers.OURS] = lambda: lambda: optimized()(nhwc)
    size = (case.height, case.width)
    if case.labels:
        # The engines are bound to the memory of `x`.
        contestants = {name: _from_image(make, image, x, size) for name, make in contestants.items()}
        contestants[peers.OURS] = lambda: _ours(optimized(), image, size, dtype)
        contestants[peers.OURS_EAGER] = lambda: _ours(model, image, size, dtype)
        contestants[peers.EAGER] = lambda: _channels_last(plain_channels_last, image, size, dtype)
        if peers.COMPILE in contestants:
            compiled = peers.frozen(plain_channels_last)
            contestants[peers.COMPILE] = lambda: _channels_last(compiled, image, size, dtype)
    return Contest(
        contestants=contestants,
        error=lambda got: label_error(got, expected, size) if case.labels else overall_error(got, expected),
        tolerance=TOLERANCE[dtype],
        operations=counter.get_total_flops(),
        bytes=0,  # next to the operations, no limit
    )


def random_model(name: str) -> Network:
    """Return a model in eval mode, with batch statistics for which activations neither vanish nor explode."""
    model = models.NETWORKS[name](CLASSES).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return model


def _ours(model: Callable[[Tensor], Any], image: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Any:
    return lambda: upsample_argmax(model(normalise(image, dtype=dtype)), size)


def _channels_last(model: Callable[[Tensor], Any], image: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Any:
    return lambda: _labels(model(_by_rows(image).to(dtype)), size)


def _by_rows(image: Tensor) -> Tensor:
    """Normalise by PyTorch, in rows in which the channels take turns: the fastest way that it has."""
    height, width, _ = image.shape
    mean, std = (255 * torch.tensor(values * width) for values in (models.MEAN, models.STD))
    rows = image.reshape(height, 3 * width).float().sub_(mean).div_(std)
    return rows.view(1, height, width, 3).permute(0, 3, 1, 2)


def _from_image(make: Callable[[], Call], image: Tensor, x: Tensor, size: tuple[int, int]) -> Callable[[], Any]:
    """Return a contestant that normalises the image into x, which the contestant of `make` reads."""
    mean, std = (255 * torch.tensor(values)[:, None, None] for values in (models.MEAN, models.STD))

    def made() -> Callable[[], Tensor]:
        run = make()

        def call() -> Tensor:
            x.copy_(image.permute(2, 0, 1).contiguous().float().sub_(mean).div_(std)[None])
            return _labels(run(), size)

        return call

    return made


def _labels(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Upsample and choose by PyTorch, in the memory format that is three times as fast as the other."""
    logits = logits.contiguous(memory_format=torch.channels_last)
    return F.interpolate(logits, size, mode="bilinear", align_corners=True).argmax(1).to(torch.uint8)
