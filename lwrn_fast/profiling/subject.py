"""The subject of a profile: options, model and images."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..inference import segment
from ..inference.segment import DTYPES
from ..models.networks import Network
from .workloads.model import random_model


@dataclass(frozen=True)
class Options:
    """A model to profile, and how.

    network: of `models.NETWORKS`. size, batch: of the images, (batch, *size, 3). names: backends, or "all"; none for
    all of the device. device: "cpu" or "cuda"; none for the one that the backends are for. seconds: time of the
    measured rounds, per backend.

    >>> Options("rf_lw_mbv2", batch=2).size
    (512, 512)
    """

    network: str
    checkpoint: str | None = None
    size: tuple[int, int] = (512, 512)
    batch: int = 1
    dtype: str = "f32"
    threads: int | None = None
    names: tuple[str, ...] = ()
    device: str | None = None
    seconds: float = 2.0


def prepare(options: Options, size: tuple[int, int]) -> tuple[Network, Tensor]:
    """Return the model, with random weights where there is no checkpoint, and random images for it."""
    if options.checkpoint is None:
        torch.manual_seed(0)
        model = random_model(options.network)
    else:
        given = segment.Options(Path(), network=options.network, checkpoint=options.checkpoint)
        model, _ = segment.build(given)
    model.to(options.device or "cpu", DTYPES[options.dtype]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval(), random_images(options, size)


def random_images(options: Options, size: tuple[int, int]) -> Tensor:
    """Return random images (batch, *size, 3), uint8."""
    torch.manual_seed(1)
    return torch.randint(0, 256, (options.batch, *size, 3), dtype=torch.uint8).to(options.device or "cpu")
