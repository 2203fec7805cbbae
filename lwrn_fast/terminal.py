"""What every command shares: how arguments are parsed, how errors are said, and progress bars."""

import argparse
import importlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the usage, which --help shows."""
        say_error(message)
        sys.exit(2)


def exit_code(command: Callable[[], int]) -> int:
    """What the command returns, or the code for Ctrl-C and for a closed pipe."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        say_error("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has gone, and Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2


def progress_bar() -> Callable[[Sequence], Iterable]:
    """A progress bar for more than one item, where tqdm is there and somebody looks."""
    tqdm = tqdm_class()
    if tqdm is None:
        return iter
    return lambda items: tqdm(items, unit="image", leave=False, disable=None if len(items) > 1 else True)


def say(message: str) -> None:
    """Lines on stdout, above a progress bar."""
    tqdm = tqdm_class()
    if tqdm is None:
        print(message, flush=True)
    else:
        tqdm.write(message)
        sys.stdout.flush()


def say_error(message: str) -> int:
    """One line on stderr, above a progress bar; the exit code it stands for."""
    line = f"lwrn-fast: error: {message}"
    tqdm = tqdm_class()
    if tqdm is None:
        print(line, file=sys.stderr)
    else:
        tqdm.write(line, file=sys.stderr)
    return 2


def tqdm_class() -> Any:
    """The progress bar's class, None where the package is absent."""
    try:
        return importlib.import_module("tqdm").tqdm
    except ImportError:
        return None


def whole(text: str) -> int:
    """A whole number of at least 1, as argparse wants its types.

    >>> whole("12")
    12
    """
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return value


def natural(text: str) -> int:
    """A whole number of at least 0."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")
    return int(text)


def positive(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value


def not_negative(text: str) -> float:
    """A finite number of at least 0."""
    value = _number(text)
    if not (0 <= value < math.inf):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
