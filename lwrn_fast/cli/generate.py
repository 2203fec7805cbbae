"""The command `lwrn-fast generate`."""

import argparse
from pathlib import Path

from . import building
from .command import Command
from .numbers import whole
from .options import adder
from .terminal import progress_bar

NEEDS = "this command needs Pillow, safetensors and torchmetrics: pip install 'lwrn-fast[train]'"
MEMORY_HINT = "a smaller --batch, --crop or --scales needs less"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = adder(parser)
    add("out", type=Path, metavar="OUT", help="a new folder")
    add("--images", type=whole, default=1000, metavar="N", help="in all; default: %(default)s")
    add("--seed", help="of every pixel; default: %(default)s")
    add("--size", default=(256, 256), help="default: 256 256")


def run(arguments: argparse.Namespace) -> int:
    """Draw the images and print how many there are."""
    with building.importing(NEEDS):
        from ..training import generate
    counts = generate.generate(arguments.out, arguments.images, arguments.seed, tuple(arguments.size), progress_bar())
    print(f"{arguments.out}: " + ", ".join(f"{count} images in {split}" for split, count in counts.items()))
    return 0


COMMAND = Command("generate", "synthetic data to train on", add_options, run, memory_hint=MEMORY_HINT)
