"""Sanitizers of g++: their libraries and options."""

import os
import subprocess

from support.compiling import missing

OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


def library(name: str) -> str:
    """Return the path of a library of g++, or its bare name where it is not installed."""
    command = ["g++", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def without(name: str) -> str | None:
    """Return why g++ cannot link this library of a sanitizer; None where it can."""
    return missing("g++") or (None if os.path.isabs(library(name)) else f"g++ has no {name}")
