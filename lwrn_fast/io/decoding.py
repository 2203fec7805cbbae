"""Decoding of images of any mode to RGB, for `Segmenter`, `models.preprocess` and every command. Needs Pillow."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import UserError
from ..errors import reason as reason  # for other modules
from . import repair

# EXIF's tag of the orientation of the camera.
ORIENTATION = 0x0112
# Pixels that are converted at a time: memory besides the decoded image and the result stays below 100 MB.
BAND = 1 << 22
# An infinite grey value: white, however it is scaled.
WHITE = 1e9
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
# Modes whose transparency is one colour, or one value for each colour of a palette.
WITH_COLOUR_KEY = ("1", "L", "P", "RGB")
# Locks, by which one of several threads decodes an image: Pillow reads its file without a lock.
LOADING = [threading.Lock() for _ in range(64)]
BOMB = Image.DecompressionBombError, Image.DecompressionBombWarning


class ImageError(UserError, OSError):
    """A file that cannot be read or written; the message is one line."""


def read(path: Path, max_pixels: int) -> np.ndarray:
    """Return the first image of a file, as `to_rgb` does. Raises ImageError, also above `max_pixels`."""
    try:
        try:
            return _read(path, max_pixels)
        except BOMB:  # more than Pillow's limit, which is that of the whole process
            with _without_pillows_limit():
                return _read(path, max_pixels)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: {_unidentified(path)}") from error
    except MemoryError as error:
        raise ImageError(f"{path}: cannot be read (not enough memory)") from error
    except Exception as error:  # a damaged file can fail anywhere in a decoder
        raise ImageError(f"{path}: cannot be read ({reason(error)})") from error


def to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Convert the current frame of a PIL image of any mode to uint8 (H, W, 3), RGB; decode it if need be.

    It is turned as its EXIF orientation says, where that is one of 1 to 8. Transparency lies on white. Grey of 16 bits
    is divided by 257; so is grey of 32 bits, whole or float, where anything in it is above 255, and what is then above
    255 is white; float grey up to 1 is multiplied by 255. ICC profiles are ignored. name: how errors call the image.
    Raises ImageError where it cannot be decoded.

    >>> to_rgb(Image.new("LA", (1, 1), (0, 0)), "image").tolist()
    [[[255, 255, 255]]]
    """
    try:
        return _to_rgb(image)
    except MemoryError as error:
        raise ImageError(f"{name}: cannot be read (not enough memory)") from error
    except Exception as error:
        raise ImageError(f"{name}: cannot be read ({reason(error)})") from error


def size(path: Path) -> tuple[int, int]:
    """Return height and width of an image file that is known to be one."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except BOMB:
        with _without_pillows_limit(), Image.open(path) as image:
            return image.height, image.width


def _read(path: Path, max_pixels: int) -> np.ndarray:
    with open(path, "rb") as file:
        if not file.seekable():
            return _decoded(io.BytesIO(file.read()), path, max_pixels)
        return _decoded(file, path, max_pixels)


def _decoded(file: BinaryIO, path: Path, max_pixels: int) -> np.ndarray:
    try:
        with Image.open(file) as image:
            _check_size(image, path, max_pixels)
            return _to_rgb(image)
    except (ImageError, MemoryError, *BOMB):
        raise
    except Exception:
        file.seek(0)
        bare = repair.without_metadata(file)
        if bare is None:
            raise
        with Image.open(bare) as image:
            _check_size(image, path, max_pixels)
            return _to_rgb(image)


def _check_size(image: Image.Image, path: Path, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height}"
        limit = "LWRN_FAST_MAX_PIXELS, or --max-pixels of segment, raises the limit"
        raise ImageError(f"{path}: has more than {max_pixels} pixels, {size}; {limit}")


def _to_rgb(image: Image.Image) -> np.ndarray:
    with LOADING[id(image) // 64 % len(LOADING)]:
        image = _loaded(image)
        orientation = _orientation(image)
    width, height = image.size
    result = np.empty((height, width, 3) if orientation < 5 else (width, height, 3), np.uint8)
    stored = _as_stored(result, orientation)
    if image.mode[0] in "IF":
        _from_deep_grey(image, stored)
        return result
    rows = max(1, BAND // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        band = image if bottom - top == height else image.crop((0, top, width, bottom))
        stored[top:bottom] = np.asarray(_opaque(band))
    return result


def _loaded(image: Image.Image) -> Image.Image:
    """Return the image itself, decoded; where its metadata prevent that, another one without them."""
    try:
        image.load()
        return image
    except (MemoryError, *BOMB):
        raise
    except Exception:
        file: Any = getattr(image, "fp", None)
        if file is None or file.closed or image.tell():
            raise
        offset = file.tell()
        file.seek(0)
        bare = repair.without_metadata(file)
        file.seek(offset)
        if bare is None:
            raise
        return _opened_whole(bare)


def _opened_whole(file: BinaryIO) -> Image.Image:
    image = Image.open(file)
    image.load()
    return image


def _orientation(image: Image.Image) -> int:
    """Return 1 to 8 as EXIF counts them; 1 where there is no valid value."""
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:  # EXIF of any content must not reject an image
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _as_stored(shown: np.ndarray, orientation: int) -> np.ndarray:
    """Return a view of the upright image whose pixels are in the order of the file."""
    views = {
        2: lambda: shown[:, ::-1],
        3: lambda: shown[::-1, ::-1],
        4: lambda: shown[::-1],
        5: lambda: shown.swapaxes(0, 1),
        6: lambda: np.rot90(shown, 1),
        7: lambda: shown[::-1, ::-1].swapaxes(0, 1),
        8: lambda: np.rot90(shown, -1),
    }
    return views.get(orientation, lambda: shown)()


def _opaque(image: Image.Image) -> Image.Image:
    """Convert to mode RGB, on white."""
    coloured = _with_alpha(image)
    if coloured is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(coloured)
    return white.convert("RGB")


def _with_alpha(image: Image.Image) -> Image.Image | None:
    """Convert to mode RGBA; return None where nothing is transparent."""
    palette = image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")
    if image.mode == "La":  # Pillow converts it to LA alone
        return image.convert("LA").convert("RGBA")
    if image.mode in WITH_ALPHA or palette:
        return image.convert("RGBA")
    if image.mode not in WITH_COLOUR_KEY or "transparency" not in image.info:
        return None
    try:
        return image.convert("RGBA")
    except (TypeError, ValueError):  # `info` may hold anything
        plain = image.copy()
        del plain.info["transparency"]
        return plain.convert("RGBA")


def _from_deep_grey(image: Image.Image, result: np.ndarray) -> None:
    """Scale 16-bit, 32-bit or float grey to 8 bits in `result`; Pillow's own conversion would clip it."""
    values = np.asarray(image)
    clear = image.info.get("transparency") if image.mode.startswith("I;16") else None
    rows = max(1, BAND // image.width)
    bands = [slice(top, top + rows) for top in range(0, len(values), rows)]
    max_value = max(np.max(values[band], initial=0, where=np.isfinite(values[band])) for band in bands)
    factor = 1.0
    if image.mode.startswith("I;16") or max_value > 255:
        factor = 1 / 257  # 65535 is white
    elif image.mode == "F" and max_value <= 1:
        factor = 255.0
    for band in bands:
        grey = np.nan_to_num(values[band].astype(np.float64), posinf=WHITE, neginf=0.0)
        grey = grey / 257 if factor == 1 / 257 else grey * factor
        if isinstance(clear, int):
            grey[values[band] == clear] = 255
        result[band] = np.clip(np.rint(grey), 0, 255).astype(np.uint8)[:, :, None]


# Threads that are in `_without_pillows_limit`, and the limit that comes back after the last one.
_unlimited = 0
_limit: int | None = None
_changing = threading.Lock()


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Let Pillow open images of any size within, in every thread; the limit comes back as the last one leaves."""
    global _unlimited, _limit
    with _changing:
        if not _unlimited:
            _limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _unlimited += 1
    try:
        yield
    finally:
        with _changing:
            _unlimited -= 1
            if not _unlimited:
                Image.MAX_IMAGE_PIXELS = _limit


def _unidentified(path: Path) -> str:
    """Return why Pillow does not know this file."""
    with open(path, "rb") as file:
        head = file.read(12)
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc"):
        return "is a HEIC image, which needs a package: pip install pillow-heif"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "is an AVIF image, which needs Pillow 11.3: pip install -U pillow"
    return "is not an image"
