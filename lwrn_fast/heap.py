"""Freed memory of the C library: `keep` it for the next call, or `give_back`.

glibc gives large blocks back to the system as soon as they are freed, so that the next call of a model has every page
of them mapped and cleared anew.
"""

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

# Bytes of freed memory at the heap's end that stay with the process.
MAX_KEPT = 1 << 30
# Bytes of a block that comes from the heap; glibc accepts no more.
MAX_BLOCK = 32 << 20
# Bytes by which memory may grow while sizes change, before freed memory is given back.
MAX_GROWTH = 128 << 20
# Changes of size between two malloc_trim() calls; one call takes about 50 ms.
MIN_CHANGES = 10
# Parameters of mallopt(), from glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
# Environment variables of glibc that set the same.
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


@functools.cache
def keep() -> bool:
    """Have the process keep freed memory, up to `MAX_KEPT` bytes, from now on; return whether it does.

    Nothing happens where the C library is not glibc, or where glibc's own variables, such as MALLOC_TRIM_THRESHOLD_ or
    GLIBC_TUNABLES, set the same.

    >>> keep() in (True, False)
    True
    """
    chosen = any(name in os.environ for name in VARIABLES) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    set_option = _function("mallopt")
    if chosen or set_option is None:
        return False
    return bool(set_option(MMAP_THRESHOLD, MAX_BLOCK) and set_option(TRIM_THRESHOLD, MAX_KEPT))


def give_back() -> None:
    """Give freed memory back to the system."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def resident() -> int:
    """Return the bytes of this process in memory, 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class Trimmer:
    """Gives freed memory back as it grows.

    Where sizes change, little of the kept memory fits the next call, and a process would come to hold far more than it
    uses.
    """

    def __init__(self) -> None:
        self._changes, self._min_resident = 0, resident()

    def size_changed(self) -> None:
        """Count a change of size, and give memory back where due. Call once when sizes differ from the call before."""
        now = resident()
        self._changes, self._min_resident = self._changes + 1, min(self._min_resident, now)
        if self._changes >= MIN_CHANGES and now > self._min_resident + MAX_GROWTH:
            give_back()
            self._changes, self._min_resident = 0, resident()


def _function(name: str) -> Any:
    """Return a function of the C library, None where that is not glibc with its own malloc."""
    library = ctypes.CDLL(None)
    return getattr(library, name, None) if hasattr(library, "gnu_get_libc_version") else None
