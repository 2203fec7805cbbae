"""The terminal: parsing arguments, exit codes, error lines and progress bars, the same for every command."""

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from ..errors import ToldError, UserError, first_line

# Parts of PyTorch's messages where a CPU or a GPU has no memory left.
MEMORY_WORDS = ("out of memory", "allocate memory")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage that --help shows."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        say_error(message)
        sys.exit(2)


def exit_code(command: Callable[[], int], memory_hint: str = "") -> int:
    """Run a command and return its exit code; every error that it raises becomes one line on stderr.

    memory_hint: how to need less memory. The code is `UserError.exit_code`, 2 for other errors and where the reader of
    our output has gone, and 130 after Ctrl-C. Errors other than UserError keep their traceback where
    LWRN_FAST_TRACEBACK is set or Python runs with -X dev.
    """
    try:
        with _any_text_on(sys.stdout), _any_text_on(sys.stderr), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\b")  # about metadata, or an error of our own follows
            code = _run(command, memory_hint)
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        say_error("interrupted")
        return 130
    except BrokenPipeError:  # Python would complain about it once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2


def _run(command: Callable[[], int], memory_hint: str) -> int:
    try:
        return command()
    except ToldError as error:
        return error.exit_code
    except UserError as error:
        say_error(str(error))
        return error.exit_code
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get("LWRN_FAST_TRACEBACK") or sys.flags.dev_mode:
            raise
        say_error(_explain(error, memory_hint))
        return 2


def _explain(error: Exception, memory_hint: str) -> str:
    """Return the line for an error that is no UserError."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # PyTorch puts the traceback of a data loader's worker into the message
    line = lines[-1] if lines[0].startswith("Caught ") and len(lines) > 1 else lines[0]
    if memory_hint and (isinstance(error, MemoryError) or any(words in line for words in MEMORY_WORDS)):
        return f"not enough memory; {memory_hint} ({line})"
    if isinstance(error, OSError) and error.strerror:
        return ("" if error.filename is None else f"{error.filename}: ") + error.strerror.lower()
    if isinstance(error, MemoryError):
        return first_line(error)
    if isinstance(error, (RuntimeError, OSError)):  # too large for this machine, or not for this backend
        return line
    return f"{type(error).__name__}: {line} (unexpected; LWRN_FAST_TRACEBACK=1 shows where)"


@contextmanager
def _any_text_on(stream: Any) -> Iterator[None]:
    """Let the stream write what it cannot encode, such as names that are not UTF-8, with backslashes."""
    before = getattr(stream, "errors", None)
    if before is None or not hasattr(stream, "reconfigure"):
        yield
        return
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with suppress(OSError, ValueError):  # the reader has gone, or the stream is closed
            stream.reconfigure(errors=before)


def one_line(text: str) -> str:
    """Return the text with backslashes for what would begin a line, move the cursor or turn the direction of writing.

    >>> one_line("a\\nb \\x1b[2J \\u00e9")
    'a\\\\nb \\\\x1b[2J \u00e9'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def bar(items: Iterable, length: int | None = None, unit: str = "it", disable: bool | None = None) -> Iterable:
    """Wrap items in a progress bar; return them as they are without tqdm. disable: None where stderr is no terminal."""
    tqdm = _tqdm()
    return items if tqdm is None else tqdm(items, total=length, unit=unit, leave=False, disable=disable)


def progress_bar() -> Callable[[Sequence], Iterable]:
    """Return what wraps a sequence of images in a progress bar, which is shown for more than one item."""
    if _tqdm() is None:
        return iter
    return lambda items: bar(items, unit="image", disable=None if len(items) > 1 else True)


def say(message: str) -> None:
    """Print lines on stdout, above a progress bar."""
    tqdm = _tqdm()
    if tqdm is None:
        print(message, flush=True)
    else:
        tqdm.write(message)
        sys.stdout.flush()


def say_error(message: str) -> None:
    """Print one line on stderr, above a progress bar."""
    line = one_line(f"lwrn-fast: error: {message}")
    tqdm = _tqdm()
    if tqdm is None:
        print(line, file=sys.stderr)
    else:
        tqdm.write(line, file=sys.stderr)


def say_untrained() -> None:
    """Print that a result of random weights means nothing."""
    print("the weights are untrained: the labels mean nothing; give --checkpoint for real ones")


def _tqdm() -> Any:
    """Return the progress bar's class, None where the package is absent."""
    try:
        return importlib.import_module("tqdm").tqdm
    except ImportError:
        return None
