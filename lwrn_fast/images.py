"""Image files in and out for the command line; the only module that needs Pillow."""

import glob
import os
import secrets
import tempfile
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .models import PALETTE

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

COVERED = np.full((256, 3), 255, np.uint8)
"""Which classes' colours an overlay shows."""
COVERED[0] = 0


class ImageError(Exception):
    """A file that cannot be read or written; the message is one line."""


class Found(NamedTuple):
    """An image file: its path as it was come by, the real one, and the folder below the one that was asked for."""

    path: str
    real: str
    below: str


def find(paths: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The image files among paths and directly in its folders, each once; and what is wrong."""
    found, errors = search(paths)
    return [Path(file.path) for file in found], errors


def search(
    paths: Sequence[str], recursive: bool = False, leave_out: Path | None = None
) -> tuple[list[Found], list[str]]:
    """The image files among paths and, by their endings, directly in its folders, each once; and what is wrong.

    recursive: also in folders below these, but for links, hidden ones, and `leave_out`.
    """
    found: dict[str, Found] = {}
    errors: list[str] = []
    hidden = None if leave_out is None else os.path.realpath(leave_out)
    for path in map(Path, paths):
        try:
            files = [Found(str(path), os.path.realpath(path), "")]  # what is missing is found out when it is read
            if path.is_dir():
                before = len(errors)
                files = list(_in_folder(str(path), "", recursive, hidden, errors))
                if not files and len(errors) == before:
                    errors.append(f"{path}: no images in this folder")
            for file in files:
                found.setdefault(file.real, file)
        except (OSError, RuntimeError, ValueError) as error:
            errors.append(f"{path}: {reason(error)}")
    return list(found.values()), errors


def _in_folder(folder: str, below: str, recursive: bool, leave_out: str | None, errors: list[str]) -> Iterator[Found]:
    """Sorted by name, files before folders; a million take seconds, since no file is touched."""
    try:
        with os.scandir(folder) as opened:
            entries = sorted(opened, key=lambda entry: entry.name)
    except OSError as error:
        errors.append(f"{folder}: {reason(error)}")
        return
    real = os.path.realpath(folder)
    for entry in entries:
        if os.path.splitext(entry.name)[1].lower() in EXTENSIONS and entry.is_file():
            place = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
            yield Found(entry.path, place, below)
    for entry in entries if recursive else ():
        inner = entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        if inner and os.path.join(real, entry.name) != leave_out:
            yield from _in_folder(entry.path, os.path.join(below, entry.name), recursive, leave_out, errors)


def read(path: Path) -> np.ndarray:
    """The picture as uint8 (H, W, 3), RGB, turned as its EXIF orientation says, transparency on white."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: is not an image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{path}: has more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except Exception as error:  # a damaged file can fail anywhere in a decoder
        raise ImageError(f"{path}: cannot be read ({reason(error)})") from error


def size(path: Path) -> tuple[int, int]:
    """Height and width of an image file that is known to be one."""
    with Image.open(path) as image:
        return image.height, image.width


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        coloured = image.convert("RGBA")
        image = Image.new("RGBA", image.size, "white")
        image.alpha_composite(coloured)
    return np.array(image.convert("RGB"))


def _from_deep_grey(image: Image.Image) -> np.ndarray:
    """16-bit, 32-bit or float grey to 8 bits, which Pillow's own conversion would clip instead of scale."""
    grey = np.nan_to_num(np.array(image, dtype=np.float64))
    if image.mode.startswith("I;16") or grey.max() > 255:
        grey = grey / 257  # 65535 is white
    elif image.mode == "F" and grey.max() <= 1:
        grey = grey * 255
    return np.repeat(np.clip(np.rint(grey), 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


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
    some file systems. The same inputs in the same order get the same names.
    """
    inputs = list(inputs)
    folder = os.path.join(os.path.realpath(out), "")
    used = {file.real[len(folder) :].casefold() for file in inputs if file.real.startswith(folder)}
    used.update(name.casefold() for name in taken)
    numbers: dict[str, int] = {}
    results = []
    for file in inputs:
        first = os.path.join(file.below, os.path.splitext(os.path.basename(file.path))[0])
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


def reason(error: BaseException) -> str:
    """Why a file could not be used, in one line.

    >>> reason(FileNotFoundError())
    'no such file or folder'
    """
    if isinstance(error, FileNotFoundError):
        return "no such file or folder"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
