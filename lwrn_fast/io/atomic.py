"""Files that are whole or not there: written under another name in the same folder and renamed when complete."""

import errno
import glob
import os
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from ..errors import as_user_error, reason

# Bytes of a file's name, on Linux's file systems and macOS's.
MAX_NAME = 255
# Characters of a stem that the name of an unfinished shared file keeps.
STEM = 40
# Hexadecimal digits by which the names of unfinished shared files differ.
DIGITS = 8


def write(path: Path, save: Callable[[Path], object], ending: str = "") -> None:
    """Let `save` write a file and give it this name when it is complete and on the disk.

    ending: of the file's name until then, for programs that go by it.

    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> write(path, lambda unfinished: unfinished.write_text("whole"))
    >>> path.read_text()
    'whole'
    """
    temporary = unfinished(path, ending)
    try:
        save(temporary)
        _finish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a text file in UTF-8, as `write`. errors: for characters that UTF-8 does not have, as `open` takes it."""
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors=errors))


def write_together(path: Path, save: Callable[[Path], object]) -> None:
    """Write as `write`, for a `save` that may write other files into the folder of the one it is given.

    The other files' names stay as `save` chooses them.

    >>> path = Path(tempfile.mkdtemp()) / "net.onnx"
    >>> write_together(path, lambda inside: [inside.write_text("graph"), inside.with_name("net.onnx.data").touch()])
    >>> sorted(file.name for file in path.parent.iterdir())
    ['net.onnx', 'net.onnx.data']
    """
    folder = unfinished(path)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        save(folder / path.name)
        # the file that names the others is last
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            _finish(file, path.with_name(file.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_shared(path: Path, save: Callable[[Path], object]) -> None:
    """Write one of many small files that can be made again, as `write`, but without waiting for the disk.

    Several processes may write the same path at a time: until then each has a file of its own, which
    `remove_unfinished` removes after a kill. Folders on the way to the path are made.

    >>> path = Path(tempfile.mkdtemp()) / "labels" / "a.png"
    >>> write_shared(path, lambda unfinished: unfinished.write_bytes(b"whole"))
    >>> [file.name for file in path.parent.iterdir()]
    ['a.png']
    """
    # named before it is there, so that it is removed whenever a signal ends this
    temporary = path.with_name(_shared_prefix(path) + secrets.token_hex(DIGITS // 2))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(temporary)
        temporary.replace(path)
    finally:
        with suppress(OSError, ValueError):
            temporary.unlink()


def remove_unfinished(path: Path) -> None:
    """Remove what processes that were killed in `write_shared` of this path have left."""
    for file in path.parent.glob(glob.escape(_shared_prefix(path)) + "?" * DIGITS):
        file.unlink(missing_ok=True)


def unfinished(path: Path, ending: str = "") -> Path:
    """Return the file's path until it is complete: always the same, so that the next run overwrites a killed one's."""
    name = f".{path.name}.unfinished{ending}"
    if len(os.fsencode(name)) > MAX_NAME:
        name = f".{_checksum(path)}.unfinished{ending}"
    return path.with_name(name)


def check_place(path: Path) -> None:
    """Raise OSError where `write` could not leave a file of this name, to know it before long work."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def writing(path: Path, *classes: type[Exception]) -> AbstractContextManager[None]:
    """Turn errors within into a UserError that names the path. classes: OSError and ValueError by default.

    >>> with writing(Path("/no/such/file")):
    ...     check_place(Path("/no/such/file"))
    Traceback (most recent call last):
    lwrn_fast.errors.UserError: /no/such/file: cannot be written (no such file or folder)
    """
    return as_user_error(lambda e: f"{path}: cannot be written ({reason(e)})", *(classes or (OSError, ValueError)))


def permissions() -> int:
    """Return the permissions of a new file; temporary files are private, results are not."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _finish(file: Path, path: Path) -> None:
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())
    file.chmod(permissions())  # safetensors makes private files
    file.replace(path)


def _shared_prefix(path: Path) -> str:
    return f".{path.stem[:STEM]}.{_checksum(path)}."


def _checksum(path: Path) -> str:
    return f"{zlib.crc32(os.fsencode(path.name)):08x}"
