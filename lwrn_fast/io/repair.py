"""Image files without what is not the image: PNG and JPEG whose metadata keep Pillow from reading them."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

PNG = b"\x89PNG\r\n\x1a\n"
# Chunks that decide about pixels or their orientation.
PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
# Where a PNG has its colour type, and the bytes of a transparent colour in grey and in RGB.
COLOUR_TYPE = 25
TRANSPARENCY = {0: 2, 2: 6}
JPEG_START = b"\xff\xd8"
JFIF, EXIF, ADOBE, COMMENT, SCAN, END = 0xE0, 0xE1, 0xEE, 0xFE, 0xDA, 0xD9
APPLICATION = range(0xE0, 0xF0)


def without_metadata(file: BinaryIO) -> io.BytesIO | None:
    """The same image in a file without texts, profiles, previews and damaged ancillary parts.

    file: at its start. EXIF stays where it is whole. None for a format that is not known here.
    """
    head = file.read(len(PNG))
    if head == PNG:
        return io.BytesIO(PNG + b"".join(_png_chunks(head + file.read())))
    if head.startswith(JPEG_START):
        return io.BytesIO(JPEG_START + b"".join(_jpeg_segments(head + file.read())))
    return None


def _png_chunks(data: bytes) -> Iterator[bytes]:
    """The chunks of the image; an ancillary one only with a right checksum."""
    place = len(PNG)
    while max(place + 8, COLOUR_TYPE + 1) <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        critical = not kind[0] & 0x20
        whole = end <= len(data) and zlib.crc32(data[place + 4 : end - 4]) == struct.unpack_from(">I", data, end - 4)[0]
        enough = kind != b"tRNS" or length >= TRANSPARENCY.get(data[COLOUR_TYPE], 1)
        if kind in PNG_KEPT and (critical or (whole and enough)):
            yield data[place:end]  # critical ones are for the decoder to judge
        if kind == b"IEND":
            return
        place = end


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    """The segments of the first image up to its scan, and all that follows."""
    place = len(JPEG_START)
    while place + 4 <= len(data):
        marker, kind, length = struct.unpack_from(">BBH", data, place)
        if marker != 0xFF or kind in (SCAN, END):
            break
        if kind == 0xFF:  # fill
            place += 1
            continue
        segment = data[place : place + 2 + length]
        if kind != COMMENT and (kind not in APPLICATION or _decides(kind, segment[4:])):
            yield segment
        place += 2 + length
    yield data[place:]


def _decides(kind: int, content: bytes) -> bool:
    """Whether pixels or their orientation depend on an application segment, and it is long enough to be read."""
    if kind == JFIF:
        return content.startswith(b"JFIF\0") and len(content) >= 14
    if kind == ADOBE:
        return content.startswith(b"Adobe") and len(content) >= 12
    return kind == EXIF and content.startswith(b"Exif\0\0")
