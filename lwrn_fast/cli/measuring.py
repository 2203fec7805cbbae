"""The part that `lwrn-fast profile` and `bench` share: measure, print, write."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..io import atomic
from . import building
from .terminal import say

NEEDS = "this command needs Pillow: pip install 'lwrn-fast[cli]'"


def measure_and_write(folder: Path | None, names: tuple[str, ...], measure: Callable[[], dict[str, Any]]) -> int:
    """Measure, print the tables, and write the page and the figures into the folder. names: of all files there.

    The first name is the page, the second the figures; `measure` writes the others.
    """
    with building.importing(NEEDS):
        from ..io import images
        from ..profiling import page, text
    if folder is not None:
        images.make_folder(folder)
        for name in names:
            with atomic.writing(folder / name):
                atomic.check_place(folder / name)
    figures = measure()
    print(getattr(text, f"of_{figures['kind']}")(figures), flush=True)
    if folder is not None:
        with atomic.writing(folder / names[0]):  # names that are no UTF-8 are shown with backslashes
            atomic.write_text(folder / names[0], page.page(figures), errors="backslashreplace")
        with atomic.writing(folder / names[1]):
            atomic.write_text(folder / names[1], json.dumps(figures, indent=1))
        print(f"written: {', '.join(str(folder / name) for name in names)}")
    return 0


def progress(line: str) -> None:
    """Print what is measured next."""
    say(f"... {line}")
