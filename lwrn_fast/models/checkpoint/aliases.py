"""State-dict names of the same encoders and decoders in other projects."""

import re
from functools import lru_cache

import torch
from torch import Tensor

from ..mobilenet_v2 import MobileNetV2
from ..networks import NETWORKS

# The 1x1 convolution of MobileNet-v2's first block, which expands 32 channels to 32: the published model and ours
# have it, torchvision and timm do not.
EXPANSION = "layer2.0.output.0."
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
RESNETS = ("rf_lw50", "rf_lw101", "rf_lw152", "rf50", "rf101", "rf152")
# DenseTorch's Light-Weight RefineNet, LWRefineNet in densetorch/nn/decoders.py.
DECODER = {
    **{f"stem_convs.{i}.weight": f"conv{8 - i}.weight" for i in range(6)},
    **{
        f"crp_blocks.{i}.0.{stage}_outvar_dimred.weight": f"crp{4 - i}.0.{stage}_outvar_dimred.weight"
        for i in range(4)
        for stage in range(1, 5)
    },
    **{f"adapt_convs.{i}.weight": f"conv_adapt{4 - i}.weight" for i in range(3)},
}


@lru_cache
def layouts(network: str) -> tuple[dict[str, str], ...]:
    """Return for each naming of this model the own name by foreign name; the first, the own names, is empty."""
    if network in RESNETS:
        with torch.device("meta"):
            own = list(NETWORKS[network](1).state_dict())
        return {}, {name: own_name for own_name in own for name in [_transformers(own_name)] if name}
    return ({}, DECODER, *_mobilenets()) if network == "rf_lw_mbv2" else ({},)


def identity() -> dict[str, Tensor]:
    """Return the weights of an expansion that changes nothing, since its input has been through ReLU6 already."""
    with torch.device("cpu"):  # not the default device
        return {
            f"{EXPANSION}0.weight": torch.eye(32).reshape(32, 32, 1, 1),
            f"{EXPANSION}1.weight": torch.ones(32),
            f"{EXPANSION}1.bias": torch.zeros(32),
            f"{EXPANSION}1.running_mean": torch.zeros(32),
            f"{EXPANSION}1.running_var": torch.full((32,), 1 - 1e-5),  # with batch normalisation's epsilon 1
        }


def _transformers(name: str) -> str | None:
    """Return a ResNet's name in transformers' ResNetModel, without its prefix "resnet."."""
    stem = re.fullmatch(r"(conv|bn)1\.(\w+)", name)
    if stem:
        return f"embedder.embedder.{'convolution' if stem[1] == 'conv' else 'normalization'}.{stem[2]}"
    block = re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)", name)
    if not block:
        return None
    stage, number, module, index, end = block.groups()
    start = f"encoder.stages.{int(stage) - 1}.layers.{number}"
    if module == "downsample.":
        return f"{start}.shortcut.{('convolution', 'normalization')[int(index)]}.{end}"
    return f"{start}.layer.{int(index) - 1}.{'convolution' if module == 'conv' else 'normalization'}.{end}"


# Convolution and batch normalisation of the expansion, the depthwise part and the projection; in the first block of
# MobileNet-v2, the last two.
TORCHVISION = (("0.0", "0.1"), ("1.0", "1.1"), ("2", "3")), (("0.0", "0.1"), ("1", "2"))
SEQUENTIAL = (("0", "1"), ("3", "4"), ("6", "7")), (("0", "1"), ("3", "4"))
TIMM = (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")), (("conv_dw", "bn1"), ("conv_pw", "bn2"))


def _mobilenets() -> tuple[dict[str, str], ...]:
    """Return the names in torchvision, pytorch-mobilenet-v2 (the published model was trained from it) and timm."""
    blocks = [(stage, block) for stage, (_, _, count, _) in enumerate(MobileNetV2.stages) for block in range(count)]
    layouts = []
    for stem, start, parts in (
        (("features.0.0", "features.0.1"), "features.{number}.conv.", TORCHVISION),
        (("features.0.0", "features.0.1"), "features.{number}.conv.", SEQUENTIAL),
        (("conv_stem", "bn1"), "blocks.{stage}.{block}.", TIMM),
    ):
        names = _names(stem, "layer1.")
        for number, (stage, block) in enumerate(blocks, start=1):
            pairs = parts[1] if number == 1 else parts[0]
            before = start.format(number=number, stage=stage, block=block)
            for part, (convolution, norm) in enumerate(pairs, start=3 - len(pairs)):
                own = f"layer{stage + 2}.{block}.output.{part}."
                names |= _names((before + convolution, before + norm), own)
        layouts.append(names)
    return tuple(layouts)


def _names(modules: tuple[str, str], own: str) -> dict[str, str]:
    """Return the names of a convolution and its batch normalisation, foreign name to own."""
    convolution, norm = modules
    return {f"{convolution}.weight": f"{own}0.weight", **{f"{norm}.{end}": f"{own}1.{end}" for end in BATCH_NORM}}
