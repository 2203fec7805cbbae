"""Synthetic images with their label maps: overlapping shapes of seven classes on a textured ground, with noise.

Seed, split and number determine every image, so that data can be made again instead of kept.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from ..errors import UserError
from ..io import images
from .data import CLASSES_FILE

CLASSES = ("background", "disk", "ring", "triangle", "rectangle", "star", "cross", "crescent")
# The share of each split; each has at least one image.
SPLITS = {"train": 0.8, "val": 0.1, "test": 0.1}
# Share of a shape's pixels; a shape that later ones hide further is left out, since nobody could recognise it.
MIN_VISIBLE = 0.25


def generate(
    out: Path, count: int, seed: int, size: tuple[int, int], progress: Callable[[Sequence], Iterable] = iter
) -> dict[str, int]:
    """Write `count` images of `size` (height, width) as out/SPLIT/images and out/SPLIT/labels; return how many in each.

    Raises UserError where the folder exists and is not empty, or cannot be written, and leaves nothing then.
    """
    if count < len(SPLITS):
        raise UserError(f"--images must be at least {len(SPLITS)}, one for each of {', '.join(SPLITS)}, got {count}")
    if min(size) < 32:
        raise UserError(f"--size must be at least 32, got {size[0]} {size[1]}")
    counts = {split: max(1, int(count * share)) for split, share in SPLITS.items()}
    counts["train"] += count - sum(counts.values())
    unfinished = out.with_name(f".{out.name}.unfinished")  # renamed to `out` when it is complete
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: exists already; name a new or an empty folder")
        shutil.rmtree(unfinished, ignore_errors=True)
        for split in SPLITS:
            for folder in ("images", "labels"):
                (unfinished / split / folder).mkdir(parents=True)
        (unfinished / CLASSES_FILE).write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
        for split, i in progress([(split, i) for split, n in counts.items() for i in range(n)]):
            image, labels = draw_image(seed, split, i, size)
            images.write(unfinished / split / "images" / f"{i:05}.png", image)
            images.write_labels(unfinished / split / "labels" / f"{i:05}.png", labels)
        unfinished.replace(out)
    except images.ImageError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({images.reason(error)})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return counts


def draw_image(seed: int, split: str, index: int, size: tuple[int, int] = (256, 256)) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image, uint8 (H, W, 3), and its labels, uint8 (H, W), the indices of `CLASSES`.

    >>> image, labels = draw_image(seed=0, split="test", index=3, size=(64, 96))
    >>> image.shape, labels.shape, bool(labels.max() < len(CLASSES))
    ((64, 96, 3), (64, 96), True)
    """
    sequence = np.random.SeedSequence([seed, list(SPLITS).index(split), index])
    random = np.random.RandomState(np.random.MT19937(sequence))  # RandomState's streams never change
    shapes = [_shape(random, size) for _ in range(random.randint(3, 9))]
    image = _texture(random, size, hue=random.uniform(), saturation=random.uniform(0, 0.35))
    image = _clutter(random, image)
    labels = np.zeros(size, np.uint8)
    kept = _visible([mask for _, mask in shapes])
    for (label, mask), keep in zip(shapes, kept, strict=True):
        # each class has a frequent hue, but not only that one
        hue = (label - 1) / 7 + random.normal(0, 0.07) if random.uniform() < 0.6 else random.uniform()
        paint = _texture(random, size, hue, random.uniform(0.35, 1))
        if not keep:
            continue
        shadow = np.roll(mask, random.randint(1, 5, 2), (0, 1)) & ~mask
        image = np.where(shadow[:, :, None], image * 0.6, image)
        image[mask] = paint[mask]
        labels[mask] = label
    return _camera(random, image), labels


def _shape(random: np.random.RandomState, size: tuple[int, int]) -> tuple[int, np.ndarray]:
    """Return a class from 1 and the pixels of one shape of it, bool (H, W)."""
    label = random.randint(1, len(CLASSES))
    radius = random.uniform(0.1, 0.26) * min(size)
    centre = random.uniform(0.05, 0.95, 2) * size
    angle, stretch = random.uniform(0, 2 * np.pi), random.uniform(0.75, 1)
    y, x = (np.mgrid[0 : size[0], 0 : size[1]] - centre[:, None, None]) / radius
    u, v = x * np.cos(angle) + y * np.sin(angle), (y * np.cos(angle) - x * np.sin(angle)) / stretch
    r, theta = np.hypot(u, v), np.arctan2(v, u)
    inner = random.uniform(0.45, 0.65)
    masks = {
        "disk": lambda: r < 0.9,
        "ring": lambda: (r < 1) & (r > inner),
        "triangle": lambda: (v > -0.5) & (v < 1 - np.sqrt(3) * abs(u)),
        "rectangle": lambda: (abs(u) < 0.95) & (abs(v) < inner + 0.1),
        "star": lambda: r < 0.45 + 0.6 * (2 * abs((theta * 5 / (2 * np.pi)) % 1 - 0.5)) ** 1.5,
        "cross": lambda: (np.minimum(abs(u), abs(v)) < 0.28) & (np.maximum(abs(u), abs(v)) < 1),
        "crescent": lambda: (r < 1) & (np.hypot(u - 0.5, v) > 0.75),
    }
    return label, masks[CLASSES[label]]()


def _visible(masks: list[np.ndarray]) -> list[bool]:
    """Return for each shape whether it stays visible enough when all kept ones are drawn in this order."""
    kept = []
    above = np.zeros(masks[0].shape, bool)
    for mask in reversed(masks):
        kept.append(bool(mask.sum() > 0 and (mask & ~above).sum() > MIN_VISIBLE * mask.sum()))
        if kept[-1]:
            above |= mask
    return kept[::-1]


def _texture(random: np.random.RandomState, size: tuple[int, int], hue: float, saturation: float) -> np.ndarray:
    """Draw a plain, graded, striped, chequered or cloudy texture in one colour: float (H, W, 3), 0 to 255."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]] / min(size)
    angle, frequency, phase = random.uniform(0, np.pi), random.uniform(20, 60), random.uniform(0, 2 * np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    pattern = [
        lambda: np.zeros(size),
        lambda: np.clip(2 * u - 1, -1, 1),
        lambda: np.sin(frequency * u + phase),
        lambda: np.sign(np.sin(frequency * u + phase) * np.sin(frequency * v)),
        lambda: _cloud(random, size),
    ][random.randint(5)]()
    value = random.uniform(0.35, 0.9) * (1 + random.uniform(0.1, 0.35) * pattern)
    # a circle of colours: three cosines, a third of a turn apart
    colour = 0.5 + 0.5 * np.cos(2 * np.pi * (hue - np.arange(3) / 3))
    return 255 * np.clip(value[:, :, None] * (1 - saturation + saturation * colour), 0, 1)


def _cloud(random: np.random.RandomState, size: tuple[int, int]) -> np.ndarray:
    """Return smooth noise, -1 to 1."""
    coarse = (random.uniform(0, 255, (random.randint(4, 12),) * 2)).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(smooth) / 127.5 - 1


def _clutter(random: np.random.RandomState, image: np.ndarray) -> np.ndarray:
    """Draw thin lines in other colours, which belong to the background."""
    y, x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    for _ in range(random.randint(0, 6)):
        angle = random.uniform(0, np.pi)
        distance = x * np.cos(angle) + y * np.sin(angle) - random.uniform(-0.5, 1.2) * min(image.shape[:2])
        image = np.where((abs(distance) < random.uniform(0.5, 2.5))[:, :, None], random.uniform(0, 255, 3), image)
    return image


def _camera(random: np.random.RandomState, image: np.ndarray) -> np.ndarray:
    """Apply a camera's uneven light, blur and noise."""
    height, width = image.shape[:2]
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width])[:, None, None] - 0.5
    light = 1 + random.uniform(-0.4, 0.4) * x + random.uniform(-0.4, 0.4) * y
    lit = np.clip(image * light[:, :, None], 0, 255).astype(np.uint8)
    blurred = np.asarray(Image.fromarray(lit).filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.2))))
    noisy = blurred + random.normal(0, random.uniform(2, 14), image.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
