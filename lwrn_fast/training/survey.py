"""Survey all label maps of a split before any work: the pixels of each value in each, cached for later runs."""

import hashlib
import json
import os
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..io import atomic, images
from . import data, labels
from .augment import IGNORE
from .label_map import COLOUR, GREY, PALETTE, LabelMap
from .labels import Counts, DataError

# Environment variable: the folder of cached counts, instead of the user's cache folder.
CACHE = "LWRN_FAST_CACHE"
# Version of the cache's files; a change of their meaning changes it.
FORMAT = 1
# Seconds; a file that changed more recently before it was read may change again without a new time.
RECENT = 2.0
# Threads that decode label maps, mostly without Python's lock.
MAX_THREADS = 16
# Seconds between calls of `tick`.
TICK = 20.0

Progress = Callable[[Sequence], Iterable]


@dataclass(frozen=True)
class Survey:
    """The counts of each pair's label map, or an error of one line that names the file."""

    pairs: Sequence[data.Pair]
    results: Sequence[Counts | str]


@dataclass(frozen=True)
class Tally:
    """A survey in classes.

    pixels: of the classes 0 to 254, and of 255. images: the number of label maps with each of these. sets: those that
    occur in each label map that counts. errors: of files that cannot be used. colour: label maps with colours without a
    class, with the error; colours: all of their colours. beyond: label maps with values beyond the classes, with the
    maximum. values: pixels of every value, also those beyond.
    """

    pixels: list[int] = field(default_factory=lambda: [0] * (IGNORE + 1))
    images: list[int] = field(default_factory=lambda: [0] * (IGNORE + 1))
    sets: dict[Path, frozenset[int]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    colour: dict[Path, str] = field(default_factory=dict)
    colours: Counter[int] = field(default_factory=Counter)
    beyond: dict[Path, int] = field(default_factory=dict)
    values: Counter[int] = field(default_factory=Counter)

    @property
    def classes(self) -> list[int]:
        """Return the classes that occur."""
        return [label for label in range(IGNORE) if self.pixels[label]]


def look(pairs: Sequence[data.Pair], progress: Progress = iter, tick: Callable[[], object] = lambda: None) -> Survey:
    """Return the survey of these pairs, reading only those that have changed since the last one.

    progress: wraps the pairs, as tqdm does. tick: is called every TICK seconds. A cache that cannot be read or written
    is skipped silently, since it changes only the time.
    """
    cache = _Cache(pairs)
    Image.init()  # plugins are imported once, not by threads at the same time
    results: list[Counts | str | None] = []
    last = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about many pixels: the label map is no larger than its image
        pool = ThreadPoolExecutor(_threads())
        try:
            for _, result in zip(progress(pairs), pool.map(cache.counts, pairs), strict=True):
                results.append(result)
                if time.monotonic() - last > TICK:
                    tick()
                    last = time.monotonic()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # so that Ctrl-C ends at once
    checked = [
        _without_header(pair) if result is None else result for pair, result in zip(pairs, results, strict=True)
    ]
    cache.save(checked)
    return Survey(pairs, checked)


def tally(survey: Survey, label_map: LabelMap | None, num_classes: int) -> Tally:
    """Return the survey in classes. num_classes: labels from this one on are beyond the classes."""
    result = Tally()
    for pair, counts in zip(survey.pairs, survey.results, strict=True):
        if isinstance(counts, str):
            result.errors.append(counts)
            continue
        classes = (label_map or LabelMap()).classes(counts.mode, counts.values, counts.colours)
        error = _colour_error(counts, classes, label_map)
        if error is not None:
            result.colour[pair.labels] = error
            result.colours.update(dict(zip(counts.values, counts.pixels, strict=True)))
            continue
        pixels: Counter[int] = Counter()
        for label, n in zip(classes, counts.pixels, strict=True):
            pixels[-1 if label is None else label] += n
        result.values.update(pixels)
        maximum = max(label for label in (*pixels, 0) if label != IGNORE)
        if maximum >= num_classes:
            result.beyond[pair.labels] = maximum
            continue
        result.sets[pair.labels] = frozenset(pixels)
        for label, n in pixels.items():
            result.pixels[label] += n
            result.images[label] += 1
    return result


def _colour_error(counts: Counts, classes: Sequence[int | None], label_map: LabelMap | None) -> str | None:
    """Return the error for colours without a class, None without any."""
    if counts.mode == COLOUR and (label_map is None or not label_map.colours or not counts.values):
        return labels.colour_error(len(counts.values) or None)
    for value, label in enumerate(classes):
        if label is None:
            unnamed = counts.colours if counts.mode == PALETTE else counts.values
            colour = unnamed[value] if counts.mode != GREY else labels.grey(unnamed[value])
            return labels.unnamed(colour)
    return None


def _without_header(pair: data.Pair) -> Counts | str:
    """Return the counts, or an error, where the image must be decoded for its size.

    One thread calls it, since decoding changes the state of `warnings`.
    """
    try:
        size = images.read(pair.image).shape[1::-1]
        return _same_size(pair, labels.count(pair.labels), size)
    except (DataError, images.ImageError) as error:
        return str(error)


def _same_size(pair: data.Pair, counts: Counts, size: Sequence[int]) -> Counts:
    """Return the counts. Raises DataError where their size is not the image's (width, height), which EXIF may swap."""
    if sorted(size) != sorted((counts.width, counts.height)):
        raise DataError(data.other_size(pair.labels, (counts.width, counts.height), size))
    return counts


def _threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_THREADS, cores)


class _Cache:
    """Counts from earlier surveys of the same folder, by the names, sizes and times of files."""

    def __init__(self, pairs: Sequence[data.Pair]) -> None:
        self._start = time.time()
        self._pairs = pairs
        self._path = _cache_file(pairs)
        self._old = {} if self._path is None else _load(self._path)
        self._keys: dict[Path, list[int]] = {}

    def counts(self, pair: data.Pair) -> Counts | str | None:
        """Return the counts of a pair's label map, or an error; None where the image must be decoded for its size.

        Called from threads.
        """
        try:
            key = [*_times(pair.labels), *_times(pair.image)]
            self._keys[pair.labels] = key
            old = self._old.get(os.path.abspath(pair.labels))
            if old is not None and old[0] == key:
                return old[1]
            counts = labels.count(pair.labels)
        except DataError as error:
            return str(error)
        except OSError as error:
            return f"{error.filename}: cannot be read ({images.reason(error)})"
        try:
            with Image.open(pair.image) as image:
                size = image.size
        except Exception:  # a damaged file can fail anywhere
            return None
        try:
            return _same_size(pair, counts, size)
        except DataError as error:
            return str(error)

    def save(self, results: Sequence[Counts | str]) -> None:
        """Keep the counts for the next survey, if the folder can be written."""
        if self._path is None:
            return
        kept = {}
        for pair, counts in zip(self._pairs, results, strict=True):
            key = self._keys.get(pair.labels)
            # the later time of a file: that of its content, or that of its inode
            if isinstance(counts, Counts) and key is not None and max(key) < (self._start - RECENT) * 1e9:
                kept[os.path.abspath(pair.labels)] = (key, counts)
        if kept == self._old:
            return
        text = json.dumps(kept)
        line = json.dumps({"format": FORMAT, "crc32": zlib.crc32(text.encode())})
        path = self._path
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(path, lambda unfinished: unfinished.write_text(f"{line}\n{text}\n", encoding="utf-8"))


def _times(path: Path) -> list[int]:
    """Return the size, and the times in nanoseconds at which the content and the inode changed."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _cache_file(pairs: Sequence[data.Pair]) -> Path | None:
    """Return the cache's file for these pairs, named after the paths of the first and the last; None without a home."""
    if not pairs:
        return None
    try:
        folder = os.environ.get(CACHE)
        if folder is None:
            user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            folder = str(Path(user) / "lwrn_fast")
        names = [os.path.abspath(path) for path in (pairs[0].labels, pairs[-1].labels)]
        digest = hashlib.sha256(os.fsencode("\0".join(names))).hexdigest()[:24]
        return Path(folder) / f"labels-{digest}.json"
    except (OSError, RuntimeError, ValueError):  # no home folder
        return None


def _load(path: Path) -> dict[str, tuple[list[int], Counts]]:
    """Load the result of `_Cache.save`, nothing where the file is damaged."""
    try:
        line, text = path.read_text(encoding="utf-8").splitlines()
        if json.loads(line) != {"format": FORMAT, "crc32": zlib.crc32(text.encode())}:
            return {}
        return {name: (key, _counts(fields)) for name, (key, fields) in json.loads(text).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _counts(fields: Any) -> Counts:
    """Return counts from JSON. Raises ValueError or TypeError for anything else."""
    width, height, mode, *lists = fields
    values, pixels, colours = (tuple(int(number) for number in numbers) for numbers in lists)
    if mode not in (GREY, PALETTE, COLOUR) or len(values) != len(pixels) or (colours and len(colours) != len(values)):
        raise ValueError("not the counts of a label map")
    return Counts(int(width), int(height), mode, values, pixels, colours)
