"""Random scale, crop and flip of an image together with its label map."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import models
from ..io import images

# The label that counts neither in the loss nor in the metrics.
IGNORE = 255
# The colour outside the image, which normalises to 0.
PADDING = tuple(round(255 * mean) for mean in models.MEAN)


@dataclass(frozen=True)
class Options:
    """Options of augmentation. crop: pixels of a side. scales: the minimum and maximum factor of both sides."""

    crop: int = 256
    scales: tuple[float, float] = (0.5, 2.0)
    flip: bool = True


def sample(
    image: np.ndarray, labels: np.ndarray, options: Options, seed: np.random.SeedSequence
) -> tuple[Tensor, Tensor]:
    """Return an augmented sample; the same seed gives the same one.

    image: uint8 (H, W, 3). labels: uint8 (H, W).
    Returns float32 (1, 3, crop, crop), normalised as `models.preprocess` does, and int64 (1, crop, crop), 255
    outside the image.

    >>> image, labels = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
    >>> x, y = sample(image, labels, Options(crop=32), np.random.SeedSequence(0))
    >>> tuple(x.shape), tuple(y.shape)
    ((1, 3, 32, 32), (1, 32, 32))
    """
    random = np.random.RandomState(np.random.MT19937(seed))
    log_min, log_max = np.log(options.scales)
    factor = np.exp(random.uniform(log_min, log_max))  # halving is as likely as doubling
    height, width = (max(1, round(length * factor)) for length in labels.shape)
    top, left = (_offset(random, length, options.crop) for length in (height, width))
    image = _crop(images.resize(image, height, width), top, left, options.crop, PADDING)
    labels = _crop(_resize_labels(labels, height, width), top, left, options.crop, (IGNORE,))
    if options.flip and random.uniform() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    return models.preprocess(image), torch.from_numpy(labels.astype(np.int64))[None]


def _offset(random: np.random.RandomState, length: int, crop: int) -> int:
    """Return a random offset of the crop; negative where the image is smaller than the crop."""
    return random.randint(min(0, length - crop), max(0, length - crop) + 1)


def _resize_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    if labels.shape == (height, width):
        return labels
    return np.array(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))


def _crop(array: np.ndarray, top: int, left: int, crop: int, padding: tuple[int, ...]) -> np.ndarray:
    out = np.empty((crop, crop, *array.shape[2:]), np.uint8)
    out[:] = padding
    window = array[max(0, top) : top + crop, max(0, left) : left + crop]
    row, column = max(0, -top), max(0, -left)
    out[row : row + window.shape[0], column : column + window.shape[1]] = window
    return out
