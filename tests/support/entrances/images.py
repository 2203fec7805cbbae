"""Columns of the table of entrances: kinds of image files, and images in memory."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from support.entrances.cells import CONDITIONS, Cell, Condition, condition


def _grey(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[:, :, :1], 3, 2)


def _hidden(image: np.ndarray) -> np.ndarray:
    white = image.copy()
    white[: len(image) // 2] = 255
    return white


def _with_alpha(image: np.ndarray) -> Image.Image:
    alpha = np.full(image.shape[:2], 255, np.uint8)
    alpha[: len(image) // 2] = 0
    return Image.fromarray(np.dstack([image, alpha]))


def _turned(image: np.ndarray, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it 90 degrees clockwise
    Image.fromarray(image).save(path, exif=exif)


# Eight colours.
FEW = np.random.RandomState(5).randint(0, 256, (8, 3)).astype(np.uint8)


def _palette(image: np.ndarray) -> Image.Image:
    indexed = Image.fromarray(image[:, :, 0] // 32)
    indexed.putpalette(FEW.tobytes())
    return indexed


# Name: the file's ending, a function that writes an image of uint8 (H, W, 3), and one for the RGB that must be read.
FILES: dict[str, tuple[str, Callable[[np.ndarray, Path], None], Callable[[np.ndarray], np.ndarray]]] = {
    "png": ("png", lambda a, path: Image.fromarray(a).save(path), lambda a: a),
    "bmp": ("bmp", lambda a, path: Image.fromarray(a).save(path), lambda a: a),
    "grey": ("png", lambda a, path: Image.fromarray(a[:, :, 0]).save(path), _grey),
    "deep_grey": ("png", lambda a, path: Image.fromarray(a[:, :, 0].astype(np.uint16) * 257).save(path), _grey),
    "black_and_white": (
        "png",
        lambda a, path: Image.fromarray(a[:, :, 0] > 127).save(path),
        lambda a: np.where(_grey(a) > 127, 255, 0).astype(np.uint8),
    ),
    "palette": ("png", lambda a, path: _palette(a).save(path), lambda a: FEW[a[:, :, 0] // 32]),
    "transparent": ("png", lambda a, path: _with_alpha(a).save(path), _hidden),
    "turned": ("png", _turned, lambda a: np.ascontiguousarray(np.rot90(a, -1))),
}


def _file(name: str) -> Condition:
    ending, write, expected = FILES[name]

    def check(cell: Cell) -> None:
        made, (image, *rest) = cell.made(), cell.inputs()
        path = cell.folder / f"{name}.{ending}"
        write(image, path)
        cell.right(made, (expected(image), *rest), call=lambda *_: cell.subject.of_file(made.run, path))
        cell.right(made)

    return check


CONDITIONS.update({f"{name}_file": _file(name) for name in FILES})


@condition
def image_as_pil(cell: Cell) -> None:
    made = cell.made()
    cell.right(made, call=lambda image, *rest: made.run(Image.fromarray(image), *rest))


@condition
def image_as_tensor(cell: Cell) -> None:
    made = cell.made()
    cell.right(made, call=lambda image, *rest: made.run(torch.from_numpy(image), *rest))
