"""What can be measured, and what it costs at least: one kind of case per op, and whole networks.

Shapes are written planes x height x width, as PyTorch does without the batch; images are height x width.
"""

from dataclasses import dataclass

CLASSES = 21
STAGES = 4


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
