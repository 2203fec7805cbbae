"""Images and their label maps on disk, in folders of pairs or in PASCAL VOC's layout."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .. import models
from ..inference.segment import MOST_CLASSES
from ..io import images
from . import augment, labels
from .augment import IGNORE
from .label_map import LabelMap
from .labels import DataError

CLASSES_FILE = "classes.txt"
"""The names of the classes, one a line, at the top of the data."""


class Pair(NamedTuple):
    """An image file and its label map, whose values are classes, or what `label_map` makes classes of."""

    image: Path
    labels: Path
    label_map: LabelMap | None = None


def find(folder: Path, split: str, label_map: LabelMap | None = None) -> list[Pair]:
    """The pairs of one split, in the order of their names, or of VOC's list.

    folder: in VOC's layout (JPEGImages, SegmentationClass, ImageSets/Segmentation/SPLIT.txt); or with
    SPLIT/images and SPLIT/labels; or with images and labels, which are then every split. Hidden files, such as the
    "._" files of macOS, are none of them. label_map: of every pair.
    Raises DataError where there is none, or an image without labels.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if (folder / "JPEGImages").is_dir():
        return _find_voc(folder, split, label_map)
    for place in (folder / split, folder):
        if (place / "images").is_dir():
            return _find_pairs(place, label_map)
    raise DataError(f"{folder}: has neither {split}/images nor images nor JPEGImages")


def without_image(pairs: Sequence[Pair]) -> list[Path]:
    """Label maps beside those of the pairs that no image has; none in VOC's layout, where a list decides."""
    folder = pairs[0].labels.parent
    if not (folder.parent / "images").is_dir():
        return []
    used = {pair.labels.stem for pair in pairs}
    return sorted(file for file in _Folder(folder, labels.ENDINGS).files() if file.stem not in used)


def has_split(folder: Path, split: str) -> bool:
    """Whether the folder keeps this split apart from others."""
    return (folder / split / "images").is_dir() or (folder / f"ImageSets/Segmentation/{split}.txt").is_file()


def class_names(folder: Path) -> list[str] | None:
    """The names in classes.txt; VOC's for its layout; None where nothing says them."""
    file = folder / CLASSES_FILE
    if file.is_file():
        try:
            # Windows' editors write a byte order mark
            names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: cannot be read ({error})") from error
        if not 1 <= len(names) < MOST_CLASSES:
            raise DataError(f"{file}: must name 1 to {MOST_CLASSES - 1} classes, names {len(names)}")
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise DataError(f"{file}: names {twice!r} twice")
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
    classes = labels.read(pair.labels, pair.label_map)
    if classes.shape != image.shape[:2]:
        raise DataError(other_size(pair.labels, classes.shape[::-1], image.shape[1::-1]))
    wrong = classes[(classes >= num_classes) & (classes != IGNORE)]
    if wrong.size:
        raise DataError(beyond(pair.labels, wrong.max(), num_classes))
    return image, classes


def read_labels(path: Path) -> np.ndarray:
    """A label map as uint8 (H, W), as `labels.read` without a map. Raises DataError."""
    return labels.read(path)


def other_size(path: Path, size: Sequence[int], of_image: Sequence[int]) -> str:
    """The message for labels of another (width, height) than their image."""
    return f"{path}: is {size[0]} x {size[1]} pixels, its image {of_image[0]} x {of_image[1]}"


def beyond(path: Path, label: int, num_classes: int) -> str:
    """The message for a label that no class has."""
    return f"{path}: has the class {label}, classes are 0 to {num_classes - 1}, and {IGNORE}"


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
            image, classes = read(self.pairs[index], self.num_classes)
            return augment.sample(image, classes, self.options, np.random.SeedSequence([self.seed, epoch, index]))
        except DataError as error:
            return error
        except (RuntimeError, MemoryError) as error:
            return DataError(f"{self.pairs[index].image}: {str(error).strip() or 'not enough memory'}")


def _find_voc(folder: Path, split: str, label_map: LabelMap | None) -> list[Pair]:
    file = folder / f"ImageSets/Segmentation/{split}.txt"
    try:
        stems = [line.split()[0] for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({images.reason(error)})") from error
    if not stems:
        raise DataError(f"{file}: names no images")
    pictures = _Folder(folder / "JPEGImages", (".jpg", *images.EXTENSIONS))
    maps = _Folder(folder / "SegmentationClass", (*labels.ENDINGS, *labels.INEXACT))
    # an image that is not there is told with its usual name when it is read
    found = [pictures.file(stem) or folder / f"JPEGImages/{stem}.jpg" for stem in stems]
    return [Pair(image, _labels_of(image, stem, maps), label_map) for image, stem in zip(found, stems, strict=True)]


def _find_pairs(folder: Path, label_map: LabelMap | None) -> list[Pair]:
    pictures = _Folder(folder / "images", images.EXTENSIONS)
    maps = _Folder(folder / "labels", (*labels.ENDINGS, *labels.INEXACT))
    files = sorted(pictures.files())
    if not files:
        raise DataError(f"{folder / 'images'}: no images in this folder")
    stems = sorted(file.stem for file in files)
    twice = next((stem for stem, following in itertools.pairwise(stems) if stem == following), None)
    if twice is not None:
        raise DataError(f"{folder / 'images'}: two images are called {twice}")
    return [Pair(file, _labels_of(file, file.stem, maps), label_map) for file in files]


class _Folder:
    """The files of a folder by their stems, of endings in the order in which they are preferred."""

    def __init__(self, folder: Path, endings: Sequence[str]) -> None:
        self.path, self._endings = folder, endings
        self._names: dict[str, dict[str, list[str]]] = {}

    def files(self) -> list[Path]:
        """All of them. Raises DataError where the folder cannot be read."""
        try:
            return [self.path / name for names in self._below("").values() for name in names]
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({images.reason(error)})") from error

    def file(self, stem: str) -> Path | None:
        """The file of this stem, which may begin with a folder, or None."""
        below, stem = os.path.split(stem)
        try:
            names = self._below(below).get(stem, [])
        except OSError:
            return None
        rank = {ending: i for i, ending in reversed(list(enumerate(self._endings)))}
        name = min(names, key=lambda name: rank[os.path.splitext(name)[1].lower()], default=None)
        return None if name is None else self.path / below / name

    def _below(self, below: str) -> dict[str, list[str]]:
        if below not in self._names:
            names = self._names[below] = {}
            with os.scandir(self.path / below) as entries:
                for entry in entries:
                    stem, ending = os.path.splitext(entry.name)
                    # macOS puts a "._" file beside every file on disks that are not its own
                    if ending.lower() in self._endings and not stem.startswith(".") and not entry.is_dir():
                        names.setdefault(stem, []).append(entry.name)
        return self._names[below]


def _labels_of(image: Path, stem: str, maps: _Folder) -> Path:
    file = maps.file(stem)
    if file is None:
        raise DataError(f"{maps.path / stem}.png: no such file; it should hold the labels of {image}")
    if file.suffix.lower() in labels.INEXACT:
        raise DataError(f"{file}: is {file.suffix[1:].upper()}, {labels.INEXACT_TROUBLE}")
    return file
