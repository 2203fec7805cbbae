"""Colours of label maps: those of PASCAL VOC."""

import numpy as np


def _palette() -> np.ndarray:
    """Bits 3k, 3k + 1, 3k + 2 of the class are bit 7 - k of red, green, blue (VOC development kit, VOCcolormap.m)."""
    index = np.arange(256)[:, None]
    colours = np.zeros((256, 3), dtype=np.int64)
    for k in range(8):
        colours |= ((index >> (3 * k + np.arange(3))) & 1) << (7 - k)
    colours = colours.astype(np.uint8)
    colours.setflags(write=False)
    return colours


# Colours of the labels 0 to 255: (256, 3) uint8, red, green, blue; 255 is VOC's "ignore".
PALETTE = _palette()
