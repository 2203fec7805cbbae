"""What the C library does with freed memory: glibc gives large blocks back to the system as soon as they are freed, so
that the next call of a network has every page of them mapped and cleared anew."""

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

KEPT = 1 << 30
"""Bytes of freed memory at the heap's end that stay with the process."""
LARGEST = 32 << 20
"""Bytes of a block that comes from the heap; glibc takes no more."""
MOST_GROWTH = 128 << 20
"""Bytes by which memory may grow while sizes change, before what is freed is given back."""
LEAST_CHANGES = 10
"""Of sizes, from one time to the next: it takes about 50 ms."""
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


@functools.cache
def keep() -> bool:
    """Have the process keep freed memory, up to `KEPT` bytes, from now on; whether it does.

    Nothing happens where the C library is not glibc, or where glibc's own variables, such as MALLOC_TRIM_THRESHOLD_ or
    GLIBC_TUNABLES, say what to do.

    >>> keep() in (True, False)
    True
    """
    chosen = any(name in os.environ for name in VARIABLES) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    set_option = _function("mallopt")
    if chosen or set_option is None:
        return False
    return bool(set_option(MMAP_THRESHOLD, LARGEST) and set_option(TRIM_THRESHOLD, KEPT))


def give_back() -> None:
    """Give the system what is freed now."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class Trimmer:
    """Gives freed memory back as it grows. Where sizes change, little of what is kept fits what comes, and a process
    would come to hold far more than it uses."""

    def __init__(self) -> None:
        self._changes, self._least = 0, resident()

    def size_changed(self) -> None:
        """Once for each call whose sizes are not those of the call before."""
        now = resident()
        self._changes, self._least = self._changes + 1, min(self._least, now)
        if self._changes >= LEAST_CHANGES and now > self._least + MOST_GROWTH:
            give_back()
            self._changes, self._least = 0, resident()


def _function(name: str) -> Any:
    """Of the C library, if it is glibc, whose own malloc is in use."""
    library = ctypes.CDLL(None)
    return getattr(library, name, None) if hasattr(library, "gnu_get_libc_version") else None
