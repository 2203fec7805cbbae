"""Files that are whole or not there: written beside their place and moved to it."""

import errno
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

# Bytes of a file's name, on Linux's file systems and macOS's.
MAX_NAME = 255


def write(path: Path, save: Callable[[Path], object], ending: str = "") -> None:
    """Let `save` write a file and give it this name when it is complete and on the disk.

    ending: of the file's name until then, for files whose programs go by it.

    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> write(path, lambda beside: beside.write_text("whole"))
    >>> path.read_text()
    'whole'
    """
    beside = unfinished(path, ending)
    try:
        save(beside)
        _finish(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_together(path: Path, save: Callable[[Path], object]) -> None:
    """As `write`, for a `save` that may write other files beside the one it is given, which go by its name.

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
        # the one that names the others is last
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            _finish(file, path.with_name(file.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _finish(file: Path, path: Path) -> None:
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())
    file.chmod(permissions())  # safetensors makes private files
    file.replace(path)


def unfinished(path: Path, ending: str = "") -> Path:
    """What the file is called until it is complete: one name, so that what a killed run leaves is overwritten."""
    name = f".{path.name}.unfinished{ending}"
    if len(os.fsencode(name)) > MAX_NAME:
        name = f".{zlib.crc32(os.fsencode(path.name)):08x}.unfinished{ending}"
    return path.with_name(name)


def check_place(path: Path) -> None:
    """OSError where `write` could not leave a file of this name, to know it before long work."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def permissions() -> int:
    """Those of a new file; temporary files are private, results are not."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
