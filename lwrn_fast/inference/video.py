"""Videos to videos of label maps, for `lwrn-fast video`. Reading, the model and writing overlap, in threads."""

import os
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
from ..io.video_files import Frame, Reader, Writer
from .segmenter import Segmenter
from .timings import Timings

# Frames that may wait between two stages.
WAITING = 4

# Functions from a frame and its labels to the frame that is written, uint8 (H, W, 3).
VIEWS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "overlay": images.overlay,
    "labels": lambda image, labels: images.coloured(labels),
    "beside": lambda image, labels: np.hstack([image, images.coloured(labels)]),
}

Item = TypeVar("Item")


class Channel(Generic[Item]):
    """A bounded queue between two threads, which either of them can end, so that the other never waits in vain.

    newest: drop the oldest item where there is no room, instead of waiting in `put`.

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
        """Wait for room and put the item; return False where the other thread takes nothing any more."""
        with self._changed:
            while len(self._items) == self._items.maxlen and not (self._newest or self._refused):
                self._changed.wait()
            self._items.append(item)
            self._changed.notify_all()
            return not self._refused

    def end(self) -> None:
        """Announce that nothing more will be put."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def refuse(self) -> None:
        """Announce that nothing more will be taken."""
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
    """Options of a run. view: one of VIEWS."""

    view: str = "overlay"
    # One of video_files.CODECS; by default the container's.
    codec: str | None = None
    # The constant rate factor, lower is better; by default the codec's.
    quality: int | None = None
    # Frames after which to stop.
    frames: int | None = None


@dataclass
class Report:
    """Result of a run: the time of each stage, and lines for the user."""

    # Times of "decode", "draw" and "encode", for all frames.
    times: Timings = field(default_factory=lambda: Timings(calls=None))
    # Median milliseconds of the Segmenter's stages.
    segmenter: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    stopped: bool = False
    notes: list[str] = field(default_factory=list)
    # A line about where the source breaks off.
    broken: str | None = None

    @property
    def done(self) -> int:
        """Frames that are drawn."""
        return self.times.count("draw")

    def line(self) -> str:
        """Return the closing line."""
        own = self.times.medians()
        ordered = {"decode": own.pop("decode", 0.0), **self.segmenter}
        ordered.update({stage: own[stage] for stage in ("draw", "encode") if stage in own})
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
    progress: wraps the frames and takes about how many there are, as tqdm does. show: gets the frames that are drawn,
    in this thread, and returns whether to go on. Raises UserError where nothing can be done; then `out` is unchanged.

    >>> from lwrn_fast import models
    >>> run("street.mp4", Path("labels.mp4"), Segmenter(models.rf_lw_mbv2(21).eval(), size=(256, 448)), Options())
    Traceback (most recent call last):
    lwrn_fast.errors.UserError: street.mp4: cannot be read (no such file or folder)
    """
    stop = stop or threading.Event()
    plan = None
    if out is not None:
        plan = video_files.check(out, options.codec, options.quality)
        with atomic.writing(out):
            atomic.check_place(out)
    reader = Reader(source)
    try:
        if out is None or plan is None:
            return _Work(reader, None, segmenter, options, stop, show).run(progress)
        for path in (out, atomic.unfinished(out, out.suffix)):
            if not reader.is_camera and path.exists() and os.path.exists(source) and path.samefile(source):
                raise UserError(f"{path}: is the video itself, OUT must be another file")
        reports = []

        def save(unfinished: Path) -> None:
            writer = Writer(unfinished, *plan, options.quality, reader)
            try:
                reports.append(_Work(reader, writer, segmenter, options, stop, show).run(progress))
            finally:
                writer.close()

        with video_files.writing(out):
            atomic.write(out, save, ending=out.suffix)
        return reports[0]
    finally:
        reader.close()


class _Work:
    """One run: a thread that reads, this one with the model, a thread that draws and writes."""

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
        # a camera does not wait: only the newest frame matters
        self.read: Channel[Frame] = Channel(1 if reader.is_camera else WAITING, newest=reader.is_camera)
        self.segmented: Channel[tuple[Frame, np.ndarray]] = Channel(WAITING)
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
            text = "stopped before the first frame" if self.report.stopped else "has no frames that can be decoded"
            if self.report.broken is not None and not self.report.stopped:
                text = "is cut off before the end of its first frame"
            raise UserError(f"{self.reader.path}: {text}")
        if self.writer is not None:
            self.writer.finish(whole and self.reader.complete)
        self.report.seconds = time.perf_counter() - start
        self.report.segmenter = {stage: value for stage, value in self.segmenter.timings().items() if value}
        return self.report

    def _read(self) -> None:
        try:
            frames = self.reader.frames()
            while True:
                start = time.perf_counter()
                frame = next(frames, None)
                if frame is None:
                    break
                self.report.times.add("decode", time.perf_counter() - start)
                if not self.read.put(frame) or self.stop.is_set():
                    self.reader.read_audio(frame)
                    break
        finally:
            self.read.end()

    def _segment(self, progress: Callable[[Iterable, int | None], Iterable]) -> bool:
        """Segment frames until the end or a stop; return whether those were all frames that were read."""
        pending: deque[Frame] = deque()
        whole = False

        def frames() -> Iterator[np.ndarray]:
            nonlocal whole
            max_frames = self.options.frames
            lengths = [length for length in (self.reader.length(), max_frames) if length is not None]
            for number, frame in enumerate(progress(self.read, min(lengths, default=None)), 1):
                if self.stop.is_set():
                    return
                pending.append(frame)
                yield frame.image
                if number == max_frames:
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
            for frame, labels in self.segmented:
                with self.report.times.measure("draw"):
                    image = VIEWS[self.options.view](frame.image, labels)
                self.drawn.append(image)
                if self.writer is not None:
                    with self.report.times.measure("encode"):
                        self.writer.add(image, frame)
        finally:
            self.segmented.refuse()
