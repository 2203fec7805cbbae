"""The text of a build.ninja, line by line."""

from __future__ import annotations

import shlex


class NinjaFile:
    def __init__(self) -> None:
        self._lines = ["ninja_required_version = 1.5"]

    def rule(self, name: str, command: str, *more: str) -> None:
        lines = [f"command = {command}", f"description = {name} $out", *more]
        self._lines += [f"rule {name}", *(f"  {line}" for line in lines)]

    def add(self, rule: str, output: str, inputs: list[str], flags: list[str]) -> str:
        self._lines += [f"build {output}: {rule} {' '.join(inputs)}", f"  flags = {command_line(flags)}"]
        return output

    def text(self) -> str:
        return "\n".join([*self._lines, ""])


def command_line(words: list[str]) -> str:
    return " ".join(shlex.quote(word) for word in words).replace("$", "$$")
