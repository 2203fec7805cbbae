"""Builds of the C++ part for the tests, in a folder of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def build(folder: Path, target: str, flags: str, *sets: str, cxx: str = "g++") -> Path:
    """The self-check of the kernels or _ops.so, as tests/native/build.py builds it."""
    command = [sys.executable, TESTS / "native" / "build.py", folder, target, *sets]
    run(*command, CXX=cxx, CXXFLAGS=flags)
    return folder / target


def run(*command: object, **variables: str) -> str:
    """What the command prints; it must succeed."""
    environment = {**os.environ, **variables}
    done = subprocess.run([str(c) for c in command], cwd=TESTS, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def missing(*programs: str) -> str | None:
    """Which of these programs are not installed, as the reason of a skip; None where all are."""
    absent = [program for program in programs if shutil.which(program) is None]
    return f"not installed: {', '.join(absent)}" if absent else None
