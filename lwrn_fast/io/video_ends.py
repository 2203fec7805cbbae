"""Whether a video file ends where it should: a download that was cut off, a full card, a camera without power."""

import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO

# Seconds by which a film may end before the length that its header states, where nothing else tells.
TOLERANCE = 1
# FFmpeg's unit of a file's length.
MICROSECONDS = 1_000_000
# Bytes of a transport stream's packets, as broadcast, on discs, with error correction; each begins with SYNC.
TRANSPORT_PACKETS = {188: 0, 192: 4, 204: 0}
SYNC = 0x47
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


class Ending:
    """What has been read of a file's streams, by which `cut` tells whether something is missing behind it."""

    def __init__(self, path: str, container: Any) -> None:
        self.path, self.container = path, container
        self.formats = container.format.name.split(",")
        self.ends_corrupt = False
        """Whether the last frame was made of a part of its data."""
        self._corrupt: dict[int, bool] = {}
        self._reached = Fraction(0)

    def saw(self, packet: Any) -> None:
        """A packet, in the order of the file."""
        if not packet.size:
            return
        self._corrupt[packet.stream_index] = packet.is_corrupt
        if packet.pts is not None and packet.time_base is not None:
            self._reached = max(self._reached, (packet.pts + (packet.duration or 0)) * packet.time_base)

    def cut(self) -> bool:
        """Whether the file is shorter than its own index and headers say; false where these say nothing."""
        if self.ends_corrupt or any(self._corrupt.values()) or self._stated() > self._reached + TOLERANCE:
            return True
        try:
            size = os.path.getsize(self.path)
            with open(self.path, "rb") as file:
                return _needed(file, self.formats, self.container) > size or _splits_a_packet(file, self.formats, size)
        except OSError:  # no file, but an address
            return False

    def length(self) -> Fraction:
        """Seconds that the header states; 0 where it states none."""
        if "avi" in self.formats:  # FFmpeg's own figure is already that of the cut file
            streams = [s for s in self.container.streams.video if s.index in self._corrupt]
            return max((s.frames / s.average_rate for s in streams if s.frames and s.average_rate), default=Fraction(0))
        states = not {"mov", "matroska", "flv"}.isdisjoint(self.formats)
        return Fraction(self.container.duration or 0, MICROSECONDS) if states else Fraction(0)

    def _stated(self) -> Fraction:
        """The time at which the film should end by its header, 0 where that is not said."""
        length = self.length()
        return length and length + Fraction(max(0, self.container.start_time or 0), MICROSECONDS)


def lacks_index(path: str) -> bool:
    """Whether this is an MP4 whose index was to be written at its end, and never was."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            boxes = {kind for kind, end in _boxes(file) if kind == b"mdat" or end <= size}
    except OSError:
        return False
    return b"mdat" in boxes and b"moov" not in boxes


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind and end of the outermost boxes of an MP4, as far as there are any."""
    place, size = 0, os.fstat(file.fileno()).st_size
    while place + 8 <= size:
        file.seek(place)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # to the end of the file, or no box
            yield head[4:8], size
            return
        place += length
        yield head[4:8], place


def _needed(file: BinaryIO, formats: list[str], container: Any) -> int:
    """Bytes up to the end of the last packet that the index has, or of all that a Matroska header spans."""
    if "matroska" in formats:
        return _matroska_end(file)
    if not {"mov", "avi"} & {*formats}:
        return 0
    streams = [*container.streams.video, *container.streams.audio]
    return max((entry.pos + entry.size for s in streams for entry in getattr(s, "index_entries", ())), default=0)


def _matroska_end(file: BinaryIO) -> int:
    """Where the segment ends; 0 for one of unknown length, as live recordings have."""
    head = file.read(4096)
    if not head.startswith(EBML):
        return 0
    length, place = _number(head, len(EBML))
    place += length
    if head[place : place + 4] != SEGMENT:
        return 0
    length, start = _number(head, place + 4)
    unknown = (1 << 7 * (start - place - 4)) - 1
    return 0 if length == unknown else start + length


def _number(data: bytes, place: int) -> tuple[int, int]:
    """A number of EBML, whose first bit that is set tells its bytes, and where it ends."""
    first = data[place] if place < len(data) else 0
    count = 9 - first.bit_length()
    value = int.from_bytes(data[place : place + count], "big")
    return value & ((1 << 7 * count) - 1), place + count


def _splits_a_packet(file: BinaryIO, formats: list[str], size: int) -> bool:
    """Whether a transport stream, of packets of one length, or a Flash video ends within a packet."""
    if "flv" in formats:
        return not _ends_with_a_tag(file, size)
    if "mpegts" not in formats:
        return False
    file.seek(0)
    head = file.read(5 * max(TRANSPORT_PACKETS))
    for length, offset in TRANSPORT_PACKETS.items():
        if all(byte == SYNC for byte in head[offset::length]):
            return size % length != 0
    return False


def _ends_with_a_tag(file: BinaryIO, size: int) -> bool:
    """Whether the last four bytes of a Flash video are the length of the tag before them, which says the same."""
    file.seek(max(0, size - 4))
    length = int.from_bytes(file.read(4), "big")
    if not 11 <= length <= size - 4:
        return False
    file.seek(size - 4 - length)
    return int.from_bytes(file.read(4)[1:], "big") == length - 11
