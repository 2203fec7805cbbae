"""The command `lwrn-fast profile`."""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from .. import backends, models
from ..io import atomic
from .command import Command
from .measuring import measure_and_write, progress
from .numbers import not_negative, whole
from .options import adder, fill


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = adder(parser)
    add("network", choices=models.NETWORKS, metavar="MODEL", help=", ".join(models.NETWORKS))
    add("--checkpoint", help="weights, .pth.tar or .safetensors; default: random ones")
    add("--size", default=(512, 512))
    add("--batch", type=whole, default=1, metavar="N", help="images of a run; default: %(default)s")
    add("--dtype", help="default: %(default)s")
    add("--threads")
    add(
        "--backend",
        action="append",
        choices=("all", *backends.BACKENDS[1:]),
        help="may be repeated; default: all that can run on the device",
    )
    add("--device", help="default: the one that the backends named are for, or cpu")
    add("--seconds", type=not_negative, default=2.0, metavar="S", help="measured time of each; default: %(default)s")
    add("--out", type=Path, metavar="DIR", help="also write profile.html, profile.json and trace.json there")


def run(arguments: argparse.Namespace) -> int:
    """Profile the model, print the tables, and write the files."""
    out: Path | None = arguments.out

    def measure() -> dict[str, Any]:
        from ..profiling import profile

        options = fill(profile.Options, arguments, names=tuple(arguments.backend or ()))
        if out is None:
            return profile.profile(options, None, progress)
        with tempfile.TemporaryDirectory() as folder:  # PyTorch writes to names in UTF-8 alone
            trace = Path(folder) / "trace.json"
            figures = profile.profile(options, trace, progress)
            with atomic.writing(out / trace.name):
                atomic.write(out / trace.name, lambda unfinished: shutil.copyfile(trace, unfinished))
        return figures

    return measure_and_write(out, ("profile.html", "profile.json", "trace.json"), measure)


COMMAND = Command("profile", "where a network's time goes, layer by layer", add_options, run)
