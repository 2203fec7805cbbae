"""Writes the text of a build.ninja."""

from __future__ import annotations

import shlex


class NinjaFile:
    """The rules and build statements of a build.ninja."""

    def __init__(self) -> None:
        self._lines = ["ninja_required_version = 1.5"]

    def rule(self, name: str, command: str, *more: str) -> None:
        lines = [f"command = {command}", f"description = {name} $out", *more]
        self._lines += [f"rule {name}", *(f"  {line}" for line in lines)]

    def add(self, rule: str, output: str, inputs: list[str], flags: list[str]) -> str:
        """Add a build statement and return its output."""
        self._lines += [f"build {output}: {rule} {' '.join(inputs)}", f"  flags = {command_line(flags)}"]
        return output

    def text(self) -> str:
        return "\n".join([*self._lines, ""])


def command_line(words: list[str]) -> str:
    """Return the words quoted for the shell and for ninja."""
    return " ".join(shlex.quote(word) for word in words).replace("$", "$$")
