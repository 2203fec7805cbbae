"""The subjects of the table of entrances that are called in Python: functions, modules, models, images and files."""

import functools
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

import lwrn_fast
from lwrn_fast import models, reference
from support.entrances.cells import SIZE, Args, Change, Subject, Weights, filled, labels_are_right, noise, upsampled

_numbers = itertools.count()


def new_path(folder: Path, ending: str) -> Path:
    """Return a new file name in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{next(_numbers)}{ending}"


class CrpFunction(Subject):
    names = ("x", "weights", "biases")
    differentiable = True

    def make(self, weights: Weights, wide: bool, change: Change, folder: Path) -> Callable[..., Any]:
        return lwrn_fast.crp

    def inputs(self, seed: int, size: tuple[int, int], batch: int, wide: bool) -> Args:
        channels = 12 if wide else 8
        weights = [noise(seed + i, channels, channels, 1, 1) / 3 for i in (1, 2)]
        return noise(seed, batch, channels, *size), weights, [noise(seed + i, channels) for i in (1, 2)]

    def plain(self, weights: Weights, *args: Any) -> Any:
        return reference.crp(*args)


class FusionFunction(Subject):
    names = ("inputs", "weights", "biases", "activation")
    differentiable = True

    def make(self, weights: Weights, wide: bool, change: Change, folder: Path) -> Callable[..., Any]:
        return lwrn_fast.fusion

    def inputs(self, seed: int, size: tuple[int, int], batch: int, wide: bool) -> Args:
        channels = 9 if wide else 5
        maps = pyramid(seed, size, batch, wide)
        weights = [noise(seed + i, channels, x.shape[1], 1, 1) / 3 for i, x in enumerate(maps)]
        return maps, weights, [noise(seed + i, channels) for i in (1, 2)], "none"

    def plain(self, weights: Weights, *args: Any) -> Any:
        return reference.fusion(*args)


class UpsampleArgmaxFunction(Subject):
    names = ("logits", "size")

    def make(self, weights: Weights, wide: bool, change: Change, folder: Path) -> Callable[..., Any]:
        return lwrn_fast.upsample_argmax

    def inputs(self, seed: int, size: tuple[int, int], batch: int, wide: bool) -> Args:
        return noise(seed, batch, 9 if wide else 5, size[0] // 4, size[1] // 4), size

    def plain(self, weights: Weights, *args: Any) -> Any:
        return upsampled(*args)

    def check(self, got: Any, weights: Weights, args: Args) -> None:
        labels_are_right(got, self.plain(weights, args[0].detach().as_subclass(Tensor).double(), args[1]))


class NormaliseFunction(Subject):
    """normalise: one entry of the weights tells `plain` the dtype, because the arguments are whole numbers."""

    names = ("images", "size")

    def weights(self, seed: int, wide: bool) -> Weights:
        return {"like": torch.zeros((), dtype=torch.float32)}

    def make(self, weights: Weights, wide: bool, change: Change, folder: Path) -> Callable[..., Any]:
        return lwrn_fast.normalise

    def inputs(self, seed: int, size: tuple[int, int], batch: int, wide: bool) -> Args:
        images = [torch.from_numpy(image(seed + i, *size)) for i in range(batch)]
        return torch.stack(images), (size[0] - 5, size[1] + (11 if wide else 6))

    def plain(self, weights: Weights, *args: Any) -> Any:
        return normalised(args[0], args[1], weights["like"].dtype)


class PreprocessFunction(NormaliseFunction):
    names = ("image", "size")

    def make(self, weights: Weights, wide: bool, change: Change, folder: Path) -> Callable[..., Any]:
        return models.preprocess

    def inputs(self, seed: int, size: tuple[int, int], batch: int, wide: bool) -> Args:
        return image(seed, *size), (size[0] - 5, size[1] + (11 if wide else 6))

    def plain(self, weights: Weights, *args: Any) -> Any:
        return normalised(torch.from_numpy(args[0].copy()), args[1], weights["like"].dtype)

    def of_file(self, run: Callable[..., Any], path: Path) -> Any:
        _, size = self.inputs(0, SIZE, 1, False)
        with Image.open(path) as opened:
            return run(opened, size)


class OfModule(Subject):
    """A module that `build` makes, called with the result of `inputs`. plain: its answer from a dict of weights."""

    differentiable = True

    def __init__(
        self,
        build: Callable[[bool], nn.Module],
        inputs: Callable[..., Args],
        plain: Callable[..., Any],
        names: tuple[str, ...] = ("x",),
    ) -> None:
        self.build, self._inputs, self._plain, self.names = functools.cache(build), inputs, plain, names

    def weights(self, seed: int, wide: bool) -> Weights:
        return filled(self.build(wide).state_dict(), seed)

    def make(self, weights: Weights, wide: bool, change: Change, folder: Path) -> Callable[..., Any]:
        return change(self.model(weights, wide))

    def model(self, weights: Weights, wide: bool) -> nn.Module:
        """Return a new model of float32 with these weights; the cached one is the oracle's."""
        module = self.build.__wrapped__(wide).to(torch.float32).eval()  # type: ignore[attr-defined]
        module.load_state_dict(weights)
        return module

    def inputs(self, seed: int, size: tuple[int, int], batch: int, wide: bool) -> Args:
        return self._inputs(seed, size, batch, wide)

    def plain(self, weights: Weights, *args: Any) -> Any:
        return self._plain(weights, *args)


class UpsampleArgmaxModule(UpsampleArgmaxFunction):
    names = ("logits",)

    def make(self, weights: Weights, wide: bool, change: Change, folder: Path) -> Callable[..., Any]:
        return change(lwrn_fast.UpsampleArgmax(SIZE))

    def inputs(self, seed: int, size: tuple[int, int], batch: int, wide: bool) -> Args:
        return super().inputs(seed, size, batch, wide)[:1]

    def check(self, got: Any, weights: Weights, args: Args) -> None:
        super().check(got, weights, (args[0], SIZE))


def published(build: Callable[..., nn.Module]) -> OfModule:
    """Return the subject of one of the package's models. build: takes the number of classes and the memory format.

    Its plain form, PyTorch's own operations alone on contiguous memory, is the oracle.
    """

    @functools.cache
    def plain(classes: int) -> nn.Module:
        return build(classes, torch.contiguous_format).eval()

    def answer(weights: Weights, x: Tensor) -> Tensor:
        head = [value for name, value in weights.items() if name.endswith("bias")][-1]
        return called(plain(len(head)), weights, x)

    return OfModule(lambda wide: build(7 if wide else 5, torch.channels_last).eval(), rgb, answer)


def called(model: nn.Module, weights: Weights, *args: Any) -> Any:
    """Call the model with these weights; functional_call sets them in the module, so one thread at a time does it."""
    with _turn:
        return functional_call(model, weights, args)


_turn = threading.RLock()


class ThirdParty(nn.Module):
    """A third-party model: convolutions and batch normalisations, a fusion, chained residual pooling, a head."""

    def __init__(self, channels: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.deep = nn.Conv2d(channels, 6, 3, 2, 1)
        self.fine1x1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.deep1x1 = nn.Conv2d(6, channels, 1, bias=False)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 1, bias=False) for _ in range(2))
        self.head = nn.Conv2d(channels, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        fine = F.relu(self.norm(self.stem(x)))
        deep = self.deep1x1(F.relu(self.deep(fine)))
        x = F.relu(self.fine1x1(fine) + upsampled(deep, fine.shape[2:]))
        first = self.conv1(self.pool(x))
        return self.head(x + first + self.conv2(self.pool(first)))


class Flattening(ThirdParty):
    """A model that relies on the strides which PyTorch's own operations leave: contiguous to contiguous."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        first = self.conv1(self.pool(x))
        x = x + first + self.conv2(self.pool(first))
        return x.view(x.shape[0], -1)


class Tiny(models.base.Network):
    """A minimal model of the package's class Network, for commands and checkpoints: a stem, a map below, two levels."""

    def __init__(self, num_classes: int = 5, memory_format: torch.memory_format = torch.channels_last) -> None:
        super().__init__()
        self._configure("tiny", num_classes, memory_format)
        self.stem = nn.Conv2d(3, 8, 3, 4, 1)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 12, 3, 2, 1)
        self._add_levels([8, 12], num_classes, 8)

    def features(self, x: Tensor) -> list[Tensor]:
        fine = F.relu(self.norm(self.stem(x)))
        return [fine, F.relu(self.deep(fine))]


def third_party(wide: bool) -> nn.Module:
    return ThirdParty(12, 7) if wide else ThirdParty()


def flattening(wide: bool) -> nn.Module:
    return Flattening(12) if wide else Flattening()


def tiny(wide: bool) -> nn.Module:
    return Tiny(7 if wide else 5)


class OfNetwork(OfModule):
    """The result of `enter` for a model, called with the model's inputs.

    enter: takes the model, in eval mode, an example of its input, and a new path without an ending.
    """

    differentiable = False

    def __init__(self, enter: Callable[[nn.Module, Tensor, Path], Any], build: Callable[[bool], nn.Module]) -> None:
        def answer(weights: Weights, x: Tensor) -> Tensor:
            wide = self.build(True).state_dict()
            is_wide = all(value.shape == wide[name].shape for name, value in weights.items())
            return called(plain_layout(self.build(is_wide)).eval(), weights, x)

        super().__init__(build, rgb, answer)
        self.enter = enter

    def make(self, weights: Weights, wide: bool, change: Change, folder: Path) -> Callable[..., Any]:
        model = change(self.model(weights, wide))
        return self.enter(model, noise(77, 1, 3, *SIZE), new_path(folder, ""))


class Differentiable(OfNetwork):
    """An entrance that keeps gradients."""

    differentiable = True


class OfImages(OfNetwork):
    """An entrance from images, uint8 (H, W, 3), to label maps. size: of the model's input, where it is fixed."""

    def __init__(
        self,
        enter: Callable[[nn.Module, Tensor, Path], Any],
        build: Callable[[bool], nn.Module],
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(enter, build)
        self.names, self.size = ("images",), size

    def inputs(self, seed: int, size: tuple[int, int], batch: int, wide: bool) -> Args:
        if batch == 1:
            return (image(seed, *size),)
        return (np.stack([image(seed + i, *size) for i in range(batch)]),)

    def plain(self, weights: Weights, *args: Any) -> Any:
        images = torch.from_numpy(np.ascontiguousarray(args[0]))
        x = normalised(images, self.size, next(iter(weights.values())).dtype)
        return upsampled(self._plain(weights, x), images.shape[-3:-1])

    def check(self, got: Any, weights: Weights, args: Args) -> None:
        exact = self.plain({name: value.double() for name, value in weights.items()}, *args)
        labels = torch.as_tensor(got)
        labels_are_right(labels if args[0].ndim == 4 else labels[None], exact)

    def of_file(self, run: Callable[..., Any], path: Path) -> Any:
        with Image.open(path) as opened:
            return run(opened)


def plain_layout(model: nn.Module) -> nn.Module:
    """Return the model in plain PyTorch, which only the package's own models have to be told."""
    if isinstance(model, models.base.Network):
        model.memory_format = torch.contiguous_format
    return model


def plain_crp(weights: Weights, x: Tensor) -> Tensor:
    channels = x.shape[1]
    parts = ([w for name, w in weights.items() if name.endswith(role)] for role in ("weight", "bias"))
    convs, biases = parts
    return reference.crp(x, convs, biases, channels if convs[0].shape[1] < channels else 1)


def plain_fusion(weights: Weights, *inputs: Any) -> Tensor:
    maps = list(inputs[0] if isinstance(inputs[0], (list, tuple)) else inputs)
    return reference.fusion(maps, [w for name, w in weights.items() if name.endswith("weight")])


def plain_decoder(weights: Weights, features: Any, seen: list[Tensor] | None = None) -> Tensor:
    """Compute two levels of lwrn_fast.models.Decoder by hand. seen: gets the maps around each residual pooling."""
    fine, deep = features
    crps = [[w for name, w in weights.items() if name.startswith(f"crp{level}.")] for level in (1, 2)]
    before2 = reference.fusion([deep], [weights["lateral2.weight"]])
    after2 = reference.crp(before2, crps[1])
    before1 = reference.fusion([fine, after2], [weights["lateral1.weight"], weights["deeper2.weight"]])
    after1 = reference.crp(before1, crps[0])
    if seen is not None:
        seen += [before2, after2, before1, after1]
    return F.conv2d(after1, weights["classifier.weight"], weights["classifier.bias"], padding=1)


def normalised(images: Tensor, size: Any, dtype: torch.dtype) -> Tensor:
    """Return the input of a model from images, (N, H, W, 3) or (H, W, 3) of uint8."""
    return reference.normalise(images, None if size is None else tuple(map(int, size)), dtype)


def one_map(seed: int, size: tuple[int, int], batch: int, wide: bool) -> Args:
    return (noise(seed, batch, 12 if wide else 8, *size),)


def pyramid(seed: int, size: tuple[int, int], batch: int, wide: bool) -> list[Tensor]:
    """Return a map of this size, and one of half of it with other channels."""
    channels = (12, 7) if wide else (8, 6)
    return [noise(seed + i, batch, n, size[0] >> i, size[1] >> i) for i, n in enumerate(channels)]


def a_list(*given: Any) -> Args:
    return (pyramid(*given),)


def rgb(seed: int, size: tuple[int, int], batch: int, wide: bool) -> Args:
    return (noise(seed, batch, 3, *size),)


def image(seed: int, height: int, width: int) -> np.ndarray:
    """Return blocks of colour, uint8 (H, W, 3), so that labels form areas."""
    coarse = np.random.RandomState(seed).randint(0, 256, (-(-height // 8), -(-width // 8), 3))
    return np.kron(coarse, np.ones((8, 8, 1), int))[:height, :width].astype(np.uint8)
