"""Builds the self-check, the kernels without torch and a program that tries them: build.py OUTPUT [FLAG...].

The kernels get the flags of the real build, then those given. CXX names the compiler, a cross-compiler too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from build_tools import native  # noqa: E402


def build(output: Path, flags: list[str]) -> None:
    cxx = native.compiler()
    folder = output.with_suffix(".objects")
    folder.mkdir(parents=True, exist_ok=True)
    machine = subprocess.run([*cxx, "-dumpmachine"], capture_output=True, text=True, check=True).stdout
    sets = native.instruction_sets(cxx, folder) if machine.startswith("x86_64") else {"portable": []}
    common = [*native.COMMON, *(f"-DLWRN_HAVE_{name.upper()}" for name in sets if name != "portable")]
    commands = []
    for source in ["tests/native/selfcheck.cpp", "csrc/cpu/isa.cpp", "csrc/cpu/engine.cpp"]:
        commands.append([*cxx, *common, "-O2", *flags, "-c", ROOT / source, "-o", folder / f"{Path(source).stem}.o"])
    for source in native.sources()[1]:
        for name, own in sets.items():
            target = folder / f"{Path(source).stem}.{name}.o"
            options = [*common, *native.KERNEL, *own, f"-DLWRN_ISA={name}", *flags]
            commands.append([*cxx, *options, "-c", ROOT / source, "-o", target])
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for done in pool.map(subprocess.run, commands):
            done.check_returncode()
    subprocess.run([*cxx, *flags, *(command[-1] for command in commands), "-pthread", "-o", output], check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]).absolute(), sys.argv[2:])
