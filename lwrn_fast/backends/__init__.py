"""The backends, one object each, and the choice of the one that runs a call."""

from .base import KERNEL_DTYPES, Backend, Call, Op
from .selection import (
    ALL,
    BACKENDS,
    PLAIN,
    REFERENCE,
    fall_back,
    in_this_thread,
    missing,
    requested,
    select,
    use_backend,
)

__all__ = [
    "ALL",
    "BACKENDS",
    "KERNEL_DTYPES",
    "PLAIN",
    "REFERENCE",
    "Backend",
    "Call",
    "Op",
    "fall_back",
    "in_this_thread",
    "missing",
    "requested",
    "select",
    "use_backend",
]
