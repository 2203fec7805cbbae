"""What Dynamo says of code that it cannot capture, a page of traceback each, as notes for our report and log.

Where we asked for the capture, it is no error that something runs as it is. Who sets TORCH_LOGS sees all.
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
here = threading.local()
"""Its attribute `notes` takes this thread's notes, where it is one."""


@contextmanager
def taken() -> Iterator[list[str]]:
    """The notes of what runs within, in this thread."""
    outer, here.notes = getattr(here, "notes", None), list[str]()
    prepare()
    try:
        yield here.notes
    finally:
        here.notes = outer


def tell(notes: list[str], told: set[str], caller: str, network: str, report: Report) -> None:
    """Put the notes that are not in `told` into the report and the log."""
    for note in dict.fromkeys(notes):
        if note not in told:
            told.add(note)
            report.add([Finding("", "module", network, f"runs in parts as it is: {note}")])
            log.warning("%s: %s runs in parts as it is: %s", caller, network, note)


@functools.cache
def prepare() -> None:
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_Taker())


class _Taker(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        notes = getattr(here, "notes", None)
        wanted = logging.getLogger(record.name).isEnabledFor(logging.INFO)
        if notes is None or wanted or record.levelno < logging.WARNING:
            return True
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            notes.append(f"Dynamo cannot capture it ({next(iter(str(error).splitlines()), type(error).__name__)})")
        elif "recompile_limit" in str(record.args):
            notes.append(f"it was captured {compiling.MAX_RECOMPILES} times, and is other at each call")
        return False
