"""The description of a command, from which the parser is built."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command of `lwrn-fast`. `run` returns the exit code; an error that it raises becomes one line on stderr."""

    name: str
    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    # Text of the command's own --help, under the usage.
    description: str | None = None
    # Former name, which works but stands in no help text.
    alias: str | None = None
    # How to need less memory, for the error where there is not enough.
    memory_hint: str = ""
