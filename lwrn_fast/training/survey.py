"""A look through all label maps of a split before any work: the pixels of each value in each, kept for later."""

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

# Environment variable: the folder that keeps counts from one run to the next, instead of the user's cache folder.
CACHE = "LWRN_FAST_CACHE"
# Of the cache's files; a change of what they mean changes it.
FORMAT = 1
# Seconds. A file that changed so shortly before it was read may change again without a new time.
RECENT = 2.0
# Threads that decode label maps, most of the time without Python's lock.
MAX_THREADS = 16
# Seconds between calls of `tick`.
TICK = 20.0

Progress = Callable[[Sequence], Iterable]


@dataclass(frozen=True)
class Survey:
    """The counts of each pair's label map, or what is wrong with the pair, in one line that names the file."""

    pairs: Sequence[data.Pair]
    found: Sequence[Counts | str]


@dataclass(frozen=True)
class Tally:
    """A survey in classes.

    pixels: per class 0 to 254, and of 255. images: label maps in which each of these occurs. sets: which of these occur
    in each label map that counts. errors: of files that cannot be used. colour: label maps with colours that have no
    class, with what is wrong, and colours: all of theirs. beyond: label maps with values beyond the classes, and the
    largest. values: pixels of every value, those beyond too.
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
        """The classes that occur."""
        return [label for label in range(IGNORE) if self.pixels[label]]


def look(pairs: Sequence[data.Pair], progress: Progress = iter, tick: Callable[[], object] = lambda: None) -> Survey:
    """The survey of these pairs, of which only those are read that have changed since the last one.

    progress: wraps the list that is walked. tick: is called now and then. A cache that cannot be read or written is
    none; nobody is told, for it changes nothing but the time.
    """
    cache = _Cache(pairs)
    Image.init()  # plugins are imported once, not by threads at the same time
    found: list[Counts | str | None] = []
    last = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about many pixels: who has the image has its labels
        pool = ThreadPoolExecutor(_threads())
        try:
            for _, result in zip(progress(pairs), pool.map(cache.counts, pairs), strict=True):
                found.append(result)
                if time.monotonic() - last > TICK:
                    tick()
                    last = time.monotonic()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C waits for nothing
    checked = [
        _without_header(pair) if result is None else result for pair, result in zip(pairs, found, strict=True)
    ]
    cache.save(checked)
    return Survey(pairs, checked)


def tally(survey: Survey, label_map: LabelMap | None, num_classes: int) -> Tally:
    """The survey in classes. num_classes: classes from this one on are beyond."""
    result = Tally()
    for pair, counts in zip(survey.pairs, survey.found, strict=True):
        if isinstance(counts, str):
            result.errors.append(counts)
            continue
        classes = (label_map or LabelMap()).classes(counts.kind, counts.values, counts.colours)
        trouble = _colour_trouble(counts, classes, label_map)
        if trouble is not None:
            result.colour[pair.labels] = trouble
            result.colours.update(dict(zip(counts.values, counts.pixels, strict=True)))
            continue
        pixels: Counter[int] = Counter()
        for label, n in zip(classes, counts.pixels, strict=True):
            pixels[-1 if label is None else label] += n
        result.values.update(pixels)
        worst = max(label for label in (*pixels, 0) if label != IGNORE)
        if worst >= num_classes:
            result.beyond[pair.labels] = worst
            continue
        result.sets[pair.labels] = frozenset(pixels)
        for label, n in pixels.items():
            result.pixels[label] += n
            result.images[label] += 1
    return result


def _colour_trouble(counts: Counts, classes: Sequence[int | None], label_map: LabelMap | None) -> str | None:
    if counts.kind == COLOUR and (label_map is None or not label_map.colours or not counts.values):
        return labels.colour_trouble(len(counts.values) or None)
    for value, label in enumerate(classes):
        if label is None:
            unnamed = counts.colours if counts.kind == PALETTE else counts.values
            colour = unnamed[value] if counts.kind != GREY else labels.grey(unnamed[value])
            return labels.unnamed(colour)
    return None


def _without_header(pair: data.Pair) -> Counts | str:
    """The counts where an image's size is not known before it is read; by one thread, for reading changes warnings."""
    try:
        size = images.read(pair.image).shape[1::-1]
        return _same_size(pair, labels.count(pair.labels), size)
    except (DataError, images.ImageError) as error:
        return str(error)


def _same_size(pair: data.Pair, counts: Counts, size: Sequence[int]) -> Counts:
    """The counts. Raises DataError where an image of this (width, height) cannot have them; it may be turned yet."""
    if sorted(size) != sorted((counts.width, counts.height)):
        raise DataError(data.other_size(pair.labels, (counts.width, counts.height), size))
    return counts


def _threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_THREADS, cores)


class _Cache:
    """Counts of earlier surveys of the same folder, by the names, sizes and times of files."""

    def __init__(self, pairs: Sequence[data.Pair]) -> None:
        self._begun = time.time()
        self._pairs = pairs
        self._path = _place(pairs)
        self._old = {} if self._path is None else _load(self._path)
        self._keys: dict[Path, list[int]] = {}

    def counts(self, pair: data.Pair) -> Counts | str | None:
        """The counts of a pair's label map, or what is wrong; None where the image must be read to know its size.

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

    def save(self, found: Sequence[Counts | str]) -> None:
        """Keep the counts for the next survey, where that is possible."""
        if self._path is None:
            return
        kept = {}
        for pair, counts in zip(self._pairs, found, strict=True):
            key = self._keys.get(pair.labels)
            # the larger time of a file: of what it holds, or of the file as such
            if isinstance(counts, Counts) and key is not None and max(key) < (self._begun - RECENT) * 1e9:
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
    """Size, and the times in nanoseconds at which the contents changed and at which the file did."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _place(pairs: Sequence[data.Pair]) -> Path | None:
    """The cache's file for these pairs, by where the first and the last one are; None where there is no place."""
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
    except (OSError, RuntimeError, ValueError):  # there may be no home
        return None


def _load(path: Path) -> dict[str, tuple[list[int], Counts]]:
    """What `save` has left, nothing where the file is damaged."""
    try:
        line, text = path.read_text(encoding="utf-8").splitlines()
        if json.loads(line) != {"format": FORMAT, "crc32": zlib.crc32(text.encode())}:
            return {}
        return {name: (key, _counts(fields)) for name, (key, fields) in json.loads(text).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _counts(fields: Any) -> Counts:
    """Counts from JSON. Raises ValueError or TypeError for anything else."""
    width, height, kind, *lists = fields
    values, pixels, colours = (tuple(int(number) for number in numbers) for numbers in lists)
    if kind not in (GREY, PALETTE, COLOUR) or len(values) != len(pixels) or (colours and len(colours) != len(values)):
        raise ValueError("not the counts of a label map")
    return Counts(int(width), int(height), kind, values, pixels, colours)
