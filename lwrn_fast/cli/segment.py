"""The command `lwrn-fast segment`."""

import argparse
from pathlib import Path

from . import building
from .command import Command
from .numbers import whole
from .options import add_input_size, adder, fill
from .terminal import one_line, progress_bar, say_error, say_untrained

NEEDS = "the command line needs Pillow: pip install pillow"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = adder(parser)
    add("paths", nargs="+", metavar="PATHS", help="images, and folders whose images are taken")
    add("--out", required=True, type=Path, metavar="DIR", help="where the palette PNGs go")
    add("--model")
    add("--checkpoint")
    add("--weights")
    add("--num-classes")
    add("--backend")
    add("--dtype")
    add("--device")
    add_input_size(parser, "image")
    limit = "of an image, and of the network's input; default: 2^29 (LWRN_FAST_MAX_PIXELS), 89478485"
    add("--max-pixels", type=whole, metavar="N", help=limit)
    add("--overlay", action="store_true", help="also the photograph with the labels' colours over it")
    add("--verify", action="store_true", help="compare with the reference backend in float32")
    add("--recursive", action="store_true", help="also folders below, which DIR then has too")
    add("--resume", action="store_true", help="keep DIR/manifest.jsonl, and skip what it has as done")


def run(arguments: argparse.Namespace) -> int:
    """Segment the images and print the closing table; return 2 where an image failed."""
    with building.importing(NEEDS):
        from ..inference import folders, segment
    options = fill(segment.Options, arguments, resume=arguments.resume or folders.processes() > 1)
    speaks = folders.rank() == 0  # one of several processes
    segment.check_backend(options.backend)
    model, trained = building.build(options, announce=speaks)
    work = folders.run if options.resume else segment.run
    report = work(arguments.paths, options, model, say_error, progress_bar() if speaks else iter)
    if not speaks:
        return 0  # torchrun would end the others; the first one tells that images failed, and is the last to end
    if not trained:
        say_untrained()
    for line in report.renamed:
        print(one_line(line))
    if report.skipped is not None:
        print(report.skipped)
    print(report.table(verified=options.verify))
    if report.folder is not None:
        print(report.folder)
    return 2 if report.errors else 0


COMMAND = Command("segment", "label maps of photographs", add_options, run)
