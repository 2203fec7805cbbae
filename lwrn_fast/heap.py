"""Settings of the C library's heap: glibc gives large blocks back to the system as soon as they are freed, so that the
next call of a model has every page of them mapped and cleared anew."""

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

# Bytes of freed memory at the heap's end that stay with the process.
KEPT = 1 << 30
# Bytes of the largest block that comes from the heap; glibc takes no more.
MAX_BLOCK = 32 << 20
# Bytes by which memory may grow while shapes change, before freed memory is given back.
MAX_GROWTH = 128 << 20
# Shape changes between two malloc_trim() calls; one call takes about 50 ms.
MIN_CHANGES = 10
# Options of mallopt(), from glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
# Environment variables by which the user sets these options.
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


@functools.cache
def keep() -> bool:
    """Have the process keep freed memory, up to `KEPT` bytes, from now on; return whether it does.

    Nothing happens where the C library is not glibc, or where glibc's own variables, such as MALLOC_TRIM_THRESHOLD_ or
    GLIBC_TUNABLES, are set.

    >>> keep() in (True, False)
    True
    """
    chosen = any(name in os.environ for name in VARIABLES) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    set_option = _function("mallopt")
    if chosen or set_option is None:
        return False
    return bool(set_option(MMAP_THRESHOLD, MAX_BLOCK) and set_option(TRIM_THRESHOLD, KEPT))


def give_back() -> None:
    """Give freed memory back to the system."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def resident() -> int:
    """Return the bytes of this process in memory; 0 where the system has no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class Trimmer:
    """Counter of shape changes that gives freed memory back as it grows.

    Where shapes change, few of the kept blocks fit the next ones, and a process would hold far more than it uses.
    """

    def __init__(self) -> None:
        self._changes, self._min = 0, resident()

    def size_changed(self) -> None:
        """Count a call whose shapes differ from those of the call before."""
        now = resident()
        self._changes, self._min = self._changes + 1, min(self._min, now)
        if self._changes >= MIN_CHANGES and now > self._min + MAX_GROWTH:
            give_back()
            self._changes, self._min = 0, resident()


def _function(name: str) -> Any:
    """Return a function of the C library, None unless it is glibc, whose own malloc is in use."""
    library = ctypes.CDLL(None)
    return getattr(library, name, None) if hasattr(library, "gnu_get_libc_version") else None
