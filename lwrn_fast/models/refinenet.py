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

# per variant, the ResNet's features that each RefineNet block takes, numbered from the deepest
VARIANTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "single": ((1, 2, 3, 4),),
    "2-cascaded": ((1, 2), (3, 4)),
    "4-cascaded": ((1,), (2,), (3,), (4,)),
    "4-cascaded 2-scale": ((1,), (2,), (3,), (4,)),
}
DEEPEST_PLANES, PLANES = 512, 256


class RefineNet(ResNet, Network):
    """Per RefineNet block: each path through a 3x3 convolution and two residual units, their fusion, ReLU, chained
    residual pooling, three residual units. A single path is not fused and keeps its channels.

    The 2-scale variant has a second ResNet, `small`, for the image at 0.6 of its size, while the first sees it at
    1.2; its paths are called `1_small` where those of the first are called `1`.
    """

    head = "clf_conv"
    dropout = 0.5
    """Probability of a zero in what the classifier sees while training."""

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
        levels = []
        for number, members in enumerate(VARIANTS[variant], start=1):
            in_planes = [DEEPEST_PLANES if i == 1 else PLANES for i in members]
            planes = min(in_planes)  # as the path with the fewest has
            single = number == 1 and len(members) * len(scales) == 1
            paths = []
            for i, path_planes in zip(members, in_planes, strict=True):
                for scale in scales:
                    path = [f"p_ims1d2_outl{i}{scale}_dimred", f"adapt_stage{i}{scale}_b"]
                    self.add_module(path[0], conv3x3(ResNet.planes[-i], path_planes))
                    self.add_module(path[1], nn.Sequential(ResidualUnits(path_planes, count=2)))
                    if not single:
                        path.append(f"adapt_stage{i}{scale}_b2_joint_varout_dimred")
                        self.add_module(path[2], conv3x3(path_planes, planes))
                    paths.append(tuple(path))
            block = f"mflow_conv_g{number}"
            self.add_module(f"{block}_pool", nn.Sequential(CRP3x3(planes)))
            self.add_module(f"{block}_b", nn.Sequential(ResidualUnits(planes, count=3)))
            if number < len(VARIANTS[variant]):
                self.add_module(f"{block}_b3_joint_varout_dimred", conv3x3(planes, PLANES))
            deeper = f"mflow_conv_g{number - 1}_b3_joint_varout_dimred" if number > 1 else None
            levels.append(Level(tuple(paths), crp=f"{block}_pool", deeper=deeper, refine=f"{block}_b"))
        self.levels = tuple(levels)
        self.clf_conv = nn.Conv2d(PLANES, self.num_classes, 3, padding=1)

    def features(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) to the results of the four stages, finest first, and for two scales each one's larger first."""
        if self.variant != "4-cascaded 2-scale":
            return super().features(x)
        height, width = x.shape[2:]
        large = super().features(reference.resize(x, (6 * height + 4) // 5, (6 * width + 4) // 5, True))
        small = self.small.features(reference.resize(x, (3 * height + 4) // 5, (3 * width + 4) // 5, True))
        return [result for both in zip(large, small, strict=True) for result in both]

    def read(self) -> set[str]:
        """All modules are called."""
        return set()

    def _decode(self, features: Sequence[Tensor]) -> Tensor:
        """What `features` gives, to logits (N, num_classes, ...) of the size of the finest feature."""
        remaining = list(features)
        deeper: Tensor | None = None
        for level in self.levels:
            maps: list[Tensor] = []
            for path in level.laterals:
                x = remaining.pop()
                for name in path:
                    x = getattr(self, name)(x)
                maps.insert(0, x)  # the largest comes first, for the others are brought to its size
            if deeper is not None and level.deeper is not None:
                maps.append(getattr(self, level.deeper)(deeper))
            deeper = self._level(maps, [], [], level)
        return self.clf_conv(F.dropout(cast(Tensor, deeper), self.dropout, self.training))
