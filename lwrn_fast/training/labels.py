"""Read label maps from image files: check the format, convert pixels to classes, count them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import UserError
from ..io import images
from .augment import IGNORE
from .label_map import COLOUR, GREY, OPTION, PALETTE, LabelMap, grey, packed

# Endings of label files, the preferred one first; these formats keep values exactly.
ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".pgm", ".ppm")
# Pillow's names of the formats that keep values exactly, whatever the file's name.
FORMATS = ("PNG", "TIFF", "BMP", "PPM")
# Endings of formats that change values, by compression or by sorting the palette.
INEXACT = (".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".gif")
# Distinct colours of a label map; an image with more is none.
MAX_COLOURS = 256
# Distinct values of a label map; a file with more is a measurement, such as a depth.
MAX_VALUES = 4096
# Pillow widens grey of 2 and 4 bits to 8 by these factors.
_WIDENED = {"L;2": 85, "L;4": 17}
# The end of the error for a file of an inexact format.
INEXACT_ERROR = "which may change values; save label maps as PNG"


class DataError(UserError):
    """A file of the data that cannot be used; the message is one line and names it."""


class Counts(NamedTuple):
    """Pixels per value of a label file.

    values: those that occur, 0xRRGGBB where mode is COLOUR; none where there are more than MAX_COLOURS colours.
    colours: 0xRRGGBB of each value where mode is PALETTE, else empty.
    """

    width: int
    height: int
    mode: str
    values: tuple[int, ...]
    pixels: tuple[int, ...]
    colours: tuple[int, ...] = ()


def read(path: Path, label_map: LabelMap | None = None) -> np.ndarray:
    """Return a label map as uint8 (H, W), classes and 255, from a file of values or of colours that the map names.

    Grey of 1 to 16 bits, a palette's indices, and RGB whose channels are equal are values. Raises DataError.
    """
    with _opened(path) as image:
        mode, array = _pixels(image)
        colours = _palette(image, range(256)) if mode == PALETTE else ()
    if mode != COLOUR and label_map is None:
        return _as_classes(path, array)
    if mode == COLOUR and (label_map is None or not label_map.colours):
        raise DataError(f"{path}: {colour_error(_number_of_colours(array))}")
    assert label_map is not None
    values, indices, array = _indexed(mode, array, label_map)
    class_of_value = label_map.classes(mode, values.tolist(), colours)
    # a value without a class is an error only where it occurs
    classes = np.array([-1 if label is None else label for label in class_of_value], np.int32)[indices]
    invalid = (classes < 0) | (values[indices] != array)
    if invalid.any():
        raise DataError(f"{path}: {_unnamed_value(mode, int(array[invalid][0]), colours)}")
    return _as_classes(path, classes)


def count(path: Path) -> Counts:
    """Count the pixels of each value, without a map. Raises DataError."""
    with _opened(path) as image:
        width, height = image.size
        if image.mode in ("RGB", "RGBA"):
            return _count_colours(image)
        factor = _factor(image)
        if image.mode in ("1", "L", "P", "LA"):
            histogram = image.histogram()[:256]
            pixels = {value // factor: n for value, n in enumerate(histogram) if n}
        else:
            values, numbers = np.unique(_deep(image), return_counts=True)
            if len(values) > MAX_VALUES:
                raise _InvalidValuesError(f"holds {len(values)} different values, label maps hold classes")
            pixels = dict(zip(values.tolist(), numbers.tolist(), strict=True))
        mode = PALETTE if image.mode == "P" else GREY
        colours = _palette(image, pixels) if mode == PALETTE else ()
        return Counts(width, height, mode, tuple(pixels), tuple(pixels.values()), tuple(colours))


def colour_error(number: int | None) -> str:
    """Return the message for a file of colours without a map. number: of colours; None for more than MAX_COLOURS."""
    if number is None:
        return f"holds more than {MAX_COLOURS} colours: a photograph, or smoothed or lossy colours, but no label map"
    return f"is a colour mask ({number} colours), label maps hold classes: {OPTION} names the classes of colours"


def unnamed(colour: int) -> str:
    """Return the message for a colour, 0xRRGGBB, that the map leaves out; negative for a value that is no colour."""
    if colour < 0:
        return f"has values beyond 255, where {OPTION} names colours"
    return f"has the colour {colour:06x}, which {OPTION} does not name"


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file of exact values; turn any exception into DataError."""
    try:
        with Image.open(path) as image:
            if image.format not in FORMATS or image.info.get("compression") == "jpeg":
                name = "JPEG" if image.format in ("MPO", "TIFF") else image.format
                raise DataError(f"{path}: is {name}, {INEXACT_ERROR}")
            if image.mode in ("LA", "RGBA") and image.getextrema()[-1] != (255, 255):
                raise DataError(f"{path}: has transparent pixels, which have no class; save label maps without alpha")
            yield image
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: cannot be read (is not an image)") from error
    except _InvalidValuesError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # a damaged file can fail anywhere in a decoder
        raise DataError(f"{path}: cannot be read ({images.reason(error)})") from error


class _InvalidValuesError(Exception):
    pass


def _pixels(image: Image.Image) -> tuple[str, np.ndarray]:
    """Return GREY or PALETTE and (H, W), uint8 or int64; or COLOUR and uint8 (H, W, 3)."""
    if image.mode in ("RGB", "RGBA"):
        array = np.array(image)[:, :, :3]
        if (array == array[:, :, :1]).all():
            return GREY, np.ascontiguousarray(array[:, :, 0])
        return COLOUR, array
    factor = _factor(image)
    if image.mode == "P":
        return PALETTE, np.array(image)
    if image.mode in ("1", "L", "LA"):
        array = np.array(image.getchannel(0)) if image.mode == "LA" else np.array(image, np.uint8)
        return GREY, array // np.uint8(factor) if image.mode != "1" and factor > 1 else array
    return GREY, _deep(image)


def _indexed(mode: str, array: np.ndarray, label_map: LabelMap) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values that may occur, each pixel's index among them (any where it is none of them), and the pixels'
    values."""
    if mode != COLOUR and array.dtype == np.uint8:
        return np.arange(256), array, array
    if mode == COLOUR:
        channels = array.astype(np.int64)
        array = channels[:, :, 0] << 16 | channels[:, :, 1] << 8 | channels[:, :, 2]
        values = np.array(sorted(label_map.colours))
    else:
        values = np.unique(array)
    return values, np.searchsorted(values, array).clip(max=len(values) - 1), array


def _factor(image: Image.Image) -> int:
    """Return the factor of Pillow's values over the file's; call it before the pixels are decoded."""
    if image.mode == "1":
        return 255
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if image.mode == "L" and tile else None
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return _WIDENED.get(raw[:3], 1) if isinstance(raw, str) else 1


def _deep(image: Image.Image) -> np.ndarray:
    """Return int64 (H, W) of grey with more than 8 bits."""
    if not image.mode.startswith("I") and image.mode != "F":
        raise _InvalidValuesError(f"must hold classes as a palette, grey or RGB, is {image.mode}")
    array = np.array(image)
    whole = array.astype(np.int64) if image.mode != "F" or np.isfinite(array).all() else None
    if whole is None or (image.mode == "F" and (whole != array).any()):
        raise _InvalidValuesError("holds numbers that are not whole, label maps hold classes")
    if whole.min() < 0:
        raise _InvalidValuesError(
            f"has the value {whole.min()}, classes begin with 0; save what is ignored as {IGNORE}"
        )
    return whole


def _count_colours(image: Image.Image) -> Counts:
    width, height = image.size
    plain = image.convert("RGB") if image.mode == "RGBA" else image
    colours = plain.getcolors(MAX_COLOURS)
    if colours is None:
        return Counts(width, height, COLOUR, (), ())
    pixels = {packed(np.array(colour)): n for n, colour in colours}
    if all(value % 0x010101 == 0 for value in pixels):
        return Counts(width, height, GREY, tuple(value & 255 for value in pixels), tuple(pixels.values()))
    return Counts(width, height, COLOUR, tuple(pixels), tuple(pixels.values()))


def _palette(image: Image.Image, values: Iterable[int]) -> list[int]:
    """Return 0xRRGGBB of each of these values; a value beyond the palette's end is black."""
    flat = image.getpalette("RGB") or []
    flat += [0] * (768 - len(flat))
    return [packed(flat[3 * value : 3 * value + 3]) for value in values]


def _number_of_colours(array: np.ndarray) -> int | None:
    colours = Image.fromarray(np.ascontiguousarray(array)).getcolors(MAX_COLOURS)
    return None if colours is None else len(colours)


def _unnamed_value(mode: str, value: int, colours: Sequence[int]) -> str:
    if mode == COLOUR:
        return unnamed(value)
    return unnamed(colours[value] if mode == PALETTE else grey(value))


def _as_classes(path: Path, values: np.ndarray) -> np.ndarray:
    """Convert values up to 255 to uint8. Raises DataError."""
    if values.dtype != np.uint8:
        if values.max() > IGNORE:
            raise DataError(f"{path}: has the value {values.max()}, classes are 0 to {IGNORE - 1}, and {IGNORE}")
        values = values.astype(np.uint8)
    return values
