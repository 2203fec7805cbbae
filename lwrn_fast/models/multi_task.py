"""The segmentation part of Multi-Task Light-Weight RefineNet (Nekrasov et al., Real-Time Joint Semantic Segmentation
and Depth Estimation Using Asymmetric Annotations, ICRA 2019, section 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.crp import CRP
from .networks import NETWORKS, PLANES, MobileNetV2Network, Network


class ScaledReLU6(nn.Module):
    """A weight per channel, (C, 1, 1, 1) as a depthwise 1x1 convolution has it, then ReLU6."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(planes, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        return F.relu6(x * self.weight.view(-1, 1, 1))


class MultiTaskNetwork(MobileNetV2Network):
    """Unlike rf_lw_mbv2, it upsamples without aligned corners, its finest CRP has a weight per channel, and a scale and
    ReLU6 are before its classifier, as before those for depth and normals, which are not here."""

    align_corners = False

    def __init__(self, name: str, num_classes: int, memory_format: torch.memory_format) -> None:
        super().__init__(name, num_classes, memory_format)
        self.crp1 = nn.Sequential(CRP(PLANES, PLANES, groups=True))
        self.pre_segm = ScaledReLU6(PLANES)
        self.levels = (*self.levels[:-1], self.levels[-1]._replace(refine="pre_segm"))
        classifier = self.segm
        del self.segm
        self.segm = classifier  # the last of the modules, as everywhere


def rf_lw_mbv2_multi_task(num_classes: int = 40, memory_format: torch.memory_format = torch.channels_last) -> Network:
    """The segmentation part of Multi-Task Light-Weight RefineNet on MobileNet-v2; otherwise as `rf_lw_mbv2`.

    `load` leaves out the heads for depth and surface normals of the published checkpoints.

    >>> rf_lw_mbv2_multi_task(num_classes=6).num_classes
    6
    """
    return MultiTaskNetwork("rf_lw_mbv2_multi_task", num_classes, memory_format)


NETWORKS["rf_lw_mbv2_multi_task"] = rf_lw_mbv2_multi_task
