"""Records of the targets' figures: JSON with the machine and the commit."""

import argparse
import functools
import json
import subprocess
from pathlib import Path
from typing import Any

from lwrn_fast.profiling import machine


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add the option --out."""
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as JSON")


def write(path: Path | None, figures: dict[str, Any]) -> None:
    """Write the figures; nothing without a path."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def origin() -> dict[str, Any]:
    """Return the entries "machine" and "commit" of a record."""
    return {"machine": machine.describe(), "commit": commit()}


@functools.cache
def commit() -> str:
    """Return the commit that this file lies in, with "+" where something has changed since; "unknown" without git."""
    folder = Path(__file__).parent
    try:
        revision, changes = (
            subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision + "+" * bool(changes)
