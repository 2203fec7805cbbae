"""Image files in and out for the command line. Needs Pillow, as do `decoding` and `formats`."""

import glob
import os
import secrets
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from . import atomic, decoding
from .decoding import ImageError, reason
from .decoding import size as size  # for other modules
from .formats import EXTENSIONS, UNREADABLE
from .palette import PALETTE

# Pixels of the largest image that is read: 2 GB as Pillow has it, 1.5 GB as an array.
MAX_PIXELS = 1 << 29
# Pixels of the largest input that a network is given unasked: of rf_lw_mbv2, about 20 GB.
MAX_INPUT = 89_478_485

# Bytes for a number that tells outputs of one stem apart, such as _12.
ROOM_FOR_NUMBER = 8

COVERED = np.full((256, 3), 255, np.uint8)
"""Which classes' colours an overlay shows."""
COVERED[0] = 0


class Found(NamedTuple):
    """An image file: its path as it was come by, the real one, and the folder below the one that was asked for."""

    path: str
    real: str
    below: str


class Search(NamedTuple):
    """Image files, a line for each error, and how many other images were passed over, by the endings of their names."""

    found: list[Found]
    errors: list[str]
    skipped: dict[str, int]


def search(paths: Sequence[str], recursive: bool = False, leave_out: Path | None = None) -> Search:
    """The image files among paths and, by their endings, directly in its folders, each once; and what is wrong.

    Hidden files of a folder are passed over, such as the ._ files that macOS leaves beside each file.
    recursive: also in folders below these, but for links, hidden ones, and `leave_out`.
    """
    found: dict[str, Found] = {}
    errors: list[str] = []
    skipped: Counter[str] = Counter()
    hidden = None if leave_out is None else os.path.realpath(leave_out)
    for path in map(Path, paths):
        try:
            files = [Found(str(path), os.path.realpath(path), "")]  # what is missing is found out when it is read
            if path.is_dir():
                before = len(errors)
                files = list(_in_folder(str(path), "", recursive, hidden, errors, skipped))
                if not files and len(errors) == before:
                    errors.append(f"{path}: no images in this folder")
            for file in files:
                found.setdefault(file.real, file)
        except (OSError, RuntimeError, ValueError) as error:
            errors.append(f"{path}: {reason(error)}")
    return Search(list(found.values()), errors, dict(skipped))


def _in_folder(
    folder: str, below: str, recursive: bool, leave_out: str | None, errors: list[str], skipped: Counter[str]
) -> Iterator[Found]:
    """Sorted by name, files before folders; a million take seconds, since no file is touched."""
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
            place = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
            yield Found(entry.path, place, below)
        elif ending in UNREADABLE and entry.is_file():
            skipped[ending] += 1
    for entry in entries if recursive else ():
        if entry.is_dir(follow_symlinks=False) and os.path.join(real, entry.name) != leave_out:
            yield from _in_folder(entry.path, os.path.join(below, entry.name), recursive, leave_out, errors, skipped)


def max_pixels(given: int | None = None) -> int:
    """How many pixels an image file may have: as given, else as LWRN_FAST_MAX_PIXELS says, else MAX_PIXELS.

    Raises ValueError where the environment says no whole number.
    """
    text = os.environ.get("LWRN_FAST_MAX_PIXELS", "")
    if given is not None or not text:
        return MAX_PIXELS if given is None else given
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ValueError(f"LWRN_FAST_MAX_PIXELS must be a whole number of at least 1, got {text!r}")
    return int(text)


def read(path: Path, limit: int | None = None) -> np.ndarray:
    """The image as uint8 (H, W, 3), RGB, as `decoding.to_rgb` makes it; of at most `max_pixels(limit)` pixels.

    Raises ImageError.
    """
    try:
        most = max_pixels(limit)
    except ValueError as error:
        raise ImageError(str(error)) from error
    return decoding.read(path, most)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3) to (height, width, 3), bilinearly, smoothed where it shrinks."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def write(path: Path, image: np.ndarray) -> None:
    """A PNG of uint8 (H, W, 3)."""
    _save(path, Image.fromarray(image))


def write_labels(path: Path, labels: np.ndarray) -> None:
    """A palette PNG, value = class, from uint8 (H, W)."""
    image = Image.fromarray(labels)
    image.putpalette(PALETTE.tobytes())  # makes a palette image of a grey one
    _save(path, image)


def write_overlay(path: Path, image: np.ndarray, labels: np.ndarray) -> None:
    """A PNG of `overlay`."""
    write(path, overlay(image, labels))


def overlay(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The photograph with the classes' colours half over it, class 0 left as it is: uint8 (H, W, 3) and (H, W).

    >>> overlay(np.full((1, 2, 3), 101, np.uint8), np.array([[0, 1]], np.uint8)).tolist()
    [[[101, 101, 101], [115, 51, 51]]]
    """
    other = (image ^ coloured(labels)) & COVERED.take(labels, axis=0)  # the bits that differ from the colour
    return (image | other) - (other >> 1)  # the mean, halves rounded up, within 8 bits


def coloured(labels: np.ndarray) -> np.ndarray:
    """The classes' colours, uint8 (H, W, 3), from uint8 (H, W)."""
    return PALETTE.take(labels, axis=0)


def _save(path: Path, image: Image.Image) -> None:
    """Written beside and moved into place, so that nobody ever sees half a file."""
    # named before it is there, so that it goes whenever a signal ends this
    temporary = path.with_name(_beside(path) + secrets.token_hex(4))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            image.save(file, format="PNG", compress_level=4)
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written ({reason(error)})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _beside(path: Path) -> str:
    return f".{path.stem[:40]}.{zlib.crc32(os.fsencode(path.name)):08x}."


def remove_unfinished(path: Path) -> None:
    """What a process that was killed while it wrote this image has left."""
    for file in path.parent.glob(glob.escape(_beside(path)) + "?" * 8):
        file.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """The folder, made where it is absent; ImageError where nothing can be written into it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written to ({reason(error)})") from error


def output_names(
    inputs: Iterable[Found], out: Path, endings: Sequence[str], taken: Iterable[str] = ()
) -> list[list[str]]:
    """Per input its outputs' names in `out`, below / (stem + ending); a number goes behind a stem in use already.

    No output takes the place of another one, of an input, or of a name in `taken`; capitals make no difference, as on
    some file systems. A stem that is too long with its endings is cut. The same inputs in the same order get the same
    names.
    """
    inputs = list(inputs)
    folder = os.path.join(os.path.realpath(out), "")
    used = {file.real[len(folder) :].casefold() for file in inputs if file.real.startswith(folder)}
    used.update(name.casefold() for name in taken)
    numbers: dict[str, int] = {}
    longest = max(map(len, endings), default=0) + ROOM_FOR_NUMBER
    results = []
    for file in inputs:
        stem = os.path.splitext(os.path.basename(file.path))[0]
        first = os.path.join(file.below, _short(stem, atomic.MAX_NAME - longest))
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


def _short(stem: str, most: int) -> str:
    """The stem in at most so many bytes; a cut one ends with a checksum of the whole.

    >>> _short("photo", 100), _short("\u00e9" * 20, 21)
    ('photo', '\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9_fbb03b4e')
    """
    encoded = os.fsencode(stem)
    if len(encoded) <= most:
        return stem
    kept = len(stem)
    while len(os.fsencode(stem[:kept])) > most - 9:
        kept -= 1
    return f"{stem[:kept]}_{zlib.crc32(encoded):08x}"
