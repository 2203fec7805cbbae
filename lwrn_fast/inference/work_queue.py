"""A queue of images for any number of processes, on any machines, that share nothing but a folder.

A plan lists the images, and has a byte for the state of each. A process that wants an image locks that byte, works,
writes the result into the byte, and unlocks it. So a fast process does more images than a slow one, and a process that
is killed loses its lock to the system, and another one does its image. No process waits until all images are done or
in work; then all wait for the latter, to do them should their process die. Fixed shares, every n-th image for each
process, would need no locks, but the slowest process would determine the end, and a dead one's share would be left.

The first process writes the plan, while the others wait; later ones join. Each holds a shared lock while it takes part,
by which a new run knows whether it is the first.

The queue relies on POSIX record locks (`fcntl`): the kernel's on a local disk; the server's on NFS, which also show a
locking process everything that was written before the unlock, and end with the lease (some 90 s) of a machine that
died. NFS mounted with `nolock` or `local_lock`, and Lustre with `localflock`, lock within one machine only: there, use
one machine per folder.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..io import atomic

PLAN = "plan"
LOCK = "lock"
# Bytes of the plan for a finished image; before, a digit counts the processes that have begun with it.
DONE, FAILED = b"d", b"f"
NEW = b"0"
# Errors of a lock that another process holds.
TAKEN = BlockingIOError, PermissionError


@dataclass(frozen=True)
class Job:
    """An image that this process has to itself."""

    index: int
    # The image's line of the plan.
    entry: dict[str, Any]
    # Processes that have begun with it before, none of which finished it.
    begun: int


class Plan:
    """An open plan: a line of JSON about all, a byte for each image, and a line of JSON for each."""

    def __init__(self, path: Path) -> None:
        # the only descriptor: closing any other one of this file would lose its locks
        self._file = os.fdopen(os.open(path, os.O_RDWR), "rb")
        self.about: dict[str, Any] = json.loads(self._file.readline())
        self._states = self._file.tell()
        self._current: tuple[int, bytes] | None = None

    def __len__(self) -> int:
        return self.about["images"]

    def __iter__(self) -> Iterator[Job | None]:
        """Yield each image, to work on and `finish`, or None in its place where another process has it or had it."""
        return self._walk(wait=False)

    def rest(self) -> Iterator[Job | None]:
        """Yield the same, but wait for the images that others have, in case these die; then all are finished."""
        return self._walk(wait=True)

    def finish(self, job: Job, done: bool) -> None:
        """Mark an image as finished; the journal must have it already."""
        self._end(job.index, DONE if done else FAILED)

    def count(self, state: bytes) -> int:
        """Return the number of images in this state."""
        return os.pread(self._file.fileno(), len(self), self._states).count(state)

    def close(self) -> None:
        """Close the plan; an image that was not finished gets its state from before, for others to do."""
        if self._current is not None:
            self._end(*self._current)
        self._file.close()

    def _walk(self, wait: bool) -> Iterator[Job | None]:
        self._file.seek(self._states + len(self) + 1)
        for index in range(len(self)):
            line = self._file.readline()
            if not self._claim(index, wait):
                yield None
                continue
            state = self._state(index)
            self._current = index, state
            self._write(index, b"%d" % min(9, int(state) + 1))
            yield Job(index, json.loads(line), int(state))

    def _claim(self, index: int, wait: bool) -> bool:
        if self._state(index) in (DONE, FAILED):
            return False
        try:
            mode = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
            fcntl.lockf(self._file, mode, 1, self._states + index)
        except TAKEN:
            return False
        if self._state(index) in (DONE, FAILED):
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._states + index)
            return False
        return True

    def _end(self, index: int, state: bytes) -> None:
        self._write(index, state)
        self._current = None
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._states + index)

    def _state(self, index: int) -> bytes:
        return os.pread(self._file.fileno(), 1, self._states + index)

    def _write(self, index: int, state: bytes) -> None:
        os.pwrite(self._file.fileno(), state, self._states + index)


def write(path: Path, about: dict[str, Any], entries: Iterable[tuple[str, bytes]]) -> None:
    """Write a plan of lines of JSON, one for each image, and their states; about["images"] is their number."""

    def save(unfinished: Path) -> None:
        states = bytearray()
        with open(unfinished, "wb") as file:
            file.write(json.dumps(about).encode("ascii") + b"\n")
            offset = file.tell()
            file.write(b"0" * about["images"] + b"\n")
            for line, state in entries:
                file.write(line.encode() + b"\n")
                states += state
            file.seek(offset)
            file.write(states)

    atomic.write(path, save)


def unfinished(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the images of an idle plan that were begun and not finished, and how often they were begun."""
    try:
        with open(path, "rb") as file:
            states = file.read(json.loads(file.readline())["images"] + 1)
            for state, line in zip(states, file, strict=False):
                if state in b"123456789":
                    yield json.loads(line), int(chr(state))
    except (FileNotFoundError, ValueError):
        return


@contextmanager
def joined(folder: Path, begin: Callable[[], object]) -> Iterator[Plan]:
    """Take part in the run whose files are in this folder; where there is none, `begin` must first write its plan."""
    with open(folder / LOCK, "a+b") as lock:
        while True:
            if _alone(lock.fileno()):
                begin()
                fcntl.lockf(lock, fcntl.LOCK_SH)
                break
            fcntl.lockf(lock, fcntl.LOCK_SH)  # waits for a plan
            if (folder / PLAN).exists():
                break
            fcntl.lockf(lock, fcntl.LOCK_UN)  # the first process ended without writing it
        plan = Plan(folder / PLAN)
        try:
            yield plan
        finally:
            plan.close()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no process takes part in the run in this folder, and let none begin a new one within."""
    with open(folder / LOCK, "a+b") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


def _alone(lock: int) -> bool:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except TAKEN:
        return False
