"""Draw receptive fields as images, with Pillow only."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .field import Box, Field, Fields

# Matplotlib's colour map inferno (CC0) at ten evenly spaced points.
INFERNO = ("000004", "1b0c42", "4b0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9a06", "f7d03c", "fcffa4")
# Powers of ten below the maximum that the colours span; smaller values are black.
DECADES = 4
# Pixels of a map's longer side.
SIDE = 480
# Pixels.
MARGIN, GAP, BAR = 28, 24, 14
# Colours of the background, the text and the scale.
PAPER, TEXT, FAINT = (21, 23, 28), (240, 240, 236), (158, 162, 170)
# Colours of the discs by share, and of the theoretical field.
DISC, BOX = {50: (255, 255, 255), 95: (126, 214, 255)}, (150, 220, 140)


def draw(title: str, fields: Fields) -> np.ndarray:
    """Draw the maps before and after CRP side by side on one scale, with their figures: uint8 (height, width, 3).

    >>> import torch
    >>> from lwrn_fast.receptive import field
    >>> spot = field(torch.ones(8, 8), Box(0, 0, 8, 8))
    >>> draw("all of it", Fields(spot, spot, (0, 0), (1, 1))).shape
    (684, 1130, 3)
    """
    height, width = fields.before.map.shape
    scale = SIDE / max(height, width)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    panel = max(wide, 300)
    top, below = 86, 118
    page = Image.new("RGB", (2 * MARGIN + 2 * panel + 2 * GAP + BAR + 52, top + tall + below), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, 18), title, TEXT, _font(21))
    maximum = max(_values(each, (tall, wide)).max() for each in fields[:2])
    for i, (name, each) in enumerate((("before CRP", fields.before), ("after CRP", fields.after))):
        left = MARGIN + i * (panel + GAP)
        pen.text((left, top - 28), name, TEXT, _font(17))
        page.paste(_panel(each, (tall, wide), scale, maximum), (left, top))
        _figures(pen, (left, top + tall + 12), each, height * width)
    _colour_bar(page, pen, (MARGIN + 2 * (panel + GAP), top), tall)
    return np.array(page)


def _values(field: Field, size: tuple[int, int]) -> np.ndarray:
    """Return the map resized to its panel."""
    image = Image.fromarray(field.map.numpy())
    return np.array(image.resize((size[1], size[0]), Image.Resampling.BOX))


def _panel(field: Field, size: tuple[int, int], scale: float, maximum: float) -> Image.Image:
    """Draw one map with its discs and its theoretical field. scale: panel pixels per pixel. maximum: the brightest."""
    level = 1 + np.log10(np.maximum(_values(field, size) / maximum, 10.0**-DECADES)) / DECADES
    smooth = 3  # lines are drawn this much larger and reduced
    image = Image.fromarray(_colours(level)).resize((smooth * size[1], smooth * size[0]), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(image)
    _dashed_box(pen, field.theoretical, smooth * scale, smooth)
    row, column = ((centre + 0.5) * scale * smooth for centre in field.centre)
    for share, radius in field.radius.items():
        r = radius * scale * smooth
        pen.ellipse((column - r, row - r, column + r, row + r), outline=DISC[share], width=2 * smooth)
    return image.resize((size[1], size[0]), Image.Resampling.LANCZOS)


def _colours(level: np.ndarray) -> np.ndarray:
    """Map levels from 0 to 1 (H, W) to colours, uint8 (H, W, 3)."""
    table = np.array([tuple(bytes.fromhex(colour)) for colour in INFERNO], np.float64)
    points = np.linspace(0, 1, len(table))
    return np.stack([np.interp(level, points, table[:, i]) for i in range(3)], -1).round().astype(np.uint8)


def _dashed_box(pen: ImageDraw.ImageDraw, box: Box, scale: float, smooth: int) -> None:
    inset = smooth  # keeps a box of the whole image visible
    left, right = box.left * scale + inset, box.right * scale - 1 - inset
    top, bottom = box.top * scale + inset, box.bottom * scale - 1 - inset
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        count = max(1, math.ceil(max(abs(x1 - x0), abs(y1 - y0)) / (9 * smooth)))
        for i in range(0, count, 2):
            begin, end = i / count, min(1, (i + 1) / count)
            line = (x0 + (x1 - x0) * begin, y0 + (y1 - y0) * begin, x0 + (x1 - x0) * end, y0 + (y1 - y0) * end)
            pen.line(line, fill=BOX, width=2 * smooth)


def _figures(pen: ImageDraw.ImageDraw, at: tuple[int, int], field: Field, pixels: int) -> None:
    x, y = at
    for share in field.area:
        pen.ellipse((x, y + 4, x + 10, y + 14), outline=DISC[share], width=2)
        area = f"{field.area[share]} ({100 * field.area[share] / pixels:.1f} %)"
        line = f"{share} % of the gradient: radius {field.radius[share]:.0f} px, fewest pixels {area}"
        pen.text((x + 20, y), line, TEXT, _font(14))
        y += 24
    box = field.theoretical
    for dash in (0, 6):
        pen.line((x + dash, y + 9, x + dash + 3, y + 9), fill=BOX, width=2)
    tall, wide = box.bottom - box.top, box.right - box.left
    whole = ", all of the image" if tall * wide == pixels else ""
    pen.text((x + 20, y), f"theoretical field: {tall} x {wide} px{whole}", TEXT, _font(14))


def _colour_bar(page: Image.Image, pen: ImageDraw.ImageDraw, at: tuple[int, int], tall: int) -> None:
    column = np.linspace(1, 0, tall)[:, None].repeat(BAR, 1)
    page.paste(Image.fromarray(_colours(column)), at)
    for decade in range(DECADES + 1):
        y = at[1] + round(decade * (tall - 1) / DECADES)
        tick = "largest" if decade == 0 else f"{10.0**-decade:g}"
        pen.text((at[0] + BAR + 8, y), tick, FAINT, _font(13), anchor="lm")


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
