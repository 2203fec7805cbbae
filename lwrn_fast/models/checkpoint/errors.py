"""The exceptions of checkpoints, and how their messages list names."""

from collections.abc import Iterable

from ...errors import UserError


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be read or does not fit; the message is one line."""


class Untrained(CheckpointError):
    """A checkpoint without a classifier, or with an encoder only: `num_classes` is needed to add the rest."""


def few(names: Iterable[str], max_names: int = 3) -> str:
    """Return the first names, printable, on one line.

    >>> few(["a", "b", "c", "d"])
    'a, b, c, ...'
    """
    names = list(names)
    shown = [name if name.isprintable() else repr(name) for name in names[:max_names]]
    return ", ".join(name[:100] for name in shown) + (", ..." if len(names) > max_names else "")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
