"""The manifest of a folder of results, `manifest.jsonl`: one JSON object per image and line, sorted by input.

    input         absolute path of the image
    outputs       its results, relative to the manifest's folder
    state         "done" or "failed"
    reason        of a failure, in one line; else null
    height width  of the image, in pixels; null where it failed
    milliseconds  from opening the image to having written its outputs
    rank, run     of the process: RANK; torchrun's id for one start of it, TORCHELASTIC_RUN_ID, else null
    fingerprint   of the weights and options
    stamps        bytes and time of change (ns) of the image, then of each output, by which later changes are noticed

While a run goes on, its processes append such lines to a journal, under a lock and in one write each, so that a killed
process leaves at worst one line that ends too early. Such a line is no JSON, and is skipped. At the end, the manifest
and the journal become the new manifest in one atomic write; to do so twice changes nothing.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..io import atomic

NAME = "manifest.jsonl"
# The folder, in that of the results, for files that only later runs need.
HIDDEN = ".lwrn_fast"
JOURNAL = "journal.jsonl"


class Journal:
    """Lines that several processes append; each is visible as soon as `append` returns, also over NFS."""

    def __init__(self, out: Path) -> None:
        self._file = os.open(out / HIDDEN / JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a line. Raises OSError where the disk is full."""
        # begin with an end of line: the process before may have been killed within its own line
        line = f"\n{json.dumps(record)}\n".encode("ascii")
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            written = os.write(self._file, line)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
        if written < len(line):
            raise OSError(f"{JOURNAL}: only {written} of {len(line)} bytes could be written; is the disk full?")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read(out: Path) -> dict[str, str]:
    """Return the last line about each input, of the manifest and then the journal; no process may be appending.

    The lines stay unparsed, since the records of a million images take several times the memory.
    """
    records = {}
    for path in (out / NAME, out / HIDDEN / JOURNAL):
        for line in _lines(path):
            record = parse(line)
            if record is not None:
                records[record["input"]] = line
    return records


def write(out: Path, records: Mapping[str, str]) -> None:
    """Write these lines, by input, as the manifest, and remove the journal, which they contain."""

    def save(unfinished: Path) -> None:
        with open(unfinished, "w", encoding="utf-8") as file:
            file.writelines(f"{records[key]}\n" for key in sorted(records))

    atomic.write(out / NAME, save)
    (out / HIDDEN / JOURNAL).unlink(missing_ok=True)


def fold(out: Path) -> None:
    """Add the journal to the manifest; no process may be appending."""
    journal = out / HIDDEN / JOURNAL
    if journal.exists() and journal.stat().st_size:
        write(out, read(out))
    journal.unlink(missing_ok=True)


def parse(line: str) -> dict[str, Any] | None:
    """Return a line's record; None where it is none, such as half a line.

    >>> parse('{"input": "/a.jpg", "outputs": ["a.png"], "state": "done", "fingerprint": "1f", "stamps": []}')["state"]
    'done'
    >>> parse('{"input": "/a.jpg", "outputs": ["a.p')
    """
    try:
        record = json.loads(line)
        types = {"input": str, "outputs": list, "state": str, "fingerprint": str, "stamps": list}
        return record if all(isinstance(record[name], expected) for name, expected in types.items()) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def stamp(path: Path | str) -> list[int]:
    """Return bytes and time of change in ns of a file, as in `stamps`. Raises OSError."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def holds(record: Mapping[str, Any], out: Path) -> bool:
    """Return whether this image was done, and neither it nor its outputs in the folder `out` changed since."""
    if record.get("state") != "done":
        return False
    try:
        return record["stamps"] == [stamp(path) for path in (record["input"], *(out / o for o in record["outputs"]))]
    except OSError:
        return False


def _lines(path: Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            yield from (line for text in file if (line := text.strip()))
    except FileNotFoundError:
        return
