"""Images and their label maps on disk, in folders of pairs or in PASCAL VOC's layout."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .. import models
from ..inference.segment import MAX_CLASSES
from ..io import images
from . import augment, labels
from .augment import IGNORE
from .label_map import LabelMap
from .labels import DataError

# File of the class names, one per line, at the top of the data.
CLASSES_FILE = "classes.txt"


class Pair(NamedTuple):
    """An image file and its label map, whose values are classes, or become classes by `label_map`."""

    image: Path
    labels: Path
    label_map: LabelMap | None = None


def find(folder: Path, split: str, label_map: LabelMap | None = None) -> list[Pair]:
    """Return the pairs of one split, in the order of their names, or of VOC's list.

    folder: in VOC's layout (JPEGImages, SegmentationClass, ImageSets/Segmentation/SPLIT.txt); or with
    SPLIT/images and SPLIT/labels; or with images and labels, which then serve every split. Hidden files, such as
    the "._" files of macOS, are skipped. label_map: that of every pair.
    Raises DataError where there is none, or an image without labels.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if (folder / "JPEGImages").is_dir():
        return _find_voc(folder, split, label_map)
    for parent in (folder / split, folder):
        if (parent / "images").is_dir():
            return _find_pairs(parent, label_map)
    raise DataError(f"{folder}: has neither {split}/images nor images nor JPEGImages")


def without_image(pairs: Sequence[Pair]) -> list[Path]:
    """Return label maps in the folder of the pairs that have no image; none in VOC's layout, where a list decides."""
    folder = pairs[0].labels.parent
    if not (folder.parent / "images").is_dir():
        return []
    used = {pair.labels.stem for pair in pairs}
    return sorted(file for file in _Folder(folder, labels.ENDINGS).files() if file.stem not in used)


def has_split(folder: Path, split: str) -> bool:
    """Return True if the folder has this split as one of its own."""
    return (folder / split / "images").is_dir() or (folder / f"ImageSets/Segmentation/{split}.txt").is_file()


def class_names(folder: Path) -> list[str] | None:
    """Return the names in classes.txt, VOC's names for its layout, None without either."""
    file = folder / CLASSES_FILE
    if file.is_file():
        try:
            # Windows' editors write a byte order mark
            names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: cannot be read ({error})") from error
        if not 1 <= len(names) < MAX_CLASSES:
            raise DataError(f"{file}: must name 1 to {MAX_CLASSES - 1} classes, names {len(names)}")
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise DataError(f"{file}: names {twice!r} twice")
        return names
    return list(models.CLASSES) if (folder / "JPEGImages").is_dir() else None


def read(pair: Pair, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the image, uint8 (H, W, 3), and its labels, uint8 (H, W), below num_classes or 255.

    Raises DataError with the name of the file that cannot be used.
    """
    try:
        image = images.read(pair.image)
    except images.ImageError as error:
        raise DataError(str(error)) from error
    classes = labels.read(pair.labels, pair.label_map)
    if classes.shape != image.shape[:2]:
        raise DataError(other_size(pair.labels, classes.shape[::-1], image.shape[1::-1]))
    invalid = classes[(classes >= num_classes) & (classes != IGNORE)]
    if invalid.size:
        raise DataError(beyond(pair.labels, invalid.max(), num_classes))
    return image, classes


def read_labels(path: Path) -> np.ndarray:
    """Return a label map as uint8 (H, W), as `labels.read` without a map. Raises DataError."""
    return labels.read(path)


def other_size(path: Path, size: Sequence[int], image_size: Sequence[int]) -> str:
    """Return the message for labels of another (width, height) than their image."""
    return f"{path}: is {size[0]} x {size[1]} pixels, its image {image_size[0]} x {image_size[1]}"


def beyond(path: Path, label: int, num_classes: int) -> str:
    """Return the message for a label without a class."""
    return f"{path}: has the class {label}, classes are 0 to {num_classes - 1}, and {IGNORE}"


class TrainingSet:
    """Augmented samples, as a data set of torch.utils.data.

    Keys are (epoch, index of the pair). Key and seed determine a sample, so that it is the same in every process and in
    a resumed run.
    """

    def __init__(self, pairs: Sequence[Pair], num_classes: int, options: augment.Options, seed: int = 0) -> None:
        self.pairs, self.num_classes, self.options, self.seed = pairs, num_classes, options, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor] | DataError:
        """Return float32 (1, 3, crop, crop) and int64 (1, crop, crop); or the error, since a worker's would be long."""
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
    image_folder = _Folder(folder / "JPEGImages", (".jpg", *images.EXTENSIONS))
    maps = _Folder(folder / "SegmentationClass", (*labels.ENDINGS, *labels.INEXACT))
    # reading a missing image raises an error with its usual name
    files = [image_folder.file(stem) or folder / f"JPEGImages/{stem}.jpg" for stem in stems]
    return [Pair(image, _labels_of(image, stem, maps), label_map) for image, stem in zip(files, stems, strict=True)]


def _find_pairs(folder: Path, label_map: LabelMap | None) -> list[Pair]:
    image_folder = _Folder(folder / "images", images.EXTENSIONS)
    maps = _Folder(folder / "labels", (*labels.ENDINGS, *labels.INEXACT))
    files = sorted(image_folder.files())
    if not files:
        raise DataError(f"{folder / 'images'}: no images in this folder")
    stems = sorted(file.stem for file in files)
    twice = next((stem for stem, following in itertools.pairwise(stems) if stem == following), None)
    if twice is not None:
        raise DataError(f"{folder / 'images'}: two images are called {twice}")
    return [Pair(file, _labels_of(file, file.stem, maps), label_map) for file in files]


class _Folder:
    """The files of a folder by stem. endings: those that count, the preferred one first."""

    def __init__(self, folder: Path, endings: Sequence[str]) -> None:
        self.path, self._endings = folder, endings
        self._names: dict[str, dict[str, list[str]]] = {}

    def files(self) -> list[Path]:
        """Return all files. Raises DataError where the folder cannot be read."""
        try:
            return [self.path / name for names in self._below("").values() for name in names]
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({images.reason(error)})") from error

    def file(self, stem: str) -> Path | None:
        """Return the file of this stem, which may begin with a folder, or None."""
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
                    # macOS adds a "._" file for every file on disks of other systems
                    if ending.lower() in self._endings and not stem.startswith(".") and not entry.is_dir():
                        names.setdefault(stem, []).append(entry.name)
        return self._names[below]


def _labels_of(image: Path, stem: str, maps: _Folder) -> Path:
    """Return the label map of an image. Raises DataError."""
    file = maps.file(stem)
    if file is None:
        raise DataError(f"{maps.path / stem}.png: no such file; it should hold the labels of {image}")
    if file.suffix.lower() in labels.INEXACT:
        raise DataError(f"{file}: is {file.suffix[1:].upper()}, {labels.INEXACT_ERROR}")
    return file
