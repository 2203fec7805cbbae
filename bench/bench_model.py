"""Whole networks, alone and with the label map. How to run: `pytest bench/bench_model.py`.

The plain network is the same module on the reference backend; "ours" has the fused blocks and otherwise eager PyTorch.
"""

import copy

import torch
from torch import Tensor, nn

import bench_upsample_argmax
import lwrn_fast
import peers
from lwrn_fast import models
from paired import Contest
from shapes import CLASSES, MODEL_TARGET, MODELS, ModelCase
from wrong import label_error, overall_error

CASES = MODELS
CONTESTANTS = tuple(name for name in peers.ENGINES if name != peers.OURS_NCHW)  # an image is small
DTYPES = peers.DTYPES[:2]
USUAL = (MODEL_TARGET, ModelCase("rf_lw_mbv2", 512, 512, labels=True), ModelCase("rf_lw50", 512, 512))
# a hundred layers of rounding, relative to the size of all logits
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}


class Plain(nn.Module):
    """The network through `lwrn_fast.reference`, in one memory format, with interpolate and argmax where asked."""

    def __init__(self, network: nn.Module, memory_format: torch.memory_format, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.network.memory_format = memory_format
        self.network.to(memory_format=memory_format)
        self.labels = None if size is None else bench_upsample_argmax.Plain(size)

    def forward(self, image: Tensor) -> Tensor:
        with lwrn_fast.use_backend("reference"):
            logits = self.network(image)
        return logits if self.labels is None else self.labels(logits)


def set_up(case: ModelCase, dtype: torch.dtype) -> Contest:
    """A random image (1, 3, height, width) and random weights."""
    torch.manual_seed(0)
    image = torch.randn(1, 3, case.height, case.width).to(dtype)
    network = random_network(case.network).to(dtype)
    size = (case.height, case.width) if case.labels else None
    plain = Plain(network, torch.contiguous_format, size)
    plain_channels_last = Plain(network, torch.channels_last, size)
    network.to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = Plain(network, torch.channels_last, None).float()(image.float())

    def ours(image: Tensor) -> Tensor:
        logits = network(image)
        return logits if size is None else lwrn_fast.upsample_argmax(logits, size)

    return Contest(
        contestants=peers.field(plain, [image], ours, CONTESTANTS, plain_channels_last=plain_channels_last),
        error=lambda got: overall_error(got, expected) if size is None else label_error(got, expected, size),
        tolerance=TOLERANCE[dtype],
    )


def random_network(name: str) -> nn.Module:
    """In eval mode, with batch statistics set so that activations neither vanish nor explode."""
    network = getattr(models, name)(num_classes=CLASSES).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return network


def test_model(measure) -> None:
    measure(set_up)
