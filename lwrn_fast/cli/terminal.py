"""What every command shares: how arguments are parsed, how errors are said, and progress bars."""

import argparse
import importlib
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the usage, which --help shows."""
        say_error(message)
        sys.exit(2)


def exit_code(command: Callable[[], int]) -> int:
    """What the command returns, or the code for Ctrl-C, for a closed pipe, and for an error that nobody thought of."""
    try:
        with _any_text_on(sys.stdout), _any_text_on(sys.stderr), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\b")  # about metadata, or said in our own words
            code = command()
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        say_error("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has gone, and Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except Exception as error:
        if os.environ.get("LWRN_FAST_TRACEBACK"):
            raise
        lines = str(error).strip().splitlines() or ["no reason given"]
        return say_error(f"{type(error).__name__}: {lines[0]} (unexpected; LWRN_FAST_TRACEBACK=1 shows where)")


@contextmanager
def _any_text_on(stream: Any) -> Iterator[None]:
    """What the stream cannot encode, such as names that are not UTF-8, is written with backslashes within."""
    before = getattr(stream, "errors", None)
    if before is None or not hasattr(stream, "reconfigure"):
        yield
        return
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with suppress(OSError, ValueError):  # the reader has gone, or somebody has closed it
            stream.reconfigure(errors=before)


def one_line(text: str) -> str:
    """The text with backslashes for what would begin a line, move the cursor or turn the direction of writing.

    >>> one_line("a\\nb \\x1b[2J \\u00e9")
    'a\\\\nb \\\\x1b[2J \u00e9'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


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
    line = one_line(f"lwrn-fast: error: {message}")
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
