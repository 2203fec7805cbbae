"""The one exception of checkpoints, and how it lists names."""

from collections.abc import Iterable

from ...errors import UserError


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be read or does not fit; the message is one line."""


class Untrained(CheckpointError):
    """A checkpoint without a classifier, or with an encoder alone: `num_classes` is needed, to add what is missing."""


def few(names: Iterable[str], most: int = 3) -> str:
    """The first names, printable, on one line.

    >>> few(["a", "b", "c", "d"])
    'a, b, c, ...'
    """
    names = list(names)
    shown = [name if name.isprintable() else repr(name) for name in names[:most]]
    return ", ".join(name[:100] for name in shown) + (", ..." if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
