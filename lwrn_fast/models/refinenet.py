"""The original RefineNet on ResNets (Lin et al., RefineNet: Multi-Path Refinement Networks for High-Resolution
Semantic Segmentation, CVPR 2017, section 3) and its variants, under the published state-dict names."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import reference
from .base import Network
from .decoder import Level
from .refinenet_blocks import CRP3x3, ResidualUnits, conv3x3
from .resnet import ResNet

# Features of the ResNet that each RefineNet block takes, numbered from the deepest, by variant.
VARIANTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "single": ((1, 2, 3, 4),),
    "2-cascaded": ((1, 2), (3, 4)),
    "4-cascaded": ((1,), (2,), (3,), (4,)),
    "4-cascaded 2-scale": ((1,), (2,), (3,), (4,)),
}
# Channels of the paths of the deepest feature, and of the others.
DEEPEST_CHANNELS, CHANNELS = 512, 256


class RefineNet(ResNet, Network):
    """The original RefineNet: blocks of a 3x3 convolution and two residual units per path, their fusion, ReLU, chained
    residual pooling, three residual units. A single path is not fused and keeps its channels.

    The 2-scale variant has a second ResNet, `small`, for the image at 0.6 of its size, while the first sees it at
    1.2; its paths are named `1_small` where those of the first are named `1`.
    """

    head = "clf_conv"
    # Probability of a zero in the classifier's input, in training.
    dropout = 0.5

    def __init__(
        self,
        name: str,
        blocks: tuple[int, int, int, int],
        num_classes: int,
        memory_format: torch.memory_format,
        variant: str = "4-cascaded",
    ) -> None:
        super().__init__(blocks)
        self._configure(name, num_classes, memory_format)
        if variant not in VARIANTS:
            raise ValueError(f"{name}: variant must be one of {', '.join(map(repr, VARIANTS))}, got {variant!r}")
        self.variant = variant
        scales = ("_small", "") if variant.endswith("2-scale") else ("",)
        if len(scales) == 2:
            self.small = ResNet(blocks)
        self.levels = tuple(
            self._add_block(number, members, scales) for number, members in enumerate(VARIANTS[variant], start=1)
        )
        self.clf_conv = nn.Conv2d(CHANNELS, self.num_classes, 3, padding=1)

    def _add_block(self, number: int, members: tuple[int, ...], scales: tuple[str, ...]) -> Level:
        """Register the modules of one RefineNet block and return their names.

        number: from 1, the deepest. members: the features it takes, numbered from the deepest. scales: the ending of
        the names of each ResNet's paths.
        """
        in_channels = [DEEPEST_CHANNELS if i == 1 else CHANNELS for i in members]
        channels = min(in_channels)
        single = number == 1 and len(members) * len(scales) == 1
        paths = []
        for i, path_channels in zip(members, in_channels, strict=True):
            for scale in scales:
                path = [f"p_ims1d2_outl{i}{scale}_dimred", f"adapt_stage{i}{scale}_b"]
                self.add_module(path[0], conv3x3(ResNet.planes[-i], path_channels))
                self.add_module(path[1], nn.Sequential(ResidualUnits(path_channels, count=2)))
                if not single:
                    path.append(f"adapt_stage{i}{scale}_b2_joint_varout_dimred")
                    self.add_module(path[2], conv3x3(path_channels, channels))
                paths.append(tuple(path))
        block = f"mflow_conv_g{number}"
        self.add_module(f"{block}_pool", nn.Sequential(CRP3x3(channels)))
        self.add_module(f"{block}_b", nn.Sequential(ResidualUnits(channels, count=3)))
        if number < len(VARIANTS[self.variant]):
            self.add_module(f"{block}_b3_joint_varout_dimred", conv3x3(channels, CHANNELS))
        deeper = f"mflow_conv_g{number - 1}_b3_joint_varout_dimred" if number > 1 else None
        return Level(tuple(paths), crp=f"{block}_pool", deeper=deeper, refine=f"{block}_b")

    def features(self, x: Tensor) -> list[Tensor]:
        """Map (N, 3, H, W) to the results of the four stages, finest first; of two scales, the larger map first."""
        if self.variant != "4-cascaded 2-scale":
            return super().features(x)
        height, width = x.shape[2:]
        large = super().features(reference.resize(x, (6 * height + 4) // 5, (6 * width + 4) // 5, True))
        small = self.small.features(reference.resize(x, (3 * height + 4) // 5, (3 * width + 4) // 5, True))
        return [result for both in zip(large, small, strict=True) for result in both]

    def read(self) -> set[str]:
        """Return no names: every module is called."""
        return set()

    def _decode(self, features: Sequence[Tensor]) -> Tensor:
        """Map the result of `features` to logits (N, num_classes, ...) of the size of the finest feature."""
        remaining = list(features)
        deeper: Tensor | None = None
        for level in self.levels:
            maps: list[Tensor] = []
            for path in level.laterals:
                x = remaining.pop()
                for name in path:
                    x = getattr(self, name)(x)
                maps.insert(0, x)  # the largest comes first: the others are resized to it
            if deeper is not None and level.deeper is not None:
                maps.append(getattr(self, level.deeper)(deeper))
            deeper = self._level(maps, [], [], level)
        return self.clf_conv(F.dropout(cast(Tensor, deeper), self.dropout, self.training))
