"""The command `lwrn-fast eval`."""

import argparse
from pathlib import Path

from . import building
from .command import Command
from .generate import MEMORY_HINT, NEEDS
from .numbers import positive
from .options import adder, fill
from .terminal import progress_bar, say, say_error


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = adder(parser)
    add("data", type=Path, metavar="DATA", help="as for train")
    add("--checkpoint", required=True, help="weights, .pth.tar or .safetensors")
    add("--weights")
    add("--split", default="val", metavar="NAME", help="of DATA; default: %(default)s")
    add("--model", help="network; default: the checkpoint's")
    add("--map-labels")
    add("--scales", nargs="+", type=positive, default=(1.0,), metavar="S", help="results are averaged; default: 1")
    add("--flip", action="store_true", help="average with the mirrored image's result")
    add("--dtype")
    add("--device")
    add("--backend")
    add("--confusion", action="store_true", help="also print the confusion matrix")
    add("--out", type=_table_file, metavar="FILE", help="also write the scores, as .json or .csv")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print the scores; return 2 where an image failed."""
    with building.importing(NEEDS):
        from ..training import evaluate
    job = fill(evaluate.Job, arguments, predict=fill(evaluate.Options, arguments))
    return 2 if evaluate.run(job, say, say_error, progress_bar()) else 0


def _table_file(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".json", ".csv"):
        raise argparse.ArgumentTypeError(f"must end in .json or .csv, got {text!r}")
    return path


COMMAND = Command("eval", "mean IoU of a checkpoint, and more", add_options, run, memory_hint=MEMORY_HINT)
