"""Small models in the styles of other authors, and their package `refinenet` from the index."""

import functools
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKAGE = "refinenet==0.9.5"


@functools.cache
def package() -> types.SimpleNamespace:
    """Install the package `refinenet` without dependencies and return its model functions; skip where that fails."""
    folder = Path(tempfile.mkdtemp()) / "third_party"
    install = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--target"]
    done = subprocess.run([*install, str(folder), PACKAGE], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"{PACKAGE} cannot be installed here: {done.stderr.strip().splitlines()[-1:]}")
    before = dict(sys.modules)
    try:
        for name in ("refinenet", "refinenet.helpers", "six", "six.moves"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["refinenet"].__path__ = [str(folder / "refinenet")]
        for name in ("compute_cm", "compute_iu", "cache_location"):
            setattr(sys.modules["refinenet.helpers"], name, None)
        sys.modules["six.moves"].urllib = None  # type: ignore[attr-defined]
        from refinenet.models import refinenet, refinenet_lw  # type: ignore[import-not-found]

        return types.SimpleNamespace(rf_lw50=refinenet_lw.refinenet_lw50, rf101=refinenet.refinenet101)
    finally:
        for name in [name for name in sys.modules if name not in before and not name.startswith("refinenet.models")]:
            del sys.modules[name]


class Pooling(nn.Module):
    """The published block under another name; groups: one weight per channel."""

    def __init__(self, channels: int, stages: int = 4, groups: int = 1, bias: bool = False) -> None:
        super().__init__()
        for i in range(stages):
            setattr(self, f"{i + 1}_outvar_dimred", nn.Conv2d(channels, channels, 1, bias=bias, groups=groups))
        self.stages = stages
        self.maxpool = nn.MaxPool2d(kernel_size=5, stride=1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        top = x
        for i in range(self.stages):
            top = self.maxpool(top)
            top = getattr(self, f"{i + 1}_outvar_dimred")(top)
            x = top + x
        return x


def encoder(*channels: int) -> nn.ModuleList:
    """Return layers of stride 2 with these channels, the first on an image."""
    inputs = (3, *channels[:-1])
    layers = [
        nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU6(inplace=True))
        for i, o in zip(inputs, channels, strict=True)
    ]
    return nn.ModuleList(layers)


class Published(nn.Module):
    """The style of the published ResNet: dropout, two 1x1 convolutions in a row, nn.Upsample in the forward."""

    crps, fusions = 2, 2

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder(8, 12)
        self.do = nn.Dropout(0.5)
        self.relu = nn.ReLU(inplace=True)
        self.p2 = nn.Conv2d(12, 16, 1, bias=False)
        self.pool2 = nn.Sequential(Pooling(16))
        self.b3 = nn.Conv2d(16, 8, 1, bias=False)
        self.p1 = nn.Conv2d(8, 10, 1, bias=False)
        self.joint = nn.Conv2d(10, 8, 1, bias=False)
        self.pool1 = nn.Sequential(Pooling(8))
        self.clf = nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        l1 = self.encoder[0](x)
        l2 = self.do(self.encoder[1](l1))
        x2 = self.b3(self.pool2(self.relu(self.p2(l2))))
        x2 = nn.Upsample(size=l1.size()[2:], mode="bilinear", align_corners=True)(x2)
        x1 = self.joint(self.p1(l1))
        x1 = F.relu(x1 + x2)
        return self.clf(self.pool1(x1))


class Mobile(nn.Module):
    """The style of the published MobileNet: ReLU6, two and three summed inputs, the last CRP grouped."""

    crps, fusions = 2, 2

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder(8, 12, 14)
        self.relu = nn.ReLU6(inplace=True)
        self.conv8 = nn.Conv2d(14, 8, 1, bias=False)
        self.conv7 = nn.Conv2d(14, 8, 1, bias=True)
        self.conv6 = nn.Conv2d(8, 8, 1, bias=False)
        self.conv5 = nn.Conv2d(12, 8, 1, bias=False)
        self.adapt = nn.Conv2d(8, 8, 1, bias=False)
        self.crp2 = nn.Sequential(Pooling(8))
        self.crp1 = nn.Sequential(Pooling(8, groups=8, bias=True))
        self.segm = nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        l6 = self.encoder[0](x)
        l5 = self.encoder[1](l6)
        l7 = self.encoder[2](l5)
        top = self.crp2(self.relu(self.conv8(l7) + self.conv7(l7)))
        up = nn.Upsample(size=l5.size()[2:], mode="bilinear", align_corners=True)
        l6 = F.max_pool2d(self.conv6(l6), 2, ceil_mode=True)
        return self.segm(self.crp1(self.relu(self.conv5(l5) + self.adapt(l6) + up(self.adapt(top)))))


class Heads(nn.Module):
    """The style of the multi-task models: align_corners False, ReLU6, and several heads."""

    crps, fusions = 1, 1

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder(8, 12)
        self.top = nn.Conv2d(12, 8, 1)
        self.side = nn.Conv2d(8, 8, 1)
        self.crp = Pooling(8, stages=3)
        self.segm = nn.Conv2d(8, 5, 3, padding=1)
        self.depth = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        l1 = self.encoder[0](x)
        l2 = self.encoder[1](l1)
        up = F.interpolate(self.top(l2), size=l1.shape[-2:], mode="bilinear", align_corners=False)
        x = self.crp(F.relu6(self.side(l1) + up))
        return self.segm(x), self.depth(x)


class Inline(nn.Module):
    """All in one forward: stages with batch normalisation, in-place sums, scale_factor, and the label map."""

    crps, fusions = 1, 1

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder(8, 12)
        self.side = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.deep = nn.Sequential(nn.Conv2d(12, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.stages = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(5, 1, 2), nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)) for _ in range(3)
        )
        self.segm = nn.Conv2d(8, 5, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        l1 = self.encoder[0](x)
        l2 = self.encoder[1](l1)
        y = self.side(F.adaptive_max_pool2d(l1, (2 * l2.shape[2], 2 * l2.shape[3])))
        y += F.interpolate(self.deep(l2), scale_factor=2.0, mode="bilinear", align_corners=True)
        y = torch.relu_(y)
        out = t = y
        for stage in self.stages:
            t = stage(t)
            out = out + t
        logits = self.segm(out - out.mean((2, 3), keepdim=True))  # gives every class a pixel
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=True).argmax(dim=1)


class Wide(nn.Module):
    """The original RefineNet's chain, with 3x3 convolutions, and a pyramid of 5x5 pools."""

    crps, fusions = 1, 0

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.last = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = t = F.relu(self.first(x))
        for conv in self.convs:
            t = conv(self.pool(t))
            x = x + t
        once = self.pool(x)
        return self.last(torch.cat([x, once, self.pool(once)], 1))


STYLES = (Published, Mobile, Heads, Inline, Wide)


def make(style: type[nn.Module]) -> nn.Module:
    """Return a model in eval mode whose batch normalisations have other than their initial statistics."""
    torch.manual_seed(0)
    model = style().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


class Chain(nn.Module):
    """A chained residual pooling with a pool and groups of choice."""

    def __init__(self, kernel: int = 5, padding: int = 2, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 1, groups=groups) for _ in range(2))
        self.pool = nn.MaxPool2d(kernel, 1, padding, dilation)

    def forward(self, x: Tensor) -> Tensor:
        out = t = x
        for conv in self.convs:
            t = conv(self.pool(t))
            out = out + t
        return out


# Shapes of images, (N, 3, H, W).
SIZES = [(1, 3, 64, 96), (2, 3, 37, 51)]
# Largest difference from eager PyTorch, relative to the largest value.
SAME = 1e-5


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    out = model(x)
    return list(out) if isinstance(out, tuple) else [out]


def difference(got: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference, relative to the largest expected value of its tensor."""
    assert [g.shape for g in got] == [e.shape for e in expected]
    assert [g.dtype for g in got] == [e.dtype for e in expected]
    return max(((g - e).abs().max() / e.abs().max()).item() for g, e in zip(got, expected, strict=True))


def same(got: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(g, e) for g, e in zip(got, expected, strict=True))
