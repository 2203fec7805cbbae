"""Which process works on which image: any number of processes, on any machines, that share nothing but a folder.

A plan lists the images, and has a byte for each that tells how far it is. A process that wants an image locks that
byte, works, writes how it ended into the byte, and unlocks it. So a fast process does more images than a slow one, and
a process that is killed, by whatever, loses its lock to the system, and another one does its image. Nobody waits until
all images are done or being done; then everyone waits for the latter, to do them should their process die. Fixed
shares, every n-th image for each process, would need no locks, but the slowest process would decide the end, and a dead
one's share would be left.

The first process to come makes the plan, while the others wait; who comes later joins in. Each holds a shared lock
while it takes part, by which a new run knows whether it is the first.

Relied on are POSIX record locks (`fcntl`): the kernel's on a local disk; the server's on NFS, which also show to who
locks what was written before the unlock, and end with the lease (some 90 s) of a machine that died. NFS mounted with
`nolock` or `local_lock`, and Lustre with `localflock`, lock within one machine only: there, one machine per folder.
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
DONE, FAILED = b"d", b"f"
"""A byte of the plan; before, a digit: how many processes have begun with this image."""
NEW = b"0"
TAKEN = BlockingIOError, PermissionError


@dataclass(frozen=True)
class Job:
    """An image that this process has to itself."""

    index: int
    entry: dict[str, Any]
    """What the plan says of it."""
    begun: int
    """By how many processes before, none of which came to an end."""


class Plan:
    """An open plan: a line of JSON about all, a byte for each image, and a line of JSON for each."""

    def __init__(self, path: Path) -> None:
        # one descriptor for all: to close any other one of this file would lose its locks
        self._file = os.fdopen(os.open(path, os.O_RDWR), "rb")
        self.about: dict[str, Any] = json.loads(self._file.readline())
        self._states = self._file.tell()
        self._current: tuple[int, bytes] | None = None

    def __len__(self) -> int:
        return self.about["images"]

    def __iter__(self) -> Iterator[Job | None]:
        """Once for each image: it, to work on and `finish`, or None where another process has it or had it."""
        return self._walk(wait=False)

    def rest(self) -> Iterator[Job | None]:
        """The same, but wait for the images that others have, in case these die; then all are finished."""
        return self._walk(wait=True)

    def finish(self, job: Job, done: bool) -> None:
        """This image came to an end, which must be in the journal already."""
        self._end(job.index, DONE if done else FAILED)

    def count(self, state: bytes) -> int:
        """How many images are in this state."""
        return os.pread(self._file.fileno(), len(self), self._states).count(state)

    def close(self) -> None:
        """An image that was not finished is as it was before, for others to do."""
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
            how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
            fcntl.lockf(self._file, how, 1, self._states + index)
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
    """A plan of lines of JSON, one for each image, and their states; `about` must hold how many `images` there are."""

    def save(beside: Path) -> None:
        states = bytearray()
        with open(beside, "wb") as file:
            file.write(json.dumps(about).encode("ascii") + b"\n")
            place = file.tell()
            file.write(b"0" * about["images"] + b"\n")
            for line, state in entries:
                file.write(line.encode() + b"\n")
                states += state
            file.seek(place)
            file.write(states)

    atomic.write(path, save)


def unfinished(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """What a plan that nobody works on says of the images that were begun and not finished, and how often they were."""
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
            fcntl.lockf(lock, fcntl.LOCK_UN)  # who was to write it has not
        plan = Plan(folder / PLAN)
        try:
            yield plan
        finally:
            plan.close()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until nobody takes part in the run in this folder; nobody begins with a new one within."""
    with open(folder / LOCK, "a+b") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


def _alone(lock: int) -> bool:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except TAKEN:
        return False
