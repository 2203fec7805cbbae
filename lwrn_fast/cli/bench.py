"""The command `lwrn-fast bench`."""

import argparse
from pathlib import Path
from typing import Any

from .. import models
from .command import Command
from .measuring import measure_and_write, progress
from .numbers import not_negative
from .options import adder, fill

PEERS = ("nchw", "eager", "compile", "onnxruntime", "openvino")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = adder(parser)
    add("--models", nargs="+", choices=models.NETWORKS, default=("rf_lw_mbv2",), metavar="MODEL", help="networks")
    add("--size", default=(512, 512))
    add("--threads")
    add("--seconds", type=not_negative, default=1.0, metavar="S", help="measured time of each; default: %(default)s")
    add("--peers", nargs="*", choices=PEERS, default=PEERS, metavar="PEER", help=f"default: {', '.join(PEERS)}")
    add("--out", type=Path, metavar="DIR", help="also write bench.html and bench.json there")


def run(arguments: argparse.Namespace) -> int:
    """Measure the models and their peers, print the tables, and write the files."""

    def measure() -> dict[str, Any]:
        from ..profiling import bench

        names, others = tuple(dict.fromkeys(arguments.models)), tuple(dict.fromkeys(arguments.peers))
        return bench.bench(fill(bench.Options, arguments, names=names, others=others), progress)

    return measure_and_write(arguments.out, ("bench.html", "bench.json"), measure)


COMMAND = Command("bench", "networks beside PyTorch and other engines", add_options, run)
