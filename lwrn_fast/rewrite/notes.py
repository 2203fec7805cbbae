"""Short notes for the report and the log in place of Dynamo's warnings about code that it cannot capture.

Dynamo logs a page of traceback for each. Where we asked for the capture, code that runs as it is, is no error. With
TORCH_LOGS set, Dynamo's own messages are logged as usual.
"""

import functools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..log import log
from . import compiling
from .report import Finding, Report

LOGGERS = ("torch._dynamo.convert_frame", "torch._dynamo.variables.tensor", "torch._subclasses.fake_tensor")
# Its attribute `notes` is the list that takes this thread's notes, None or absent outside of a capture.
thread = threading.local()


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect the notes of the code that runs within, in this thread."""
    outer, thread.notes = getattr(thread, "notes", None), list[str]()
    prepare()
    try:
        yield thread.notes
    finally:
        thread.notes = outer


def tell(notes: list[str], logged: set[str], caller: str, model_name: str, report: Report) -> None:
    """Add the notes that are not in `logged` to it, to the report and to the log."""
    for note in dict.fromkeys(notes):
        if note not in logged:
            logged.add(note)
            report.add([Finding("", "module", model_name, f"runs in parts as it is: {note}")])
            log.warning("%s: %s runs in parts as it is: %s", caller, model_name, note)


@functools.cache
def prepare() -> None:
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_Taker())


class _Taker(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        notes = getattr(thread, "notes", None)
        is_logged = logging.getLogger(record.name).isEnabledFor(logging.INFO)
        if notes is None or is_logged or record.levelno < logging.WARNING:
            return True
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            notes.append(f"Dynamo cannot capture it ({next(iter(str(error).splitlines()), type(error).__name__)})")
        elif "recompile_limit" in str(record.args):
            notes.append(f"it was captured {compiling.MAX_RECOMPILES} times, and is other at each call")
        return False
