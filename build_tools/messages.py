"""What the build says, each in one line."""

from __future__ import annotations


def failure(message: str) -> SystemExit:
    """What ends the build with one line, raised, instead of a traceback."""
    return SystemExit(f"lwrn_fast: {message}")


def say(message: str) -> None:
    print(f"lwrn_fast: {message}", flush=True)
