"""The map from values and colours in label files to classes: `--map-labels`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .. import models
from ..errors import UserError
from .augment import IGNORE

OPTION = "--map-labels"
# Modes of label files: grey values, indices of a palette, red, green and blue.
GREY, PALETTE, COLOUR = "grey", "palette", "colour"
# The maximum value in a label file of 16 bits.
MAX_VALUE = 65535

_COLOUR = re.compile(r"#?([0-9a-fA-F]{6}):(\d{1,3})")
_VALUES = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?:(\d{1,3})(?:-(\d{1,3}))?")


@dataclass(frozen=True)
class LabelMap:
    """Classes of values and of colours, 0xRRGGBB; an unnamed value is its own class, an unnamed colour has none.

    by_colour: grey files are read as colours too, because the map names only colours.

    >>> parse("255:1").classes(GREY, [0, 255])
    [0, 1]
    >>> parse("000000:0,c00080:1").classes(COLOUR, [0xC00080, 0x123456])
    [1, None]
    """

    values: Mapping[int, int] = field(default_factory=dict)
    colours: Mapping[int, int] = field(default_factory=dict)
    by_colour: bool = False

    def classes(self, mode: str, values: Sequence[int], colours: Sequence[int] = ()) -> list[int | None]:
        """Return the class of each value, None for a colour without one. colours: those of a palette's values."""
        if mode == GREY and self.by_colour:
            mode, values = COLOUR, [grey(value) for value in values]
        if mode == PALETTE and self.colours:
            mode, values = COLOUR, colours
        if mode == COLOUR:
            return [self.colours.get(value) for value in values]
        return [self.values.get(value, value) for value in values]


def parse(text: str) -> LabelMap:
    """Parse a map such as "255:1", "0:255,1-150:0-149", "ff0000:1,000000:0", "voc" or "cityscapes".

    VALUE:CLASS, FIRST-LAST:CLASS, FIRST-LAST:FIRST-LAST, RRGGBB:CLASS and names of PRESETS, with commas between them;
    later ones win. Raises UserError.
    """
    values: dict[int, int] = {}
    colours: dict[int, int] = {}
    preset = False
    for part in (part.strip() for part in text.split(",")):
        if part in PRESETS:
            preset = True
            values |= PRESETS[part].values
            colours |= PRESETS[part].colours
        elif match := _COLOUR.fullmatch(part):
            colours[int(match[1], 16)] = int(match[2])
        elif match := _VALUES.fullmatch(part):
            values |= _range(part, *match.groups())
        else:
            raise UserError(
                f"{OPTION}: expected VALUE:CLASS such as 255:1, a range such as 1-150:0-149, RRGGBB:CLASS such as "
                f"ff0000:1, or {' or '.join(PRESETS)}, got {part!r}"
            )
    largest = max([*values.values(), *colours.values()])
    if largest > IGNORE:
        raise UserError(f"{OPTION}: classes are 0 to {IGNORE - 1}, and {IGNORE} for what is ignored, got {largest}")
    return LabelMap(values, colours, by_colour=bool(colours) and not values and not preset)


def _range(part: str, first: str, last: str | None, to: str, end: str | None) -> dict[int, int]:
    """Return the classes `to` to `end` of the values `first` to `last`. part: the text, for errors."""
    values = range(int(first), int(last or first) + 1)
    if not values or values[-1] > MAX_VALUE:
        raise UserError(f"{OPTION}: values are 0 to {MAX_VALUE}, the smaller one first, got {part!r}")
    if end is None:
        return dict.fromkeys(values, int(to))
    classes = range(int(to), int(end) + 1)
    if len(classes) != len(values):
        raise UserError(f"{OPTION}: {len(values)} values cannot have {len(classes)} classes, got {part!r}")
    return dict(zip(values, classes, strict=True))


def packed(colour: Sequence[int] | np.ndarray) -> int:
    """Return 0xRRGGBB of red, green and blue.

    >>> hex(packed((255, 128, 0)))
    '0xff8000'
    """
    red, green, blue = (int(channel) for channel in colour)
    return red << 16 | green << 8 | blue


def grey(value: int) -> int:
    """Return 0xRRGGBB of a grey value, or -1, which is no colour, of a value beyond 8 bits."""
    return value * 0x010101 if 0 <= value <= 255 else -1


def _voc() -> LabelMap:
    classes = [*range(len(models.CLASSES)), IGNORE]
    return LabelMap(colours={packed(models.PALETTE[label]): label for label in classes})


# Cityscapes' evaluated classes in the order of trainIds: labelId and colour. Its other labelIds are ignored.
_CITYSCAPES = (
    *((7, 0x804080), (8, 0xF423E8), (11, 0x464646), (12, 0x66669C), (13, 0xBE9999), (17, 0x999999), (19, 0xFAAA1E)),
    *((20, 0xDCDC00), (21, 0x6B8E23), (22, 0x98FB98), (23, 0x4682B4), (24, 0xDC143C), (25, 0xFF0000), (26, 0x00008E)),
    *((27, 0x000046), (28, 0x003C64), (31, 0x005064), (32, 0x0000E6), (33, 0x770B20)),
)
_CITYSCAPES_IGNORED = (
    *(0x000000, 0x6F4A00, 0x510051, 0xFAAAA0, 0xE6968C, 0xB4A5B4, 0x966464, 0x96785A, 0x00005A, 0x00006E),
)


def _cityscapes() -> LabelMap:
    ids = dict.fromkeys(range(34), IGNORE) | {label: i for i, (label, _) in enumerate(_CITYSCAPES)}
    colours = dict.fromkeys(_CITYSCAPES_IGNORED, IGNORE) | {colour: i for i, (_, colour) in enumerate(_CITYSCAPES)}
    return LabelMap(ids, colours)


# Maps by name: PASCAL VOC's colours; Cityscapes' labelIds, and its colours.
PRESETS = {"voc": _voc(), "cityscapes": _cityscapes()}
