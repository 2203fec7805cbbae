"""Messages of the build, each in one line."""

from __future__ import annotations


def failure(message: str) -> SystemExit:
    """Return the exception that ends the build with one line instead of a traceback."""
    return SystemExit(f"lwrn_fast: {message}")


def say(message: str) -> None:
    """Print a line of the build."""
    print(f"lwrn_fast: {message}", flush=True)
