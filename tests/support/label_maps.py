"""Data sets of small label maps, and commands over them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lwrn_fast import cli, models
from lwrn_fast.training import preparing

MARK = "lwrn-fast: error: "
TRAIN = ["--epochs", "1", "--batch", "2", "--crop", "32", "--device", "cpu"]
CITYSCAPES_ROAD, CITYSCAPES_CAR = (128, 64, 128), (0, 0, 142)


def classes(seed: int, values: tuple[int, ...] = (0, 1), size: tuple[int, int] = (32, 40)) -> np.ndarray:
    """Return blocks of these values, uint8 (H, W); each value occurs."""
    blocks = np.random.RandomState(seed).choice(values, (size[0] // 4, size[1] // 4))
    blocks.ravel()[: len(values)] = values
    return blocks.repeat(4, 0).repeat(4, 1).astype(np.uint8)


def pairs_folder(folder: Path, maps: list[Image.Image], names: str = "ground thing") -> Path:
    for split in ("train", "val"):
        _write(folder / split / "images", folder / split / "labels", maps)
    (folder / "classes.txt").write_text("\n".join(names.split()))
    return folder


def voc_folder(folder: Path, maps: list[Image.Image], names: str = "ground thing") -> Path:
    stems = _write(folder / "JPEGImages", folder / "SegmentationClass", maps)
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split in ("train", "val"):
        (lists / f"{split}.txt").write_text("\n".join(stems))
    (folder / "classes.txt").write_text("\n".join(names.split()))
    return folder


LAYOUTS = {"pairs": pairs_folder, "voc": voc_folder}


def _write(image_folder: Path, maps: Path, images: list[Image.Image]) -> list[str]:
    for path in (image_folder, maps):
        path.mkdir(parents=True)
    for i, image in enumerate(images):
        noise = np.random.RandomState(i).randint(0, 256, (image.height, image.width, 3))
        Image.fromarray(noise.astype(np.uint8)).save(image_folder / f"p{i}.jpg")
        image.save(maps / f"p{i}.png")
    return [f"p{i}" for i in range(len(images))]


def grey(*values: int, count: int = 4) -> list[Image.Image]:
    return [Image.fromarray(classes(seed, values)) for seed in range(count)]


def coloured(*colours: tuple[int, int, int], mode: str = "RGB") -> list[Image.Image]:
    table = np.array(colours, np.uint8)
    return [Image.fromarray(table[classes(seed, tuple(range(len(colours))))]).convert(mode) for seed in range(4)]


class Run:
    """A command over data: its exit code and output."""

    def __init__(self, capsys: pytest.CaptureFixture, *arguments: object) -> None:
        capsys.readouterr()
        self.code = cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        self.out, self.errors = said.out, said.err.splitlines()


def weights(folder: Path) -> Callable[[int], str]:
    """Return a function from a number of logits to the path of untrained weights with it."""

    def path(number: int) -> str:
        file = folder / f"{number}.pth"
        if not file.exists():
            torch.manual_seed(0)
            model = models.rf_lw_mbv2(number)
            preparing.initialise(model)
            torch.save(model.state_dict(), file)
        return str(file)

    return path
