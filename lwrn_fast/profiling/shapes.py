"""Shapes of the benchmarks: the decoder levels of two published models, and the cases that targets are stated for.

They follow from the encoders' own arithmetic, without building a model. Shapes are written channels x height x width,
images height x width.
"""

from .cases import CLASSES, Case, CrpCase, FusionCase, ModelCase, UpsampleArgmaxCase

IMAGES = ((512, 512), (625, 468))

# Per level, deepest first: channels of the block, and the fusion's inputs as (channels, halvings of the image).
LEVELS: dict[str, dict[int, tuple[int, tuple[tuple[int, int], ...]]]] = {
    "rf_lw50": {
        4: (512, ((2048, 5),)),
        3: (256, ((1024, 4), (512, 5))),
        2: (256, ((512, 3), (256, 4))),
        1: (256, ((256, 2), (256, 3))),
    },
    "rf_lw_mbv2": {
        4: (256, ((320, 5), (160, 5))),
        3: (256, ((96, 4), (64, 4), (256, 5))),
        2: (256, ((32, 3), (256, 4))),
        1: (256, ((24, 2), (256, 3))),
    },
}
ACTIVATION = {"rf_lw50": "relu", "rf_lw_mbv2": "relu6"}


def halved(length: int, times: int) -> int:
    """Return a side after `times` convolutions (or pools) with stride 2 and "same" padding, each of which rounds up.

    >>> [halved(625, times) for times in (1, 2, 3, 4, 5)]
    [313, 157, 79, 40, 20]
    """
    for _ in range(times):
        length = -(-length // 2)
    return length


def level_shapes(network: str, level: int, image: tuple[int, int]) -> tuple[CrpCase, FusionCase]:
    """Return the cases of one decoder level for an image (height, width).

    >>> [str(case) for case in level_shapes("rf_lw50", 1, (512, 512))]
    ['256x128x128', '256x128x128+256x64x64-256-relu']
    """
    channels, inputs = LEVELS[network][level]
    sizes = tuple((c, halved(image[0], times), halved(image[1], times)) for c, times in inputs)
    return CrpCase(channels, *sizes[0][1:]), FusionCase(sizes, channels, ACTIVATION[network])


def _by_case(index: int) -> dict[Case, str]:
    """Return every distinct case of the decoders, largest first, with the levels that it occurs at.

    index: 0 for the CRPs of `level_shapes`, 1 for the fusions.
    """
    levels: dict[Case, list[str]] = {}
    for height, width in IMAGES:
        for network in LEVELS:
            for level in sorted(LEVELS[network]):
                case = level_shapes(network, level, (height, width))[index]
                levels.setdefault(case, []).append(f"{network} level {level} of {height}x{width}")
    return {case: ", ".join(names) for case, names in levels.items()}


CRP = _by_case(0)
FUSION = _by_case(1)
UPSAMPLE_ARGMAX: dict[Case, str] = {
    UpsampleArgmaxCase(CLASSES, halved(h, 2), halved(w, 2), (h, w)): f"logits of {h}x{w}" for h, w in IMAGES
}
MODELS: dict[Case, str] = {
    ModelCase(network, h, w, labels): f"{network} on {h}x{w}"
    for network in ("rf_lw_mbv2", "rf_lw50")
    for h, w in IMAGES
    for labels in (False, True)
}
OPS = {"crp": CRP, "fusion": FUSION, "upsample_argmax": UPSAMPLE_ARGMAX}

# The cases that the project's targets are stated for.
CRP_TARGET = CrpCase(256, 128, 128)
FUSION_TARGET = FusionCase(((256, 128, 128), (256, 64, 64)), 256, "relu")
UPSAMPLE_ARGMAX_TARGET = UpsampleArgmaxCase(21, 128, 128, (512, 512))
MODEL_TARGET = ModelCase("rf_lw_mbv2", 512, 512)
