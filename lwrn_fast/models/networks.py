"""The published Light-Weight RefineNets under their published state-dict names, in the published order.

Source: Nekrasov et al., Light-Weight RefineNet for Real-Time Semantic Segmentation (BMVC 2018), sections 3 and 4.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..crp import CRP
from .decoder import Level, LevelDecoder, conv1x1
from .mobilenet_v2 import MobileNetV2
from .resnet import ResNet

PLANES = 256


class Network(LevelDecoder):
    """An encoder and a decoder in one module, so that every name stands at the top of the state dict.

    Logits are (N, num_classes, ceil(H / 4), ceil(W / 4)) for an image (N, 3, H, W) as `preprocess` gives it; hand
    them to `lwrn_fast.upsample_argmax(logits, (H, W))` for the label map.
    """

    name: str
    num_classes: int
    memory_format = torch.channels_last
    """Strides the input is brought to, which the encoder then keeps. May be set at any time."""

    @property
    def plain(self) -> bool:  # type: ignore[override]  # follows memory_format
        return self.memory_format == torch.contiguous_format

    def features(self, x: Tensor) -> list[Tensor]:
        """The encoder, from an image to its feature maps, finest first; a subclass says what it is."""
        raise TypeError(f"{type(self).__name__} has no encoder")

    def forward(self, x: Tensor) -> Tensor:
        """An image (N, 3, H, W), normalised, to logits (N, num_classes, ceil(H / 4), ceil(W / 4))."""
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"{self.name}: x must be (N, 3, H, W), got {tuple(x.shape)}")
        return self.decode(self.features(x.contiguous(memory_format=self.memory_format)))

    def _configure(self, name: str, num_classes: int, memory_format: torch.memory_format) -> None:
        if num_classes < 1:
            raise ValueError(f"{name}: num_classes must be at least 1, got {num_classes}")
        self.name, self.num_classes, self.memory_format = name, num_classes, memory_format


class ResNetNetwork(ResNet, Network):
    """Light-Weight RefineNet on a ResNet; the deepest level has 512 channels, the others 256."""

    levels = (
        Level((("p_ims1d2_outl1_dimred",),), "mflow_conv_g1_pool"),
        *(
            Level(
                ((f"p_ims1d2_outl{i}_dimred", f"adapt_stage{i}_b2_joint_varout_dimred"),),
                f"mflow_conv_g{i}_pool",
                f"mflow_conv_g{i - 1}_b3_joint_varout_dimred",
            )
            for i in (2, 3, 4)
        ),
    )
    head = "clf_conv"
    dropout = 0.5

    def __init__(
        self, name: str, blocks: tuple[int, int, int, int], num_classes: int, memory_format: torch.memory_format
    ) -> None:
        super().__init__(blocks)
        self._configure(name, num_classes, memory_format)
        for i, in_planes in enumerate(reversed(ResNet.planes), start=1):
            planes = 2 * PLANES if i == 1 else PLANES
            self.add_module(f"p_ims1d2_outl{i}_dimred", conv1x1(in_planes, planes))
            if i > 1:
                self.add_module(f"adapt_stage{i}_b2_joint_varout_dimred", conv1x1(planes, planes))
            self.add_module(f"mflow_conv_g{i}_pool", nn.Sequential(CRP(planes, planes)))
            if i < len(ResNet.planes):
                self.add_module(f"mflow_conv_g{i}_b3_joint_varout_dimred", conv1x1(planes, PLANES))
        self.clf_conv = nn.Conv2d(PLANES, num_classes, 3, padding=1)


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
        for number, in_planes in zip(range(8, 2, -1), reversed(MobileNetV2.planes), strict=True):
            self.add_module(f"conv{number}", conv1x1(in_planes, PLANES))
        for number in (4, 3, 2, 1):
            self.add_module(f"crp{number}", nn.Sequential(CRP(PLANES, PLANES)))
        for number in (4, 3, 2):
            self.add_module(f"conv_adapt{number}", conv1x1(PLANES, PLANES))
        self.segm = nn.Conv2d(PLANES, num_classes, 3, padding=1)


def rf_lw50(num_classes: int = 21, memory_format: torch.memory_format = torch.channels_last) -> Network:
    """Light-Weight RefineNet on ResNet-50, untrained; see `load` for trained weights.

    memory_format: torch.channels_last is what the kernels want. torch.contiguous_format gives the plain network as
    it was published, PyTorch's own operations on NCHW memory whatever the backend, to compare with.
    Dropout of 0.5 on the two deepest features while training.

    >>> rf_lw50(num_classes=7).num_classes
    7
    """
    return ResNetNetwork("rf_lw50", (3, 4, 6, 3), num_classes, memory_format)


def rf_lw101(num_classes: int = 21, memory_format: torch.memory_format = torch.channels_last) -> Network:
    """Light-Weight RefineNet on ResNet-101; otherwise as `rf_lw50`."""
    return ResNetNetwork("rf_lw101", (3, 4, 23, 3), num_classes, memory_format)


def rf_lw152(num_classes: int = 21, memory_format: torch.memory_format = torch.channels_last) -> Network:
    """Light-Weight RefineNet on ResNet-152; otherwise as `rf_lw50`."""
    return ResNetNetwork("rf_lw152", (3, 8, 36, 3), num_classes, memory_format)


def rf_lw_mbv2(num_classes: int = 21, memory_format: torch.memory_format = torch.channels_last) -> Network:
    """Light-Weight RefineNet on MobileNet-v2, with ReLU6 and without dropout; otherwise as `rf_lw50`."""
    return MobileNetV2Network("rf_lw_mbv2", num_classes, memory_format)


NETWORKS: dict[str, Callable[..., Network]] = {
    "rf_lw50": rf_lw50,
    "rf_lw101": rf_lw101,
    "rf_lw152": rf_lw152,
    "rf_lw_mbv2": rf_lw_mbv2,
}
"""The published networks by name."""
