"""Detection of video files that end too early: a download that was cut off, a full card, a camera without power."""

import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO

# Seconds by which a video may end before the length that its header states, where nothing else is known.
TOLERANCE = 1
# FFmpeg's units of a file's length per second.
MICROSECONDS = 1_000_000
# Bytes of a transport stream's packets, as broadcast, on discs, with error correction: the offset of SYNC in them.
TRANSPORT_PACKETS = {188: 0, 192: 4, 204: 0}
SYNC = 0x47
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


class Ending:
    """Record of what has been read of a file's streams, by which `cut` decides whether the file is complete."""

    def __init__(self, path: str, container: Any) -> None:
        self.path, self.container = path, container
        self.formats = container.format.name.split(",")
        # Set where the last frame was decoded from a part of its data.
        self.ends_corrupt = False
        self._corrupt: dict[int, bool] = {}
        self._reached = Fraction(0)

    def saw(self, packet: Any) -> None:
        """Note a packet, in the order of the file."""
        if not packet.size:
            return
        self._corrupt[packet.stream_index] = packet.is_corrupt
        if packet.pts is not None and packet.time_base is not None:
            self._reached = max(self._reached, (packet.pts + (packet.duration or 0)) * packet.time_base)

    def cut(self) -> bool:
        """Return whether the file is shorter than its own index and headers say; False where these say nothing."""
        if self.ends_corrupt or any(self._corrupt.values()) or self._stated() > self._reached + TOLERANCE:
            return True
        try:
            size = os.path.getsize(self.path)
            with open(self.path, "rb") as file:
                return _needed(file, self.formats, self.container) > size or _splits_a_packet(file, self.formats, size)
        except OSError:  # an address, not a file
            return False

    def length(self) -> Fraction:
        """Return the seconds that the header states; 0 where it states none."""
        if "avi" in self.formats:  # FFmpeg's own figure is that of the cut file
            streams = [s for s in self.container.streams.video if s.index in self._corrupt]
            return max((s.frames / s.average_rate for s in streams if s.frames and s.average_rate), default=Fraction(0))
        states = not {"mov", "matroska", "flv"}.isdisjoint(self.formats)
        return Fraction(self.container.duration or 0, MICROSECONDS) if states else Fraction(0)

    def _stated(self) -> Fraction:
        """Return the time in seconds at which the video ends by its header, 0 where that is not known."""
        length = self.length()
        return length and length + Fraction(max(0, self.container.start_time or 0), MICROSECONDS)


def lacks_index(path: str) -> bool:
    """Return whether this is an MP4 whose index should stand at its end and is missing."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            boxes = {name for name, end in _boxes(file) if name == b"mdat" or end <= size}
    except OSError:
        return False
    return b"mdat" in boxes and b"moov" not in boxes


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield name and end of the outermost boxes of an MP4."""
    offset, size = 0, os.fstat(file.fileno()).st_size
    while offset + 8 <= size:
        file.seek(offset)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # to the end of the file, or no box
            yield head[4:8], size
            return
        offset += length
        yield head[4:8], offset


def _needed(file: BinaryIO, formats: list[str], container: Any) -> int:
    """Return the bytes up to the end of the last packet in the index, or of the segment of a Matroska header."""
    if "matroska" in formats:
        return _matroska_end(file)
    if not {"mov", "avi"} & {*formats}:
        return 0
    streams = [*container.streams.video, *container.streams.audio]
    return max((entry.pos + entry.size for s in streams for entry in getattr(s, "index_entries", ())), default=0)


def _matroska_end(file: BinaryIO) -> int:
    """Return where the segment ends; 0 for one of unknown length, as live recordings have."""
    head = file.read(4096)
    if not head.startswith(EBML):
        return 0
    length, offset = _number(head, len(EBML))
    offset += length
    if head[offset : offset + 4] != SEGMENT:
        return 0
    length, start = _number(head, offset + 4)
    unknown = (1 << 7 * (start - offset - 4)) - 1
    return 0 if length == unknown else start + length


def _number(data: bytes, offset: int) -> tuple[int, int]:
    """Return a number of EBML, the position of whose first set bit gives its bytes, and the offset of its end."""
    first = data[offset] if offset < len(data) else 0
    count = 9 - first.bit_length()
    value = int.from_bytes(data[offset : offset + count], "big")
    return value & ((1 << 7 * count) - 1), offset + count


def _splits_a_packet(file: BinaryIO, formats: list[str], size: int) -> bool:
    """Return whether a transport stream, of packets of one length, or a Flash video ends within a packet."""
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
    """Return whether the last four bytes of a Flash video are the length that the tag before them states."""
    file.seek(max(0, size - 4))
    length = int.from_bytes(file.read(4), "big")
    if not 11 <= length <= size - 4:
        return False
    file.seek(size - 4 - length)
    return int.from_bytes(file.read(4)[1:], "big") == length - 11
