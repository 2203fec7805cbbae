"""Every shape that is measured: the decoder levels of the published networks, by the encoder's own arithmetic.

Shapes are written planes x height x width, as PyTorch does without the batch; images are height x width.
"""

from lwrn_fast.profiling.cases import CLASSES, Case, CrpCase, FusionCase, ModelCase, UpsampleArgmaxCase

IMAGES = ((512, 512), (625, 468))

# per level, deepest first: planes of the block, and the fusion's inputs as (channels, the image is how often halved)
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
    """A side after `times` convolutions (or pools) with stride 2 and "same" padding: each rounds up.

    >>> [halved(625, times) for times in (1, 2, 3, 4, 5)]
    [313, 157, 79, 40, 20]
    """
    for _ in range(times):
        length = -(-length // 2)
    return length


def level_shapes(network: str, level: int, image: tuple[int, int]) -> tuple[CrpCase, FusionCase]:
    """What one decoder level computes for an image (height, width).

    >>> [str(case) for case in level_shapes("rf_lw50", 1, (512, 512))]
    ['256x128x128', '256x128x128+256x64x64-256-relu']
    """
    planes, inputs = LEVELS[network][level]
    sizes = tuple((c, halved(image[0], times), halved(image[1], times)) for c, times in inputs)
    return CrpCase(planes, *sizes[0][1:]), FusionCase(sizes, planes, ACTIVATION[network])


def _by_case(which: int) -> dict[Case, str]:
    """Every distinct case of the decoders, largest first, with where it occurs."""
    places: dict[Case, list[str]] = {}
    for height, width in IMAGES:
        for network, levels in LEVELS.items():
            for level in sorted(levels):
                case = level_shapes(network, level, (height, width))[which]
                places.setdefault(case, []).append(f"{network} level {level} of {height}x{width}")
    return {case: ", ".join(where) for case, where in places.items()}


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

# the shapes that the project's targets are stated for
CRP_TARGET = CrpCase(256, 128, 128)
FUSION_TARGET = FusionCase(((256, 128, 128), (256, 64, 64)), 256, "relu")
UPSAMPLE_ARGMAX_TARGET = UpsampleArgmaxCase(21, 128, 128, (512, 512))
MODEL_TARGET = ModelCase("rf_lw_mbv2", 512, 512)
