"""Removal of metadata from PNG and JPEG files that Pillow cannot read because of them."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

PNG = b"\x89PNG\r\n\x1a\n"
# Chunks that decide about pixels or their orientation.
PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
# Offset of a PNG's colour type, and bytes of a transparent colour in grey and in RGB.
COLOUR_TYPE = 25
TRANSPARENCY = {0: 2, 2: 6}
JPEG_START = b"\xff\xd8"
JFIF, EXIF, ADOBE, COMMENT, SCAN, END = 0xE0, 0xE1, 0xEE, 0xFE, 0xDA, 0xD9
APPLICATION = range(0xE0, 0xF0)


def without_metadata(file: BinaryIO) -> io.BytesIO | None:
    """Return the same image in a file without texts, profiles, previews and damaged ancillary parts.

    file: at its start. EXIF stays where it is whole. None for a format that is not known here.
    """
    head = file.read(len(PNG))
    if head == PNG:
        return io.BytesIO(PNG + b"".join(_png_chunks(head + file.read())))
    if head.startswith(JPEG_START):
        return io.BytesIO(JPEG_START + b"".join(_jpeg_segments(head + file.read())))
    return None


def _png_chunks(data: bytes) -> Iterator[bytes]:
    """Yield the chunks of the image; an ancillary one only with a right checksum."""
    offset = len(PNG)
    while max(offset + 8, COLOUR_TYPE + 1) <= len(data):
        length, name = struct.unpack_from(">I4s", data, offset)
        end = offset + 12 + length
        critical = not name[0] & 0x20
        whole = end <= len(data) and zlib.crc32(data[offset + 4 : end - 4]) == _uint32(data, end - 4)
        enough = name != b"tRNS" or length >= TRANSPARENCY.get(data[COLOUR_TYPE], 1)
        if name in PNG_KEPT and (critical or (whole and enough)):
            yield data[offset:end]  # the decoder judges critical ones
        if name == b"IEND":
            return
        offset = end


def _uint32(data: bytes, offset: int) -> int:
    return struct.unpack_from(">I", data, offset)[0]


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    """Yield the segments of the first image up to its scan, and all that follows."""
    offset = len(JPEG_START)
    while offset + 4 <= len(data):
        prefix, marker, length = struct.unpack_from(">BBH", data, offset)
        if prefix != 0xFF or marker in (SCAN, END):
            break
        if marker == 0xFF:  # fill
            offset += 1
            continue
        segment = data[offset : offset + 2 + length]
        if marker != COMMENT and (marker not in APPLICATION or _decides(marker, segment[4:])):
            yield segment
        offset += 2 + length
    yield data[offset:]


def _decides(marker: int, content: bytes) -> bool:
    """Return whether pixels or their orientation depend on an application segment that is long enough to be read."""
    if marker == JFIF:
        return content.startswith(b"JFIF\0") and len(content) >= 14
    if marker == ADOBE:
        return content.startswith(b"Adobe") and len(content) >= 12
    return marker == EXIF and content.startswith(b"Exif\0\0")
