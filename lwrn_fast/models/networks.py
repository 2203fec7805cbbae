"""The models by name: Light-Weight RefineNets, and the original RefineNets of refinenet.py. The published ones have
their published state-dict names, in the published order.

Source: Nekrasov et al., Light-Weight RefineNet for Real-Time Semantic Segmentation (BMVC 2018), sections 3 and 4.
"""

from collections.abc import Callable

import torch
from torch import nn

from ..ops.crp import CRP
from .base import Network
from .decoder import Level, conv1x1
from .mobilenet_v2 import MobileNetV2
from .nasnet import NASNetMobile
from .refinenet import RefineNet
from .refinenet_blocks import LightResidualUnits
from .resnet import ResNet

# Blocks of each stage of the ResNets (He et al., table 1).
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# Channels of the decoder.
CHANNELS = 256


class ResNetNetwork(ResNet, Network):
    """Light-Weight RefineNet on a ResNet; the deepest level has 512 channels, the others 256.

    rcu: True for residual units, named as in the original RefineNet, `adapt_stage1_b.0.*` and `mflow_conv_g1_b.0.*`.
    crp: False for none.
    """

    head = "clf_conv"
    dropout = 0.5

    def __init__(
        self,
        name: str,
        blocks: tuple[int, int, int, int],
        num_classes: int,
        memory_format: torch.memory_format,
        rcu: bool = False,
        crp: bool = True,
    ) -> None:
        super().__init__(blocks)
        self._configure(name, num_classes, memory_format)
        levels = []
        for i, in_channels in enumerate(reversed(ResNet.planes), start=1):
            channels = 2 * CHANNELS if i == 1 else CHANNELS
            chain = [f"p_ims1d2_outl{i}_dimred"]
            pool, adapt, refine = f"mflow_conv_g{i}_pool", f"adapt_stage{i}_b", f"mflow_conv_g{i}_b"
            self.add_module(chain[0], conv1x1(in_channels, channels))
            if rcu:
                self.add_module(adapt, nn.Sequential(LightResidualUnits(channels, count=2)))
            if i > 1:
                chain.append(f"adapt_stage{i}_b2_joint_varout_dimred")
                self.add_module(chain[1], conv1x1(channels, channels))
            if crp:
                self.add_module(pool, nn.Sequential(CRP(channels, channels)))
            if rcu:
                self.add_module(refine, nn.Sequential(LightResidualUnits(channels, count=3)))
            if i < len(ResNet.planes):
                self.add_module(_deeper(i), conv1x1(channels, CHANNELS))
            levels.append(
                Level(
                    laterals=(tuple(chain),),
                    crp=pool if crp else None,
                    deeper=_deeper(i - 1) if i > 1 else None,
                    adapt=adapt if rcu else None,
                    refine=refine if rcu else None,
                )
            )
        self.levels = tuple(levels)
        self.clf_conv = nn.Conv2d(CHANNELS, self.num_classes, 3, padding=1)


class MobileNetV2Network(MobileNetV2, Network):
    """Light-Weight RefineNet on MobileNet-v2; the two 1/32 features share a level, and so do the two 1/16 ones."""

    levels = (
        Level((("conv8",), ("conv7",)), "crp4"),
        Level((("conv6",), ("conv5",)), "crp3", "conv_adapt4"),
        Level((("conv4",),), "crp2", "conv_adapt3"),
        Level((("conv3",),), "crp1", "conv_adapt2"),
    )
    head = "segm"
    activation = "relu6"

    def __init__(self, name: str, num_classes: int, memory_format: torch.memory_format) -> None:
        super().__init__()
        self._configure(name, num_classes, memory_format)
        for number, in_channels in zip(range(8, 2, -1), reversed(MobileNetV2.planes), strict=True):
            self.add_module(f"conv{number}", conv1x1(in_channels, CHANNELS))
        for number in (4, 3, 2, 1):
            self.add_module(f"crp{number}", nn.Sequential(CRP(CHANNELS, CHANNELS)))
        for number in (4, 3, 2):
            self.add_module(f"conv_adapt{number}", conv1x1(CHANNELS, CHANNELS))
        self.segm = nn.Conv2d(CHANNELS, self.num_classes, 3, padding=1)


class NASNetMobileNetwork(NASNetMobile, Network):
    """Light-Weight RefineNet on NASNet-A mobile: `Decoder`'s levels and names on the last result of every size."""

    def __init__(self, name: str, num_classes: int, memory_format: torch.memory_format) -> None:
        super().__init__()
        self._configure(name, num_classes, memory_format)
        self._add_levels(NASNetMobile.planes, self.num_classes, CHANNELS)


def rf_lw50(
    num_classes: int = 21,
    memory_format: torch.memory_format = torch.channels_last,
    rcu: bool = False,
    crp: bool = True,
) -> Network:
    """Return Light-Weight RefineNet on ResNet-50, untrained; see `load` for trained weights.

    memory_format: torch.channels_last suits the kernels. torch.contiguous_format gives the plain model as published,
    PyTorch's own operations on NCHW memory whatever the backend, to compare with.
    rcu, crp: the paper's ablations, with residual units or without chained residual pooling; `load` knows neither.
    Dropout of 0.5 on the two deepest features, in training.

    >>> rf_lw50(num_classes=7).num_classes
    7
    """
    return ResNetNetwork("rf_lw50", BLOCKS[50], num_classes, memory_format, rcu, crp)


def rf_lw101(
    num_classes: int = 21,
    memory_format: torch.memory_format = torch.channels_last,
    rcu: bool = False,
    crp: bool = True,
) -> Network:
    """Return Light-Weight RefineNet on ResNet-101; otherwise as `rf_lw50`."""
    return ResNetNetwork("rf_lw101", BLOCKS[101], num_classes, memory_format, rcu, crp)


def rf_lw152(
    num_classes: int = 21,
    memory_format: torch.memory_format = torch.channels_last,
    rcu: bool = False,
    crp: bool = True,
) -> Network:
    """Return Light-Weight RefineNet on ResNet-152; otherwise as `rf_lw50`."""
    return ResNetNetwork("rf_lw152", BLOCKS[152], num_classes, memory_format, rcu, crp)


def rf_lw_mbv2(num_classes: int = 21, memory_format: torch.memory_format = torch.channels_last) -> Network:
    """Return Light-Weight RefineNet on MobileNet-v2, with ReLU6 and without dropout; otherwise as `rf_lw50`."""
    return MobileNetV2Network("rf_lw_mbv2", num_classes, memory_format)


def rf_lw_nasnet_mobile(num_classes: int = 21, memory_format: torch.memory_format = torch.channels_last) -> Network:
    """Return Light-Weight RefineNet on NASNet-A mobile, without dropout; otherwise as `rf_lw50`.

    The state-dict names are those of lwrn_fast, since none are published.

    >>> sum(p.numel() for p in rf_lw_nasnet_mobile(num_classes=21).parameters())
    6010919
    """
    return NASNetMobileNetwork("rf_lw_nasnet_mobile", num_classes, memory_format)


def rf50(
    num_classes: int = 21, memory_format: torch.memory_format = torch.channels_last, variant: str = "4-cascaded"
) -> Network:
    """Return the original RefineNet on ResNet-50, with 3x3 convolutions and residual units, untrained.

    memory_format: as for `rf_lw50`. Dropout of 0.5 before the classifier, in training.
    variant: "4-cascaded", as published; "single", one RefineNet block for all four features; "2-cascaded", one for the
    two deepest and one for the others; "4-cascaded 2-scale", two ResNets for the image at 1.2 and at 0.6 of its size,
    whose logits are (N, num_classes, ceil(1.2 H / 4), ceil(1.2 W / 4)). `load` knows the published one only.
    Source: Lin et al., RefineNet: Multi-Path Refinement Networks, CVPR 2017, sections 3 and 4.

    >>> tuple(rf50(num_classes=3, variant="single").eval()(torch.rand(1, 3, 32, 40)).shape)
    (1, 3, 8, 10)
    """
    return RefineNet("rf50", BLOCKS[50], num_classes, memory_format, variant)


def rf101(
    num_classes: int = 21, memory_format: torch.memory_format = torch.channels_last, variant: str = "4-cascaded"
) -> Network:
    """Return the original RefineNet on ResNet-101; otherwise as `rf50`."""
    return RefineNet("rf101", BLOCKS[101], num_classes, memory_format, variant)


def rf152(
    num_classes: int = 21, memory_format: torch.memory_format = torch.channels_last, variant: str = "4-cascaded"
) -> Network:
    """Return the original RefineNet on ResNet-152; otherwise as `rf50`."""
    return RefineNet("rf152", BLOCKS[152], num_classes, memory_format, variant)


def _deeper(i: int) -> str:
    """Return the name of the convolution between level i of a ResNet's decoder and the next finer one."""
    return f"mflow_conv_g{i}_b3_joint_varout_dimred"


# The models by name; a checkpoint that fits several is taken for the first.
NETWORKS: dict[str, Callable[..., Network]] = {
    "rf_lw50": rf_lw50,
    "rf_lw101": rf_lw101,
    "rf_lw152": rf_lw152,
    "rf_lw_mbv2": rf_lw_mbv2,
    "rf_lw_nasnet_mobile": rf_lw_nasnet_mobile,
    "rf50": rf50,
    "rf101": rf101,
    "rf152": rf152,
}
