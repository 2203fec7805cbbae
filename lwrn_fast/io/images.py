"""Image files in and out for the command line. Needs Pillow, as do `decoding` and `formats`."""

import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import reason
from . import atomic, decoding
from .decoding import ImageError
from .decoding import size as size  # for other modules
from .formats import EXTENSIONS, UNREADABLE
from .palette import PALETTE

# Pixels of the largest image that is read: 2 GB as Pillow has it, 1.5 GB as an array.
MAX_PIXELS = 1 << 29
# Pixels of the largest input that a model is given unasked: rf_lw_mbv2 then needs about 20 GB.
MAX_INPUT = 89_478_485

# Bytes for a number that tells outputs of one stem apart, such as _12.
ROOM_FOR_NUMBER = 8

# Bits of the classes' colours that an overlay shows: all, but none of class 0.
COVERED = np.full((256, 3), 255, np.uint8)
COVERED[0] = 0


class ImageFile(NamedTuple):
    """An image file: its path as given, its real path, and its folder relative to the one that was asked for."""

    path: str
    real: str
    below: str


class Search(NamedTuple):
    """Image files, a line for each error, and the number of other images that were skipped, by ending of the name."""

    files: list[ImageFile]
    errors: list[str]
    skipped: dict[str, int]


def search(paths: Sequence[str], recursive: bool = False, leave_out: Path | None = None) -> Search:
    """Return the image files among paths and, by their endings, directly in its folders, each once, and the errors.

    Hidden files of a folder are skipped, such as the ._ files that macOS leaves beside each file.
    recursive: search folders below these too, but no links, no hidden ones, and not `leave_out`.
    """
    by_real_path: dict[str, ImageFile] = {}
    errors: list[str] = []
    skipped: Counter[str] = Counter()
    hidden = None if leave_out is None else os.path.realpath(leave_out)
    for path in map(Path, paths):
        try:
            files = [ImageFile(str(path), os.path.realpath(path), "")]  # a missing file is an error when it is read
            if path.is_dir():
                before = len(errors)
                files = list(_in_folder(str(path), "", recursive, hidden, errors, skipped))
                if not files and len(errors) == before:
                    errors.append(f"{path}: no images in this folder")
            for file in files:
                by_real_path.setdefault(file.real, file)
        except (OSError, RuntimeError, ValueError) as error:
            errors.append(f"{path}: {reason(error)}")
    return Search(list(by_real_path.values()), errors, dict(skipped))


def _in_folder(
    folder: str, below: str, recursive: bool, leave_out: str | None, errors: list[str], skipped: Counter[str]
) -> Iterator[ImageFile]:
    """Yield the images sorted by name, files before folders; a million take seconds, since no file is touched."""
    try:
        with os.scandir(folder) as opened:
            entries = sorted((e for e in opened if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        errors.append(f"{folder}: {reason(error)}")
        return
    real = os.path.realpath(folder)
    for entry in entries:
        ending = os.path.splitext(entry.name)[1].lower()
        if ending in EXTENSIONS and entry.is_file():
            target = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
            yield ImageFile(entry.path, target, below)
        elif ending in UNREADABLE and entry.is_file():
            skipped[ending] += 1
    for entry in entries if recursive else ():
        if entry.is_dir(follow_symlinks=False) and os.path.join(real, entry.name) != leave_out:
            yield from _in_folder(entry.path, os.path.join(below, entry.name), recursive, leave_out, errors, skipped)


def max_pixels(given: int | None = None) -> int:
    """Return the number of pixels an image file may have: as given, else LWRN_FAST_MAX_PIXELS, else MAX_PIXELS.

    Raises ValueError where the variable is no whole number.
    """
    text = os.environ.get("LWRN_FAST_MAX_PIXELS", "")
    if given is not None or not text:
        return MAX_PIXELS if given is None else given
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ValueError(f"LWRN_FAST_MAX_PIXELS must be a whole number of at least 1, got {text!r}")
    return int(text)


def read(path: Path, limit: int | None = None) -> np.ndarray:
    """Return the image as uint8 (H, W, 3), RGB, as `decoding.to_rgb` does; of at most `max_pixels(limit)` pixels.

    Raises ImageError.
    """
    try:
        max_count = max_pixels(limit)
    except ValueError as error:
        raise ImageError(str(error)) from error
    return decoding.read(path, max_count)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 (H, W, 3) to (height, width, 3), bilinearly, smoothed where it shrinks."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def write(path: Path, image: np.ndarray) -> None:
    """Write a PNG of uint8 (H, W, 3). Raises ImageError."""
    _save(path, Image.fromarray(image))


def write_labels(path: Path, labels: np.ndarray) -> None:
    """Write a palette PNG, value = class, from uint8 (H, W). Raises ImageError."""
    image = Image.fromarray(labels)
    image.putpalette(PALETTE.tobytes())  # makes a palette image of a grey one
    _save(path, image)


def write_overlay(path: Path, image: np.ndarray, labels: np.ndarray) -> None:
    """Write a PNG of `overlay`. Raises ImageError."""
    write(path, overlay(image, labels))


def overlay(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the image with the classes' colours half over it, class 0 left as it is: uint8 (H, W, 3) and (H, W).

    >>> overlay(np.full((1, 2, 3), 101, np.uint8), np.array([[0, 1]], np.uint8)).tolist()
    [[[101, 101, 101], [115, 51, 51]]]
    """
    other = (image ^ coloured(labels)) & COVERED.take(labels, axis=0)  # the bits that differ from the colour
    return (image | other) - (other >> 1)  # the mean, halves rounded up, within 8 bits


def coloured(labels: np.ndarray) -> np.ndarray:
    """Return the classes' colours, uint8 (H, W, 3), from uint8 (H, W)."""
    return PALETTE.take(labels, axis=0)


def _save(path: Path, image: Image.Image) -> None:
    def save(file: Path) -> None:
        with open(file, "xb") as opened:
            image.save(opened, format="PNG", compress_level=4)

    try:
        atomic.write_shared(path, save)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written ({reason(error)})") from error


def make_folder(path: Path) -> None:
    """Make the folder where it is absent. Raises ImageError where nothing can be written into it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written to ({reason(error)})") from error


def output_names(
    inputs: Iterable[ImageFile], out: Path, endings: Sequence[str], taken: Iterable[str] = ()
) -> list[list[str]]:
    """Return per input its outputs' names in `out`, below / (stem + ending); a used stem gets a number behind it.

    No output overwrites another one, an input, or a name in `taken`; capitals make no difference, as on some file
    systems. A stem that is too long with its endings is cut. The same inputs in the same order get the same
    names.
    """
    inputs = list(inputs)
    folder = os.path.join(os.path.realpath(out), "")
    used = {file.real[len(folder) :].casefold() for file in inputs if file.real.startswith(folder)}
    used.update(name.casefold() for name in taken)
    numbers: dict[str, int] = {}
    max_ending = max(map(len, endings), default=0) + ROOM_FOR_NUMBER
    results = []
    for file in inputs:
        stem = os.path.splitext(os.path.basename(file.path))[0]
        first = os.path.join(file.below, _short(stem, atomic.MAX_NAME - max_ending))
        number = numbers.get(first, 1)
        while True:
            stem = first if number == 1 else f"{first}_{number}"
            names = [stem + ending for ending in endings]
            keys = [name.casefold() for name in names]
            if used.isdisjoint(keys):
                break
            number += 1
        numbers[first] = number
        used.update(keys)
        results.append(names)
    return results


def _short(stem: str, max_bytes: int) -> str:
    """Return the stem in at most so many bytes; a cut one ends with a checksum of the whole.

    >>> _short("photo", 100), _short("\u00e9" * 20, 21)
    ('photo', '\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9_fbb03b4e')
    """
    encoded = os.fsencode(stem)
    if len(encoded) <= max_bytes:
        return stem
    kept = len(stem)
    while len(os.fsencode(stem[:kept])) > max_bytes - 9:
        kept -= 1
    return f"{stem[:kept]}_{zlib.crc32(encoded):08x}"
