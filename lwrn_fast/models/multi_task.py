"""The segmentation part of Multi-Task Light-Weight RefineNet (Nekrasov et al., Real-Time Joint Semantic Segmentation
and Depth Estimation Using Asymmetric Annotations, ICRA 2019, section 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.crp import CRP
from .networks import CHANNELS, NETWORKS, MobileNetV2Network, Network


class ScaledReLU6(nn.Module):
    """A weight per channel, (C, 1, 1, 1) as a depthwise 1x1 convolution has it, then ReLU6."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        return F.relu6(x * self.weight.view(-1, 1, 1))


class MultiTaskNetwork(MobileNetV2Network):
    """MobileNetV2Network without aligned corners, with one weight per channel in the finest CRP, and with a scale and
    ReLU6 before the classifier. The published model also has heads for depth and normals, which this one has not."""

    align_corners = False

    def __init__(self, name: str, num_classes: int, memory_format: torch.memory_format) -> None:
        super().__init__(name, num_classes, memory_format)
        self.crp1 = nn.Sequential(CRP(CHANNELS, CHANNELS, groups=True))
        self.pre_segm = ScaledReLU6(CHANNELS)
        self.levels = (*self.levels[:-1], self.levels[-1]._replace(refine="pre_segm"))
        classifier = self.segm
        del self.segm
        self.segm = classifier  # the last module, as in every model


def rf_lw_mbv2_multi_task(num_classes: int = 40, memory_format: torch.memory_format = torch.channels_last) -> Network:
    """Return the segmentation part of Multi-Task Light-Weight RefineNet on MobileNet-v2; otherwise as `rf_lw_mbv2`.

    `load` leaves out the heads for depth and surface normals of the published checkpoints.

    >>> rf_lw_mbv2_multi_task(num_classes=6).num_classes
    6
    """
    return MultiTaskNetwork("rf_lw_mbv2_multi_task", num_classes, memory_format)


NETWORKS["rf_lw_mbv2_multi_task"] = rf_lw_mbv2_multi_task
