"""Image files in and out for the command line; the only module that needs Pillow."""

import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .files import permissions
from .models import PALETTE

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

COVERED = np.full((256, 3), 255, np.uint8)
"""Which classes' colours an overlay shows."""
COVERED[0] = 0


class ImageError(Exception):
    """A file that cannot be read or written; the message is one line."""


def find(paths: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The image files among paths and, by their endings, directly in its folders, each once; and what is wrong."""
    found: dict[Path, Path] = {}
    errors = []
    for path in map(Path, paths):
        try:
            if path.is_dir():
                files = sorted(file for file in path.iterdir() if file.suffix.lower() in EXTENSIONS and file.is_file())
                if not files:
                    errors.append(f"{path}: no images in this folder")
            else:
                files = [path]  # what is missing is found out when it is read
            for file in files:
                found.setdefault(file.resolve(), file)
        except (OSError, RuntimeError, ValueError) as error:
            errors.append(f"{path}: {reason(error)}")
    return list(found.values()), errors


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
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem[:40]}.", delete=False) as file:
            temporary = file.name
            image.save(file, format="PNG", compress_level=4)
        os.chmod(temporary, permissions())
        os.replace(temporary, path)
        temporary = None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written ({reason(error)})") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """The folder, made where it is absent; ImageError where nothing can be written into it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written to ({reason(error)})") from error


def output_paths(inputs: Sequence[Path], out: Path, endings: Sequence[str]) -> list[list[Path]]:
    """Per input its output paths, out / (stem + ending); a number goes behind a stem that is in use already.

    No output takes the place of another one or of an input; capitals make no difference, as on some file systems.
    """
    folder = out.resolve()
    taken = {str(path.resolve()).casefold() for path in inputs}
    results = []
    for path in inputs:
        number = 1
        while True:
            stem = path.stem if number == 1 else f"{path.stem}_{number}"
            names = [stem + ending for ending in endings]
            keys = {str(folder / name).casefold() for name in names}
            if not keys & taken:
                break
            number += 1
        taken |= keys
        results.append([out / name for name in names])
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
