"""Which files of a folder are images: by their endings, and by what this Pillow and its plug-ins can read."""

import importlib
from collections.abc import Mapping

from PIL import features

ALWAYS = (
    *(".apng", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff"),
)
HEIF = (".heic", ".heif", ".hif")
AVIF, WEBP, JPEG_2000 = (".avif",), (".webp",), (".j2k", ".jp2", ".jpx")
CAMERA_RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2")
NEVER = (*CAMERA_RAW, ".exr", ".hdr", ".jxl", ".psd", ".svg")
# What would make these readable.
REMEDIES = {
    **dict.fromkeys(HEIF, "pip install pillow-heif"),
    **dict.fromkeys(AVIF, "pip install -U pillow"),
}


def _readable() -> tuple[str, ...]:
    found = list(ALWAYS)
    if features.check_module("webp"):
        found += WEBP
    if "avif" in features.modules and features.check_module("avif"):
        found += AVIF
    if features.check_codec("jpg_2000"):
        found += JPEG_2000
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
        found += HEIF
    except Exception:  # absent, or for another Pillow
        pass
    return tuple(sorted(found))


EXTENSIONS = _readable()
"""Endings of the files that are taken from folders, in lower case."""
UNREADABLE = frozenset((*HEIF, *AVIF, *WEBP, *JPEG_2000, *NEVER)) - frozenset(EXTENSIONS)
"""Endings of other images, which are counted, and said to be skipped."""


def skipped(counts: Mapping[str, int]) -> str:
    """One line about images that are skipped, by ending.

    >>> skipped({".cr2": 1, ".nef": 2})
    '3 images are skipped, Pillow cannot read them here: 1 .cr2, 2 .nef'
    """
    total = sum(counts.values())
    remedies = [f" ({REMEDIES[ending]})" if ending in REMEDIES else "" for ending in sorted(counts)]
    each = (f"{counts[ending]} {ending}{remedy}" for ending, remedy in zip(sorted(counts), remedies, strict=True))
    what = "image is skipped, Pillow cannot read it" if total == 1 else "images are skipped, Pillow cannot read them"
    return f"{total} {what} here: {', '.join(each)}"
