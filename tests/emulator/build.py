"""Build the CUDA kernels for the CPU, over the emulated machine of device/, in a folder of their own.

build.py FOLDER TARGET [ELEMENT...]. Targets: ops.so, the ops, registered for the CPU as lwrn_fast_emulated::crp and so
on; selfcheck, a program that tests the kernels without torch; layer, one that tests the machine itself. ELEMENT (Bf16,
F16, Tf32 or F32) limits the kernels of the programs to these element types; default all. CXX names the compiler and
CXXFLAGS adds to its command lines, as in the real build. Where FOLDER has a csrc of its own, that is built.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from build_tools import cuda, native  # noqa: E402
from build_tools.ninja_file import NinjaFile, command_line  # noqa: E402

FLAGS = ["-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
INCLUDES = ["-Itests/emulator", "-Icsrc/cuda"]
MACHINE = {"fiber": ["-O2"], "machine": ["-O3"]}
REGISTERED = ["-DLWRN_LIBRARY=lwrn_fast_emulated", "-DLWRN_KEY=CPU"]


def ninja_file(folder: Path, elements: list[str]) -> str:
    """Return the text of build.ninja, and link the sources into `folder`."""
    torch = native.find_torch()
    assert torch is not None
    if (folder / "csrc").is_symlink() or not (folder / "csrc").exists():
        native.point(folder / "csrc", ROOT / "csrc")
    native.point(folder / "tests", ROOT / "tests")
    native.point(folder / "torch", torch.folder)
    user = shlex.split(os.environ.get("CXXFLAGS", ""))
    cxx, flags = command_line(native.compiler()), [*FLAGS, *INCLUDES, "-DLWRN_HAVE_SM90", *user]

    file = NinjaFile()
    file.rule("compile", f"{cxx} $flags -MMD -MF $out.d -c -x c++ $in -o $out", "depfile = $out.d", "deps = gcc")
    file.rule("link", f"{cxx} $in -o $out $flags")

    # Build the machine without sanitizers: accesses to its own memory say nothing about the kernels.
    plain = [flag for flag in flags if "sanitize" not in flag]
    machine = [
        file.add("compile", f"{name}.o", [f"tests/emulator/{name}.cpp"], [*plain, *level])
        for name, level in MACHINE.items()
    ]
    kernels, chosen, wanted = [], [], [f"-DLWRN_ELEMENT={element}" for element in elements]
    for name, source, macros in cuda.units(with_hopper=True):
        compiled = file.add("compile", f"{name}.o", [source], [*flags, *macros])
        kernels.append(compiled)
        if not (elements and macros) or macros[0] in wanted:
            chosen.append(compiled)
    torch_flags = [f"-DTORCH_TARGET_VERSION={native.TARGET}", "-isystem", "torch/include"]
    ops = file.add("compile", "ops_cuda.o", ["csrc/cuda/ops_cuda.cpp"], [*flags, *torch_flags, *REGISTERED])
    file.add("link", "ops.so", [ops, *kernels, *machine], ["-shared", "-Ltorch/lib", "-ltorch_cpu", *user])
    absent = file.add("compile", "absent.o", ["tests/emulator/absent.cpp"], flags)
    for program, linked in (("selfcheck", [*chosen, absent]), ("layer", [])):
        main = file.add("compile", f"{program}.o", [f"tests/emulator/{program}.cpp"], flags)
        file.add("link", program, [main, *linked, *machine], [*user, "-pthread"])
    return file.text()


def main(folder: Path, target: str, *elements: str) -> None:
    """Write build.ninja and build the target."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text(ninja_file(folder, list(elements)))
    subprocess.run([*native.ninja(), "-C", str(folder), target], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), *sys.argv[2:])
