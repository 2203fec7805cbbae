"""Images and their label maps on disk, in folders of pairs or in PASCAL VOC's layout."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from .. import images, models
from ..segment import MOST_CLASSES, UserError
from . import augment
from .augment import IGNORE

CLASSES_FILE = "classes.txt"
"""The names of the classes, one a line, at the top of the data."""


class DataError(UserError):
    """A file of the data that cannot be used; the message is one line and names it."""


class Pair(NamedTuple):
    """An image file and its label map, a PNG whose values are classes."""

    image: Path
    labels: Path


def find(folder: Path, split: str) -> list[Pair]:
    """The pairs of one split, in the order of their names, or of VOC's list.

    folder: in VOC's layout (JPEGImages, SegmentationClass, ImageSets/Segmentation/SPLIT.txt); or with
    SPLIT/images and SPLIT/labels; or with images and labels, which are then every split.
    Raises DataError where there is none, or an image without labels.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if (folder / "JPEGImages").is_dir():
        return _find_voc(folder, split)
    for place in (folder / split, folder):
        if (place / "images").is_dir():
            return _find_pairs(place)
    raise DataError(f"{folder}: has neither {split}/images nor images nor JPEGImages")


def has_split(folder: Path, split: str) -> bool:
    """Whether the folder keeps this split apart from others."""
    return (folder / split / "images").is_dir() or (folder / f"ImageSets/Segmentation/{split}.txt").is_file()


def class_names(folder: Path) -> list[str] | None:
    """The names in classes.txt; VOC's for its layout; None where nothing says them."""
    file = folder / CLASSES_FILE
    if file.is_file():
        try:
            names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: cannot be read ({error})") from error
        if not 1 <= len(names) < MOST_CLASSES:
            raise DataError(f"{file}: must name 1 to {MOST_CLASSES - 1} classes, names {len(names)}")
        return names
    return list(models.CLASSES) if (folder / "JPEGImages").is_dir() else None


def read(pair: Pair, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The image, uint8 (H, W, 3), and its labels, uint8 (H, W), below num_classes or 255.

    Raises DataError with the name of the file that is wrong.
    """
    try:
        image = images.read(pair.image)
    except images.ImageError as error:
        raise DataError(str(error)) from error
    labels = read_labels(pair.labels)
    if labels.shape != image.shape[:2]:
        raise DataError(f"{pair.labels}: is {_size(labels)} pixels, its image {_size(image)}")
    wrong = labels[(labels >= num_classes) & (labels != IGNORE)]
    if wrong.size:
        raise DataError(f"{pair.labels}: has the class {wrong.max()}, classes are 0 to {num_classes - 1}, and {IGNORE}")
    return image, labels


def read_labels(path: Path) -> np.ndarray:
    """A label map as uint8 (H, W), from an image file with a palette or grey of 8 bits. Raises DataError."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise DataError(f"{path}: must hold classes as a palette or 8-bit grey, is {image.mode}")
            return np.array(image)
    except DataError:
        raise
    except Exception as error:  # a damaged file can fail anywhere in a decoder
        raise DataError(f"{path}: cannot be read ({images.reason(error)})") from error


class TrainingSet:
    """Augmented samples, a data set as torch.utils.data has them.

    Keys are (epoch, index of the pair), and with the seed decide everything about a sample, so that it is the same
    in whatever process it is made, and in a run that was resumed.
    """

    def __init__(self, pairs: Sequence[Pair], num_classes: int, options: augment.Options, seed: int = 0) -> None:
        self.pairs, self.num_classes, self.options, self.seed = pairs, num_classes, options, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor] | DataError:
        """float32 (1, 3, crop, crop) and int64 (1, crop, crop); or what is wrong, for workers cannot raise one line."""
        epoch, index = key
        try:
            image, labels = read(self.pairs[index], self.num_classes)
        except DataError as error:
            return error
        return augment.sample(image, labels, self.options, np.random.SeedSequence([self.seed, epoch, index]))


def _find_voc(folder: Path, split: str) -> list[Pair]:
    file = folder / f"ImageSets/Segmentation/{split}.txt"
    try:
        stems = [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({images.reason(error)})") from error
    if not stems:
        raise DataError(f"{file}: names no images")
    pairs = [Pair(folder / f"JPEGImages/{stem}.jpg", folder / f"SegmentationClass/{stem}.png") for stem in stems]
    _check_exist(pairs)
    return pairs


def _find_pairs(folder: Path) -> list[Pair]:
    try:
        files = sorted(file for file in (folder / "images").iterdir() if file.suffix.lower() in images.EXTENSIONS)
    except OSError as error:
        raise DataError(f"{folder / 'images'}: cannot be read ({images.reason(error)})") from error
    if not files:
        raise DataError(f"{folder / 'images'}: no images in this folder")
    stems = [file.stem for file in files]
    for stem, following in zip(stems, stems[1:], strict=False):
        if stem == following:
            raise DataError(f"{folder / 'images'}: two images are called {stem}")
    pairs = [Pair(file, folder / f"labels/{file.stem}.png") for file in files]
    _check_exist(pairs)
    return pairs


def _check_exist(pairs: Sequence[Pair]) -> None:
    for pair in pairs:
        if not pair.labels.is_file():
            raise DataError(f"{pair.labels}: no such file; it should hold the labels of {pair.image}")


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
