"""Errors whose message is for the user of a command, which prints it in one line and ends with `exit_code`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """An error that the user can correct; the message says what is wrong, in one line."""

    # Exit code of a command that ends with this error.
    exit_code = 2


class ToldError(UserError):
    """An error that the first of several processes reports; the others end silently.

    Their exit code is 0, since torchrun ends all processes as soon as one fails.
    """

    exit_code = 0


class SignalError(UserError):
    """A command that a signal ended early; its exit code is 128 plus the signal's number, as shells have it."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


def reason(error: BaseException) -> str:
    """Return why a file could not be used, in one line.

    >>> reason(FileNotFoundError())
    'no such file or folder'
    """
    if isinstance(error, FileNotFoundError):
        return "no such file or folder"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the one error without a message is Python's MemoryError.

    >>> first_line(MemoryError())
    'not enough memory'
    """
    return (str(error).strip() or "not enough memory").splitlines()[0]


@contextmanager
def as_user_error(message: Callable[[Exception], str], *classes: type[Exception]) -> Iterator[None]:
    """Turn errors of these classes that are raised within into a UserError with this message; keep a UserError.

    >>> with as_user_error(lambda error: f"a.png: {reason(error)}", OSError):
    ...     open("/no/such/file")
    Traceback (most recent call last):
    lwrn_fast.errors.UserError: a.png: no such file or folder
    """
    try:
        yield
    except UserError:
        raise
    except classes as error:
        raise UserError(message(error)) from error
