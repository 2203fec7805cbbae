"""Whole networks: alone, and from a photograph to its label map.

The plain network is the same module on the reference backend; "ours" is `lwrn_fast.optimize` of it, and "ours, eager"
the network as it is. Everybody's photograph is normalised, and everybody's logits made labels, in the way that is
fastest for them: by PyTorch, and by normalise and upsample_argmax for ours.
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
from ..cases import CLASSES, ModelCase
from ..paired import Call, Contest
from ..wrong import label_error, overall_error

CONTESTANTS = (peers.OURS, peers.OURS_EAGER, *(n for n in peers.ENGINES if not n.startswith(peers.OURS)))
HOW = "compile"  # of lwrn_fast.optimize
# a hundred layers of rounding, relative to the size of all logits
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}


class Plain(nn.Module):
    """The network through `lwrn_fast.reference`, in one memory format."""

    def __init__(self, network: Network, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.network.memory_format = memory_format
        self.network.to(memory_format=memory_format)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor:
        with backends.use_backend("reference"):
            return self.network(image)


def set_up(case: ModelCase, dtype: torch.dtype) -> Contest:
    """A random photograph (height, width, 3), normalised, and random weights."""
    torch.manual_seed(0)
    photo = torch.randint(0, 256, (case.height, case.width, 3), dtype=torch.uint8)
    image = models.preprocess(photo).contiguous().to(dtype)
    network = random_network(case.network).to(dtype)
    plain, plain_channels_last = (Plain(network, f) for f in (torch.contiguous_format, torch.channels_last))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        expected = Plain(network, torch.channels_last).float()(image.float())
        with FlopCounterMode(display=False) as counter:
            plain_channels_last(image)  # in which convolutions in a row are folded
    contestants = peers.field(plain, [image], network, CONTESTANTS, plain_channels_last=plain_channels_last)
    nhwc = image.contiguous(memory_format=torch.channels_last)
    optimized = functools.cache(lambda: optimize(network, nhwc, how=HOW))
    contestants[peers.OURS] = lambda: lambda: optimized()(nhwc)
    size = (case.height, case.width)
    if case.labels:
        # the engines are bound to the memory of `image`
        contestants = {name: _from_photo(make, photo, image, size) for name, make in contestants.items()}
        contestants[peers.OURS] = lambda: _ours(optimized(), photo, size, dtype)
        contestants[peers.OURS_EAGER] = lambda: _ours(network, photo, size, dtype)
        contestants[peers.EAGER] = lambda: _channels_last(plain_channels_last, photo, size, dtype)
        if peers.COMPILE in contestants:
            compiled = peers.frozen(plain_channels_last)
            contestants[peers.COMPILE] = lambda: _channels_last(compiled, photo, size, dtype)
    return Contest(
        contestants=contestants,
        error=lambda got: label_error(got, expected, size) if case.labels else overall_error(got, expected),
        tolerance=TOLERANCE[dtype],
        operations=counter.get_total_flops(),
        bytes=0,  # next to the operations, no limit
    )


def _ours(network: Callable[[Tensor], Any], photo: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Any:
    return lambda: upsample_argmax(network(normalise(photo, dtype=dtype)), size)


def _channels_last(network: Callable[[Tensor], Any], photo: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Any:
    return lambda: _labels(network(_by_rows(photo).to(dtype)), size)


def _by_rows(photo: Tensor) -> Tensor:
    """Normalised by PyTorch, in rows in which the channels take turns: the fastest way that it has."""
    height, width, _ = photo.shape
    mean, std = (255 * torch.tensor(values * width) for values in (models.MEAN, models.STD))
    rows = photo.reshape(height, 3 * width).float().sub_(mean).div_(std)
    return rows.view(1, height, width, 3).permute(0, 3, 1, 2)


def _from_photo(make: Callable[[], Call], photo: Tensor, image: Tensor, size: tuple[int, int]) -> Callable[[], Any]:
    mean, std = (255 * torch.tensor(values)[:, None, None] for values in (models.MEAN, models.STD))

    def made() -> Callable[[], Tensor]:
        run = make()

        def call() -> Tensor:
            image.copy_(photo.permute(2, 0, 1).contiguous().float().sub_(mean).div_(std)[None])
            return _labels(run(), size)

        return call

    return made


def _labels(logits: Tensor, size: Sequence[int]) -> Tensor:
    """By PyTorch, in the memory format that is three times as fast as the other."""
    logits = logits.contiguous(memory_format=torch.channels_last)
    return F.interpolate(logits, size, mode="bilinear", align_corners=True).argmax(1).to(torch.uint8)


def random_network(name: str) -> Network:
    """In eval mode, with batch statistics set so that activations neither vanish nor explode."""
    network = models.NETWORKS[name](CLASSES).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return network
