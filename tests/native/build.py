"""Build the self-check, a program that tests the kernels without torch, or _ops.so, in a folder of its own.

build.py FOLDER selfcheck|_ops.so [SET...]: for portable and these instruction sets; default all of the compiler.
As in the real build, CXX names the compiler, which may be a cross-compiler, and CXXFLAGS adds to its command lines.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from build_tools import native  # noqa: E402


def ninja_file(folder: Path, wanted: list[str]) -> str:
    """Return the real build's ninja file with the self-check added."""
    cxx = native.compiler()
    machine = subprocess.run([*cxx, "-dumpmachine"], capture_output=True, text=True, check=True).stdout
    sets = native.instruction_sets(cxx, folder) if machine.startswith("x86_64") else {"portable": []}
    sets = {name: flags for name, flags in sets.items() if name in wanted or not wanted or name == "portable"}
    torch = native.find_torch()
    assert torch is not None
    text, _ = native.ninja_file("0", cxx, torch, sets, folder, "no part of this")
    native.point(folder / "tests", ROOT / "tests")
    kernels = [f"{Path(source).stem}.{name}.o" for source in native.sources()[1] for name in sets]
    have = [f"-DLWRN_HAVE_{name.upper()}" for name in sets if name != "portable"]
    flags = native.command_line([*native.COMMON, *have, *shlex.split(os.environ.get("CXXFLAGS", ""))])
    return f"""{text}
rule program
  command = {native.command_line(cxx)} {flags} -pthread $in -o $out
build selfcheck.o: compile tests/native/selfcheck.cpp
  flags = {flags}
build selfcheck: program selfcheck.o isa.o engine.o {" ".join(kernels)}
"""


def main(folder: Path, target: str, *wanted: str) -> None:
    """Write build.ninja and build the target."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text(ninja_file(folder, list(wanted)))
    subprocess.run([*native.ninja(), "-C", str(folder), target], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), *sys.argv[2:])
