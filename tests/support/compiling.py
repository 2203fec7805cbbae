"""Compile the C++ part for the tests, in a folder of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def build(folder: Path, target: str, flags: str, *sets: str, cxx: str = "g++") -> Path:
    """Build the self-check or _ops.so by tests/native/build.py, and return its path."""
    command = [sys.executable, TESTS / "native" / "build.py", folder, target, *sets]
    run(*command, CXX=cxx, CXXFLAGS=flags)
    return folder / target


def run(*command: object, **variables: str) -> str:
    """Run a command, which must succeed, and return its output."""
    environment = {**os.environ, **variables}
    done = subprocess.run([str(c) for c in command], cwd=TESTS, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def missing(*programs: str) -> str | None:
    """Return the reason of a skip that lists the programs not installed; None where all are."""
    absent = [program for program in programs if shutil.which(program) is None]
    return f"not installed: {', '.join(absent)}" if absent else None
