"""The command `lwrn-fast train`."""

import argparse
from pathlib import Path

from . import building, terminal
from .command import Command
from .generate import MEMORY_HINT, NEEDS
from .numbers import natural, not_negative, positive, whole
from .options import adder, fill


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = adder(parser)
    add("data", type=Path, metavar="DATA", help="train/images and train/labels, or images and labels, or VOC's layout")
    add("--out", required=True, type=Path, metavar="DIR", help="where weights, metrics and the state to resume from go")
    add("--val", type=Path, metavar="DIR", help="data to validate with; default: DATA's split val, if it has one")
    add("--model")
    add("--checkpoint", help="weights to start from; default: random ones")
    add("--weights")
    add("--num-classes", help="default: as classes.txt or the checkpoint says; 1: one logit")
    add("--map-labels")
    add("--epochs", type=whole, default=50, metavar="N", help="default: %(default)s")
    add("--batch", type=whole, default=8, metavar="N", help="images of a step, of all processes; default: %(default)s")
    add("--crop", type=whole, default=256, metavar="N", help="pixels of a side; default: %(default)s")
    add("--scales", nargs=2, type=positive, default=(0.5, 2.0), metavar=("LEAST", "MOST"), help="default: 0.5 2")
    add("--no-flip", dest="flip", action="store_false", help="no mirrored images")
    add("--encoder-lr", type=not_negative, default=5e-4, metavar="X", help="learning rate; default: %(default)s")
    add("--decoder-lr", type=not_negative, default=5e-3, metavar="X", help="learning rate; default: %(default)s")
    add("--momentum", type=not_negative, default=0.9, metavar="X", help="default: %(default)s")
    add("--weight-decay", type=not_negative, default=1e-5, metavar="X", help="default: %(default)s")
    add("--power", type=not_negative, default=0.9, metavar="X", help="of the poly schedule; default: %(default)s")
    add("--warmup", type=natural, default=0, metavar="STEPS", help="in which the rates rise; default: %(default)s")
    add("--clip", type=not_negative, default=0.0, metavar="NORM", help="of all gradients; 0 for any; default: 0")
    add("--amp", choices=("off", "bf16", "f16"), default="off", help="automatic mixed precision; default: %(default)s")
    add("--freeze-bn", action="store_true", help="leave the statistics of batch normalisations as they are")
    add("--seed")
    add("--workers", type=natural, default=0, metavar="N", help="processes that read data; default: %(default)s")
    add("--device")
    add("--backend")
    add("--save-every", type=whole, default=100, metavar="STEPS", help="and after every epoch; default: %(default)s")
    add("--half", action="store_true", help="export weights in float16: files of half the size")
    add("--tensorboard", action="store_true", help="also write DIR/tensorboard")
    add("--resume", action="store_true", help="continue the run in DIR, with the same options; or begin it")


def run(arguments: argparse.Namespace) -> int:
    """Train, or continue to."""
    with building.importing(NEEDS):
        from ..training import loop
    loop.train(fill(loop.Options, arguments), terminal.say, terminal.bar)
    return 0


COMMAND = Command("train", "train a network, or continue to", add_options, run, memory_hint=MEMORY_HINT)
