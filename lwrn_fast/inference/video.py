"""Videos to videos of label maps: what `lwrn-fast video` does. Reading, the network and writing overlap, in threads."""

import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from ..errors import UserError
from ..io import atomic, images, video_files
from ..io.video_files import Picture, Reader, Writer
from .segmenter import Segmenter

WAITING = 4
"""Frames that may wait between two stages."""

VIEWS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "overlay": images.overlay,
    "labels": lambda image, labels: images.coloured(labels),
    "beside": lambda image, labels: np.hstack([image, images.coloured(labels)]),
}

Item = TypeVar("Item")


class Channel(Generic[Item]):
    """A bounded queue between two threads, which either of them can end; only then does anything stop waiting in vain.

    newest: what was put first makes room, instead of `put` waiting for it.

    >>> channel = Channel(size=1, newest=True)
    >>> channel.put("old"), channel.put("new"), channel.end(), list(channel)
    (True, True, None, ['new'])
    """

    def __init__(self, size: int, newest: bool = False) -> None:
        self._items: deque[Item] = deque(maxlen=size)
        self._newest = newest
        self._ended = self._refused = False
        self._changed = threading.Condition()

    def put(self, item: Item) -> bool:
        """Waits for room; False where nobody takes anything any more."""
        with self._changed:
            while len(self._items) == self._items.maxlen and not (self._newest or self._refused):
                self._changed.wait()
            self._items.append(item)
            self._changed.notify_all()
            return not self._refused

    def end(self) -> None:
        """Nothing more will be put."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def refuse(self) -> None:
        """Nothing more will be taken."""
        with self._changed:
            self._refused = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Item]:
        while True:
            with self._changed:
                while not self._items and not self._ended:
                    self._changed.wait()
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item


@dataclass(frozen=True)
class Options:
    """What to make of every frame."""

    view: str = "overlay"
    codec: str | None = None
    """One of video_files.CODECS; by default the container's."""
    quality: int | None = None
    """The constant rate factor, lower is better; by default the codec's."""
    frames: int | None = None
    """Stop after so many."""


@dataclass
class Report:
    """What was done: milliseconds of each frame by stage, and what there is to say about it."""

    milliseconds: dict[str, list[float]] = field(default_factory=lambda: {"decode": [], "draw": [], "encode": []})
    medians: dict[str, float] = field(default_factory=dict)
    """Of the segmenter's stages."""
    seconds: float = 0.0
    stopped: bool = False
    notes: list[str] = field(default_factory=list)
    broken: str | None = None
    """Where the source breaks off, in one line."""

    @property
    def done(self) -> int:
        return len(self.milliseconds["draw"])

    def line(self) -> str:
        """The closing line."""
        own = {stage: statistics.median(values) for stage, values in self.milliseconds.items() if values}
        ordered = {"decode": own.pop("decode", 0.0), **self.medians, **own}
        stages = ", ".join(f"{stage} {value:.1f}" for stage, value in ordered.items())
        frames = f"{self.done} frame{'s' * (self.done != 1)} in {self.seconds:.1f} s"
        return f"{frames}, {self.done / max(self.seconds, 1e-9):.2f} frames/s; median ms: {stages}"


def run(
    source: str,
    out: Path | None,
    segmenter: Segmenter,
    options: Options,
    stop: threading.Event | None = None,
    progress: Callable[[Iterable, int | None], Iterable] = lambda items, length: items,
    show: Callable[[np.ndarray], bool] | None = None,
) -> Report:
    """Segment the frames of a video, or of the camera of a number, and write them as a video with the same times.

    segmenter: called in this thread alone. stop: once it is set, the file is finished with the frames done until then.
    progress: wraps the frames, of about which number, as tqdm does. show: is given pictures as they are drawn, in this
    thread, and says whether to go on. Raises UserError where nothing can be done; then `out` is as it was.

    >>> from lwrn_fast import models
    >>> run("street.mp4", Path("labels.mp4"), Segmenter(models.rf_lw_mbv2(21).eval(), size=(256, 448)), Options())
    Traceback (most recent call last):
    lwrn_fast.errors.UserError: street.mp4: cannot be read (no such file or folder)
    """
    stop = stop or threading.Event()
    plan = None
    if out is not None:
        plan = video_files.check(out, options.codec, options.quality)
        try:
            atomic.check_place(out)
        except (OSError, ValueError) as error:
            raise UserError(f"{out}: cannot be written ({images.reason(error)})") from error
    reader = Reader(source)
    try:
        if out is None or plan is None:
            return _Work(reader, None, segmenter, options, stop, show).run(progress)
        for path in (out, atomic.unfinished(out, out.suffix)):
            if not reader.is_camera and path.exists() and os.path.exists(source) and path.samefile(source):
                raise UserError(f"{path}: is the video itself, OUT must be another file")
        reports = []

        def save(beside: Path) -> None:
            writer = Writer(beside, *plan, options.quality, reader)
            try:
                reports.append(_Work(reader, writer, segmenter, options, stop, show).run(progress))
            finally:
                writer.close()

        try:
            atomic.write(out, save, ending=out.suffix)
        except video_files.WRITING_ERRORS as error:
            raise UserError(f"{out}: cannot be written ({video_files.reason(error)})") from error
        return reports[0]
    finally:
        reader.close()


class _Work:
    """One run: a thread that reads, this one with the network, a thread that draws and writes."""

    def __init__(
        self,
        reader: Reader,
        writer: Writer | None,
        segmenter: Segmenter,
        options: Options,
        stop: threading.Event,
        show: Callable[[np.ndarray], bool] | None,
    ) -> None:
        self.reader, self.writer, self.segmenter = reader, writer, segmenter
        self.options, self.stop, self.show = options, stop, show
        self.report = Report(notes=reader.notes)
        # a camera does not wait: of what has come meanwhile, the last is the one to see
        self.read: Channel[Picture] = Channel(1 if reader.is_camera else WAITING, newest=reader.is_camera)
        self.segmented: Channel[tuple[Picture, np.ndarray]] = Channel(WAITING)
        self.drawn: deque[np.ndarray] = deque(maxlen=1)

    def run(self, progress: Callable[[Iterable, int | None], Iterable]) -> Report:
        start = time.perf_counter()
        with ThreadPoolExecutor(2, thread_name_prefix="lwrn-fast-video") as pool:
            reading, writing = pool.submit(self._read), pool.submit(self._write)
            try:
                whole = self._segment(progress)
            finally:
                self.read.refuse()
                self.segmented.end()
        reading.result()
        writing.result()
        self.report.stopped = self.stop.is_set()
        self.report.broken = self.reader.broken
        if not self.report.done:
            what = "stopped before the first frame" if self.report.stopped else "has no frames that can be decoded"
            if self.report.broken is not None and not self.report.stopped:
                what = "is cut off before the end of its first frame"
            raise UserError(f"{self.reader.place}: {what}")
        if self.writer is not None:
            self.writer.finish(whole and self.reader.complete)
        self.report.seconds = time.perf_counter() - start
        self.report.medians = {stage: value for stage, value in self.segmenter.timings().items() if value}
        return self.report

    def _read(self) -> None:
        try:
            pictures = self.reader.pictures()
            while True:
                start = time.perf_counter()
                picture = next(pictures, None)
                if picture is None:
                    break
                self._took("decode", start)
                if not self.read.put(picture) or self.stop.is_set():
                    self.reader.read_audio(picture)
                    break
        finally:
            self.read.end()

    def _segment(self, progress: Callable[[Iterable, int | None], Iterable]) -> bool:
        """Returns whether that were all frames that were read."""
        pending: deque[Picture] = deque()
        whole = False

        def frames() -> Iterator[np.ndarray]:
            nonlocal whole
            most = self.options.frames
            lengths = [length for length in (self.reader.length(), most) if length is not None]
            for number, picture in enumerate(progress(self.read, min(lengths, default=None)), 1):
                if self.stop.is_set():
                    return
                pending.append(picture)
                yield picture.image
                if number == most:
                    return
            whole = True

        for labels in self.segmenter.map(frames()):
            if not self.segmented.put((pending.popleft(), labels)):
                return False
            if self.show is not None and self.drawn and not self.show(self.drawn.pop()):
                self.stop.set()
        return whole

    def _write(self) -> None:
        try:
            for picture, labels in self.segmented:
                start = time.perf_counter()
                image = VIEWS[self.options.view](picture.image, labels)
                self._took("draw", start)
                self.drawn.append(image)
                if self.writer is not None:
                    start = time.perf_counter()
                    self.writer.add(image, picture)
                    self._took("encode", start)
        finally:
            self.segmented.refuse()

    def _took(self, stage: str, start: float) -> None:
        self.report.milliseconds[stage].append((time.perf_counter() - start) * 1000)
