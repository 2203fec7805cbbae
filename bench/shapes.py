"""Every shape that is measured: the decoder levels of the published networks, by the encoder's own arithmetic.

Shapes are written planes x height x width, as PyTorch does without the batch; images are height x width.
"""

from dataclasses import dataclass

IMAGES = ((512, 512), (625, 468))
CLASSES = 21
STAGES = 4

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


@dataclass(frozen=True)
class CrpCase:
    """One chained residual pooling of `STAGES` stages: x (1, planes, height, width)."""

    planes: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.planes}x{self.height}x{self.width}"

    @property
    def operations(self) -> int:
        return 2 * STAGES * self.planes**2 * self.height * self.width

    def bytes(self, itemsize: int) -> int:
        """Read and written at least: x, the weights, the result."""
        return itemsize * (2 * self.planes * self.height * self.width + STAGES * self.planes**2)


@dataclass(frozen=True)
class FusionCase:
    """One fusion: inputs are (channels, height, width), the first has the result's size."""

    inputs: tuple[tuple[int, int, int], ...]
    planes: int
    activation: str

    def __str__(self) -> str:
        return "+".join("x".join(map(str, shape)) for shape in self.inputs) + f"-{self.planes}-{self.activation}"

    @property
    def operations(self) -> int:
        """Of the 1x1 convolutions, each at its own resolution."""
        return sum(2 * c * self.planes * h * w for c, h, w in self.inputs)

    def bytes(self, itemsize: int) -> int:
        _, height, width = self.inputs[0]
        values = sum(c * h * w + c * self.planes for c, h, w in self.inputs) + self.planes * height * width
        return itemsize * values


@dataclass(frozen=True)
class UpsampleArgmaxCase:
    """Logits (1, classes, height, width) to labels (1, to[0], to[1])."""

    classes: int
    height: int
    width: int
    to: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.classes}x{self.height}x{self.width}-{self.to[0]}x{self.to[1]}"

    @property
    def operations(self) -> int:
        """One multiply-add and one comparison per class and label; the vertical interpolation is shared."""
        return 3 * self.classes * self.to[0] * self.to[1]

    def bytes(self, itemsize: int) -> int:
        return itemsize * self.classes * self.height * self.width + self.to[0] * self.to[1]


@dataclass(frozen=True)
class ModelCase:
    """A whole network on an image (1, 3, height, width); `labels` adds upsample_argmax to the image's size."""

    network: str
    height: int
    width: int
    labels: bool = False

    def __str__(self) -> str:
        return f"{self.network}-{self.height}x{self.width}" + ("-labels" if self.labels else "")


Case = CrpCase | FusionCase | UpsampleArgmaxCase | ModelCase


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
