"""Endings of image files: those that this Pillow and its plug-ins can read, and those of other images."""

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
# Commands that make these readable.
REMEDIES = {
    **dict.fromkeys(HEIF, "pip install pillow-heif"),
    **dict.fromkeys(AVIF, "pip install -U pillow"),
}


def _readable() -> tuple[str, ...]:
    endings = list(ALWAYS)
    if features.check_module("webp"):
        endings += WEBP
    if "avif" in features.modules and features.check_module("avif"):
        endings += AVIF
    if features.check_codec("jpg_2000"):
        endings += JPEG_2000
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
        endings += HEIF
    except Exception:  # absent, or for another Pillow
        pass
    return tuple(sorted(endings))


# Endings of the files that are taken from folders, in lower case.
EXTENSIONS = _readable()
# Endings of other images, whose number is reported as skipped.
UNREADABLE = frozenset((*HEIF, *AVIF, *WEBP, *JPEG_2000, *NEVER)) - frozenset(EXTENSIONS)


def skipped(counts: Mapping[str, int]) -> str:
    """Return a line about images that are skipped, by ending.

    >>> skipped({".cr2": 1, ".nef": 2})
    '3 images are skipped, Pillow cannot read them here: 1 .cr2, 2 .nef'
    """
    total = sum(counts.values())
    remedies = [f" ({REMEDIES[ending]})" if ending in REMEDIES else "" for ending in sorted(counts)]
    each = (f"{counts[ending]} {ending}{remedy}" for ending, remedy in zip(sorted(counts), remedies, strict=True))
    verb = "image is skipped, Pillow cannot read it" if total == 1 else "images are skipped, Pillow cannot read them"
    return f"{total} {verb} here: {', '.join(each)}"
