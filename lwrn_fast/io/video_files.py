"""Video files and cameras in, video files out; the only module that needs PyAV."""

import io
import os
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from ..errors import UserError, as_user_error
from ..errors import reason as plain_reason
from . import video_ends

# FFmpeg's name of the interface, and the path of the camera of a number.
CAMERAS = "v4l2", "/dev/video{}"
# FFmpeg's numbers of two matrices and of a range of values, 16 to 235.
RGB, BT709, STUDIO_RANGE = 0, 1, 1


@dataclass(frozen=True)
class Container:
    """The container that the ending of a file's name stands for."""

    format: str
    # The default.
    codec: str
    # The encoder for audio that the container cannot take as it is.
    audio: str
    options: dict[str, str]


@dataclass(frozen=True)
class Codec:
    """An encoder of FFmpeg with its options; `quality` is its constant rate factor, None for a lossless one."""

    encoder: str
    pixels: str
    options: dict[str, str]
    quality: int | None = None
    worst: int = 51


# Fragments of a second, joined at the end: the file that a killed run leaves can be played too.
_FRAGMENTS = {"movflags": "hybrid_fragmented+delay_moov", "frag_duration": "1000000", "flush_packets": "1"}
_MP4 = _FRAGMENTS if av.library_versions["libavformat"] >= (62, 12) else {}  # no player plays older versions' files
CONTAINERS = {
    ".mp4": Container("mp4", "h264", "aac", _MP4),
    ".m4v": Container("mp4", "h264", "aac", _MP4),
    ".mov": Container("mov", "h264", "aac", _MP4),
    ".mkv": Container("matroska", "h264", "libopus", {"flush_packets": "1"}),
    ".webm": Container("webm", "vp9", "libopus", {"flush_packets": "1"}),
}
CODECS = {
    "h264": Codec("libx264", "yuv420p", {"preset": "veryfast"}, 20),
    "hevc": Codec("libx265", "yuv420p", {"preset": "fast", "x265-params": "log-level=error"}, 24),
    "vp9": Codec("libvpx-vp9", "yuv420p", {"b": "0", "deadline": "realtime", "cpu-used": "5", "row-mt": "1"}, 30, 63),
    "h264rgb": Codec("libx264rgb", "rgb24", {"preset": "veryfast", "crf": "0"}),
    "ffv1": Codec("ffv1", "bgr0", {}),
}


@dataclass
class Frame:
    """An upright frame, uint8 (H, W, 3), RGB, and its time in units of the reader's `time_base`."""

    image: np.ndarray
    pts: int
    duration: int


class Reader:
    """Reader of the frames of a video file or, where `source` is a whole number, a camera; audio goes to `audio`.

    Raises UserError where the source is missing or has no video.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.is_camera = source.isascii() and source.isdigit()
        interface, path = CAMERAS
        self.path = path.format(source) if self.is_camera else source
        try:
            url, format = (self.path, interface) if self.is_camera else (address(self.path), None)
            self.container = av.open(url, format=format, metadata_errors="ignore")
        except av.error.InvalidDataError as error:
            text = "is not a video, or is damaged from the start"
            if video_ends.lacks_index(self.path):
                text = "is cut off: the index that an MP4 has at its end is missing, and nothing can be read without it"
            raise UserError(f"{self.path}: {text}") from error
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise UserError(f"{self.path}: cannot be read ({reason(error)})") from error
        streams = [stream for stream in self.container.streams.video if stream.codec_context is not None]
        # the cover image of a song is a video stream too
        streams = [stream for stream in streams if not stream.disposition & type(stream.disposition).attached_pic]
        if not streams:
            self.container.close()
            raise UserError(f"{self.path}: has no video that can be decoded")
        self.stream = streams[0]
        self.stream.thread_type = "AUTO"
        self.audio_streams = [stream for stream in self.container.streams.audio if stream.codec_context is not None]
        self.audio: deque[Any] = deque()
        self.notes: list[str] = []
        # The first frame as PyAV gives it: its colours' standard is that of all.
        self.first: Any = None
        self.transposed = False
        self.complete = False
        # A line about where the file breaks off; known once all of it is read.
        self.broken: str | None = None
        self.ending = video_ends.Ending(self.path, self.container)
        self.time_base: Fraction = self.stream.time_base or Fraction(1, 90_000)
        self.rate: Fraction = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        # as FFmpeg does: the clocks of cameras and transport streams began before
        self.start = max(0, self.container.start_time or 0) / Fraction(av.time_base)
        self._last: int | None = None
        self._end = 0
        self._unreadable: str | None = None

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def length(self) -> int | None:
        """Return the number of frames, which may be an estimate; None where that is not known."""
        if self.stream.frames or not self.container.duration:
            return self.stream.frames or None
        return round(self.container.duration / Fraction(av.time_base) * self.rate)

    def frames(self) -> Iterator[Frame]:
        """Yield every frame that can be decoded; damaged packets are skipped and counted in `notes` at the end."""
        damaged = done = 0
        try:
            for packet in self._whole_packets():
                try:
                    decoded = self.stream.decode(packet)
                except av.error.FFmpegError:
                    damaged += 1
                    continue
                for frame in decoded:
                    done += 1
                    self.ending.ends_corrupt = frame.is_corrupt
                    yield self._frame(frame)
            self.complete = True
            if not self.is_camera and (self._unreadable or self.ending.cut()):
                self.broken = self._broken(done)
        finally:
            if damaged:
                self.notes.append(f"{self.path}: skipped {damaged} damaged packet{'s' * (damaged != 1)}")

    def read_audio(self, last: Frame) -> None:
        """Read on for the audio up to the end of this frame, which may lie a second behind it in the file."""
        end = (last.pts + last.duration) * self.time_base
        for packet in self._packets() if self.audio_streams else ():
            if packet is None:
                return
            if packet.stream is not self.stream:
                self._keep(packet)
            if packet.dts is not None and packet.dts * packet.time_base - self.start > end + 1:
                return

    def _broken(self, frames: int) -> str:
        """Return a line about a video that ends too early, after so many frames."""
        time = float(self._end * self.time_base)
        length = f" of {float(self.ending.length()):.2f}" if self.ending.length() else ""
        cause = f", the rest cannot be read ({self._unreadable})" if self._unreadable else ", the file is cut off"
        return f"{self.path}: breaks off after {frames} frame{'s' * (frames != 1)}, at {time:.2f}{length} s{cause}"

    def _whole_packets(self) -> Iterator[Any]:
        """Yield the video's packets and keep those of audio.

        An incomplete last packet is left out: its error would cost the frames that the decoder's threads still hold.
        """
        held: list[Any] = []
        for packet in self._packets():
            if packet is not None and packet.stream is not self.stream:
                self._keep(packet)
                continue
            if packet is not None and packet.size:
                yield from held
            held = [packet] if packet is not None and packet.is_corrupt else []
            if not held:
                yield packet

    def _packets(self) -> Iterator[Any]:
        """Yield packets in the order of the file, and None at the end, for the frames that the decoder still holds."""
        try:
            for packet in self.container.demux([self.stream, *self.audio_streams]):
                self.ending.saw(packet)
                yield packet
        except av.error.FFmpegError as error:
            if self.is_camera:
                self.notes.append(f"{self.path}: ends early, the rest cannot be read ({reason(error)})")
            self._unreadable = reason(error)
            yield None

    def _keep(self, packet: Any) -> None:
        if packet.size and packet.pts is not None:
            shift = round(self.start / packet.time_base)
            packet.pts -= shift
            if packet.dts is not None:
                packet.dts -= shift
            self.audio.append(packet)

    def _frame(self, frame: Any) -> Frame:
        if self.first is None:
            self.first = frame
        step = max(1, round(1 / (self.rate * self.time_base)))
        if frame.pts is None:
            pts = 0 if self._last is None else self._last + step
        else:
            pts = frame.pts - round(self.start / self.time_base)
        self._last = pts if self._last is None else max(pts, self._last + 1)  # encoders need rising ones
        image, self.transposed = upright(frame.to_ndarray(format="rgb24"), _display_matrix(frame))
        upright_frame = Frame(image, self._last, frame.duration or step)
        self._end = upright_frame.pts + upright_frame.duration
        return upright_frame


def _display_matrix(frame: Any) -> np.ndarray | None:
    data = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32)


def upright(image: np.ndarray, matrix: np.ndarray | None) -> tuple[np.ndarray, bool]:
    """Turn an image (H, W, 3) by a display matrix of FFmpeg, in right angles; return it and whether it lay on its side.

    >>> upright(np.array([[[1], [2]]]), np.array([0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]))[0].tolist()
    [[[1]], [[2]]]
    """
    if matrix is None:
        return image, False
    # a pixel at (x, y) is seen at (a x + c y, b x + d y)
    a, b, _, c, d = matrix[:5]
    transposed = bool(abs(b) > abs(a))
    if transposed:
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]), transposed


def address(path: str) -> str:
    """Return FFmpeg's URL of a file, so that a colon in its name is no protocol; URLs such as rtsp://... stay.

    >>> address("10:30.mp4"), address("rtsp://camera/1")
    ('file:10:30.mp4', 'rtsp://camera/1')
    """
    return path if "://" in path and not os.path.exists(path) else f"file:{path}"


def check(path: Path, codec: str | None, quality: int | None) -> tuple[Container, Codec]:
    """Return what writes this file. Raises UserError where the container, the codec and the quality do not fit."""
    container = CONTAINERS.get(path.suffix.lower())
    if container is None:
        raise UserError(f"OUT must end in one of {', '.join(CONTAINERS)}, got {str(path)!r}")
    name = codec or container.codec
    chosen = CODECS[name]
    if quality is not None and (chosen.quality is None or quality > chosen.worst):
        wanted = "is not for it, it loses nothing" if chosen.quality is None else f"must be 0 to {chosen.worst}"
        raise UserError(f"--quality of {name} {wanted}, got {quality}")
    try:
        with av.open(io.BytesIO(), "w", format=container.format) as trial:
            trial.add_stream(chosen.encoder)
    except av.codec.codec.UnknownCodecError as error:
        raise UserError(f"--codec {name} needs a PyAV whose FFmpeg has {chosen.encoder}") from error
    except ValueError as error:
        raise UserError(f"--codec {name} does not go into {path.suffix}; .mkv takes any") from error
    return container, chosen


def reason(error: BaseException) -> str:
    """Return why a file could not be used, in one line; FFmpeg has errors that are no OSError."""
    text = getattr(error, "strerror", None)
    return plain_reason(error) if isinstance(error, OSError) or not text else text.lower()


def writing(path: Path) -> AbstractContextManager[None]:
    """Turn errors of FFmpeg and of the disk within into a UserError that names the path."""
    return as_user_error(lambda e: f"{path}: cannot be written ({reason(e)})", av.error.FFmpegError, OSError)


class Writer:
    """Writer of a video file of frames, all resized to the first one's size, and of the reader's audio.

    path: written at once, whatever its ending. Raises OSError or another error of FFmpeg.
    """

    def __init__(self, path: Path, container: Container, codec: Codec, quality: int | None, reader: Reader) -> None:
        self.reader = reader
        self.codec = codec
        # the clock of what begins later than 0 in MP4
        clock = {"movie_timescale": str(reader.time_base.denominator)} if container.options == _MP4 else {}
        self.container = av.open(f"file:{path}", "w", format=container.format, options={**container.options, **clock})
        options = dict(codec.options)
        if codec.quality is not None:
            options["crf"] = str(codec.quality if quality is None else quality)
        self.stream = self.container.add_stream(codec.encoder, rate=reader.rate, options=options)
        self.stream.pix_fmt = codec.pixels
        self.stream.codec_context.time_base = reader.time_base
        # For AAC out of transport streams, which has a header on every packet.
        self.filters: dict[int, Any] = {}
        self.audio = {stream.index: self._audio_stream(stream, container) for stream in reader.audio_streams}
        self.conversion: dict[str, int] = {}
        self.size: tuple[int, int] | None = None
        # End of the last frame, in seconds.
        self.end = Fraction(0)

    def add(self, image: np.ndarray, frame: Frame) -> None:
        """Add an image, uint8 (H, W, 3), at the time of this frame."""
        height, width = image.shape[:2]
        if self.codec.quality is not None and (height % 2 or width % 2):  # 4:2:0 has one colour for 2 x 2 pixels
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self.size is None:
            self._begin(image, (height, width))
        encoded = av.VideoFrame.from_ndarray(image, format="rgb24")
        encoded = encoded.reformat(self.stream.width, self.stream.height, self.codec.pixels, **self.conversion)
        encoded.pts, encoded.time_base, encoded.duration = frame.pts, self.reader.time_base, frame.duration
        self.container.mux(self.stream.encode(encoded))
        self.end = (frame.pts + frame.duration) * self.reader.time_base
        self._add_audio(self.end)

    def finish(self, whole: bool) -> None:
        """Write what the encoders still hold, and the audio: all of it, or up to the last frame that was added."""
        self._add_audio(None if whole else self.end)
        self.container.mux(self.stream.encode(None))
        for stream, encoded in self.audio.values():
            if encoded:
                self.container.mux(stream.encode(None))
        self.container.close()

    def close(self) -> None:
        """Give up: the part that is written stays as it is."""
        with suppress(av.error.FFmpegError, OSError):
            self.container.close()

    def _begin(self, image: np.ndarray, size: tuple[int, int]) -> None:
        first, context = self.reader.first, self.stream.codec_context
        self.size = size
        context.height, context.width = image.shape[:2]
        if image.shape[:2] != size:
            self.reader.notes.append(
                f"{size[1]} x {size[0]} is odd: the file has {context.width} x {context.height}, its edge twice"
            )
        shape = self.reader.stream.sample_aspect_ratio or Fraction(1)
        context.sample_aspect_ratio = 1 / shape if self.reader.transposed else shape
        if self.codec.quality is not None:  # colours go back the way they came, so that a player shows them alike
            matrix = BT709 if first.colorspace == RGB else first.colorspace
            self.conversion = {"dst_colorspace": matrix, "dst_color_range": STUDIO_RANGE}
            context.colorspace, context.color_range = matrix, STUDIO_RANGE
            source = self.reader.stream.codec_context
            context.color_primaries, context.color_trc = source.color_primaries, source.color_trc

    def _audio_stream(self, stream: Any, container: Container) -> tuple[Any, bool]:
        """Return the stream for this one's audio, and whether the audio has to be encoded anew."""
        try:
            kept = self.container.add_stream_from_template(stream)
            if stream.codec_context.name == "aac" and not stream.codec_context.extradata:
                self.filters[stream.index] = BitStreamFilterContext("aac_adtstoasc", stream)
            return kept, False
        except ValueError:
            self.reader.notes.append(f"sound in {stream.codec_context.name} is encoded anew, as {container.audio}")
            layout = "mono" if stream.codec_context.channels == 1 else "stereo"
            return self.container.add_stream(container.audio, rate=48_000, layout=layout), True

    def _add_audio(self, end: Fraction | None) -> None:
        waiting = self.reader.audio
        while waiting and (end is None or waiting[0].pts * waiting[0].time_base < end):
            packet = waiting.popleft()
            stream, encoded = self.audio[packet.stream_index]
            if not encoded:
                bare = self.filters.get(packet.stream_index)
                for kept in [packet] if bare is None else bare.filter(packet):
                    kept.stream = stream
                    self.container.mux(kept)
                continue
            with suppress(av.error.InvalidDataError):  # damaged: silence
                for frame in packet.decode():
                    self.container.mux(stream.encode(frame))
