"""Find the torch whose headers the C++ part is compiled against, without importing it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

# Version of torch.
MINIMUM = (2, 10)
REQUIREMENT = "torch>=2.10"
# Program that prints the path of torch's __init__.py, or an empty line.
_ASK = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s and s.origin else '')"


class Torch(NamedTuple):
    """A torch installation: its version, such as ``2.13.0+cpu``, and its folder."""

    version: str
    folder: Path

    def recent_enough(self) -> bool:
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:2]) >= MINIMUM


def find_torch() -> Torch | None:
    """Find the torch of this process, else of the environment that is installed into, else of the activated one.

    Under build isolation this process cannot see the target environment, but its interpreter is the target's: started
    again without the isolation's variables, it answers for the target, .pth files and system packages included. With uv
    the interpreter is the isolated one, and VIRTUAL_ENV names that too: the target follows it on PATH, if it is
    activated, or is the .venv above the sources, which uv uses by default.
    """
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin:
        return _describe(Path(spec.origin).parent)
    pythons = [Path(sys.executable)]
    if os.environ.get("VIRTUAL_ENV"):
        pythons.append(Path(os.environ["VIRTUAL_ENV"], "bin", "python"))
    if os.environ.get("UV"):
        pythons += _environments()
    for python in pythons:
        origin = _ask(python)
        if origin:
            return _describe(Path(origin).parent)
    return None


def _environments() -> list[Path]:
    """Return the interpreters of the virtual environments on PATH and above the current folder."""
    folders = [Path(entry).parent for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    folders += [folder / ".venv" for folder in (Path.cwd(), *Path.cwd().parents)]
    if os.environ.get("CONDA_PREFIX"):
        folders.append(Path(os.environ["CONDA_PREFIX"]))
    marks = ("pyvenv.cfg", "conda-meta")
    pythons = [folder / "bin" / "python" for folder in folders if any((folder / mark).exists() for mark in marks)]
    return [python for python in dict.fromkeys(pythons) if python.exists()]


def _ask(python: Path) -> str:
    """Return the path of an interpreter's torch; an empty string without one."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    try:
        answer = subprocess.run([python, "-c", _ASK], env=environment, cwd="/", capture_output=True, text=True)
    except OSError:
        return ""
    return answer.stdout.strip()


def _describe(folder: Path) -> Torch | None:
    """Return the torch in a folder; None where no version is to be read."""
    try:
        text = (folder / "version.py").read_text()
    except OSError:
        return None
    version = re.search(r"^__version__[^=]*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    return Torch(version.group(1), folder) if version else None
