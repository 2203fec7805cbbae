"""The part for NVIDIA's GPUs, lwrn_fast/_ops_cuda.so: what compiles it, and how.

It needs nvcc, but no GPU and no torch with CUDA. Environment variables:
LWRN_FAST_CUDA=auto     build it where nvcc is found; 1: fail where it is not; 0: do without
LWRN_FAST_CUDA_ARCHS    the compute capabilities, otherwise 8.0;8.6;8.9;9.0a;10.0+PTX, of which +PTX serves later ones
CUDA_HOME               where CUDA is, otherwise nvcc is looked for in PATH and in /usr/local/cuda
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from build_tools.messages import failure
from build_tools.ninja_file import NinjaFile, command_line

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ["8.0", "8.6", "8.9", "9.0a", "10.0+PTX"]
HOPPER = "9.0a"  # the one whose instructions the sources named *_sm90.cu use
MINIMUM = (12, 0)
KINDS = ["Bf16", "F16", "Tf32", "F32"]
HALF_KINDS = KINDS[:2]
FLAGS = ["-std=c++17", "-O3", "-Werror", "all-warnings", "-Xptxas=-Werror", "-Icsrc/cuda"]
HOST_FLAGS = ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# libtorch leads to libtorch_cuda, where there is one. CUDA's runtime is in the binary and its symbols stay inside,
# whatever torch brings.
LINK = ["-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed", "-lcudart_static", "-lrt", "-lpthread", "-ldl"]
LINK += ["-Wl,--exclude-libs,ALL"]


class Cuda(NamedTuple):
    """An nvcc, the folder it belongs to, its version, such as ``13.0``, and the compute capabilities to build for."""

    nvcc: Path
    home: Path
    version: str
    architectures: list[str]

    def libraries(self) -> list[str]:
        places = [self.home / "lib64", self.home / "lib", *sorted(self.home.glob("targets/*/lib"))]
        return [f"-L{place}" for place in places if (place / "libcudart_static.a").exists()]


@cache
def find() -> Cuda | str:
    """What is to compile the CUDA part, or why it is not built; ends the build with one line where it must be."""
    wanted = os.environ.get("LWRN_FAST_CUDA") or "auto"
    if wanted not in ("0", "1", "auto"):
        raise failure(f"LWRN_FAST_CUDA must be 0, 1 or auto, got {wanted!r}")
    if wanted == "0":
        return "LWRN_FAST_CUDA=0"
    found = _find()
    if isinstance(found, str) and wanted == "1":
        raise failure(f"LWRN_FAST_CUDA=1, but {found}")
    return found


def checked(found: Cuda | str, cxx: list[str], folder: Path) -> Cuda | str:
    """`found`, or why this nvcc compiles nothing here, as with a C++ compiler that it does not know."""
    if isinstance(found, str):
        return found
    probe = folder / "probe.cu"
    probe.write_text("__global__ void probe() {}\n")
    command = [str(found.nvcc), *_flags(found.architectures, cxx), "-c", str(probe), "-o", str(folder / "probe.cu.o")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if not done.returncode:
        return found
    errors = [line for line in (done.stderr + done.stdout).splitlines() if re.search("error|fatal", line)]
    reason = f"nvcc {found.version} compiles nothing here: {' '.join((errors or ['it says nothing'])[0].split())}"
    if os.environ.get("LWRN_FAST_CUDA") == "1":
        raise failure(f"LWRN_FAST_CUDA=1, but {reason}")
    return reason.replace('"', "'")


def add(file: NinjaFile, found: Cuda, cxx: list[str], compile_flags: list[str], link_flags: list[str]) -> str:
    """Add what builds `_ops_cuda.so` to a build.ninja. The flags are those of a .cpp that uses torch."""
    add_rule(file, found)
    defined = [f'-DLWRN_NVCC="{found.version}"', *(["-DLWRN_HAVE_SM90"] if HOPPER in found.architectures else [])]
    ops_flags = [*compile_flags, "-DUSE_CUDA", "-Icsrc/cuda"]
    objects = [file.add("compile", "ops_cuda.o", ["csrc/cuda/ops_cuda.cpp"], ops_flags)]
    for name, source, kind in units(HOPPER in found.architectures):
        flags = [*_flags([HOPPER] if of_hopper(source) else found.architectures, cxx), *defined, *kind]
        objects.append(file.add("nvcc", f"{name}.cu.o", [source], flags))
    return file.add("link", "_ops_cuda.so", objects, [*link_flags, *found.libraries(), *LINK])


def add_rule(file: NinjaFile, found: Cuda) -> None:
    # ptxas only remarks that wgmma instructions wait for each other (C7515) or that it adds waits (C7517): errors here.
    file.rule(
        "nvcc",
        f"{command_line([str(found.nvcc)])} $flags -MMD -MF $out.d -c $in -o $out > $out.log 2>&1; status=$$?; "
        "cat $out.log; ! grep -qE '\\(C75[0-9]{2}\\)|Potential Performance Loss' $out.log && exit $$status",
        "depfile = $out.d",
        "deps = gcc",
    )


def units(with_hopper: bool) -> Iterator[tuple[str, str, list[str]]]:
    """What is compiled: name, source, and the macro by which the source knows for which kind of number."""
    for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        source = str(path.relative_to(ROOT))
        if of_hopper(source) and not with_hopper:
            continue
        if "LWRN_KIND" not in path.read_text():
            yield path.stem, source, []
            continue
        for kind in HALF_KINDS if of_hopper(source) else KINDS:
            yield f"{path.stem}.{kind.lower()}", source, [f"-DLWRN_KIND={kind}"]


def of_hopper(source: str) -> bool:
    return source.endswith("_sm90.cu")


def _find() -> Cuda | str:
    nvcc = _nvcc()
    if nvcc is None:
        return "nvcc is not there: set CUDA_HOME to where CUDA is"
    answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    version = re.search(r"release (\d+\.\d+)", answer.stdout)
    if answer.returncode or not version:
        return f"{nvcc} --version fails"
    if tuple(map(int, version[1].split("."))) < MINIMUM:
        return f"nvcc {version[1]} is too old: {'.'.join(map(str, MINIMUM))} is needed"
    # What PATH calls nvcc may be a script that starts the real one elsewhere.
    plan = subprocess.run([nvcc, "--dryrun", "any.cu"], capture_output=True, text=True).stderr
    top = re.search(r"TOP=(.+)", plan)
    home = Path(top[1]) if top else nvcc.resolve().parent.parent
    return Cuda(nvcc, home.resolve(), version[1], _architectures(nvcc))


def _nvcc() -> Path | None:
    """In CUDA_HOME, where it is set, else in PATH or where CUDA's installer puts it."""
    home = os.environ.get("CUDA_HOME")
    if home:
        found = shutil.which("nvcc", path=str(Path(home, "bin")))
    else:
        found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    return Path(found) if found else None


def _architectures(nvcc: Path) -> list[str]:
    named = [name for name in re.split(r"[;,\s]+", os.environ.get("LWRN_FAST_CUDA_ARCHS", "")) if name]
    for name in named:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
            raise failure(f"LWRN_FAST_CUDA_ARCHS must be like {';'.join(ARCHITECTURES)}, got {name!r}")
    if named:
        return named
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout
    return [name for name in ARCHITECTURES if re.search(rf"\bsm_{_number(name)}\b", known)]


def _number(architecture: str) -> str:
    return re.sub(r"\D", "", architecture)


def _flags(architectures: list[str], cxx: list[str]) -> list[str]:
    flags = [*FLAGS, f"-Xcompiler={','.join(HOST_FLAGS)}"]
    if len(cxx) == 1:  # else it is a command, such as "ccache g++", which nvcc cannot run
        flags.append(f"-ccbin={cxx[0]}")
    flags += [f"-Xcompiler={word.replace(',', chr(92) + ',')}" for word in shlex.split(os.environ.get("CXXFLAGS", ""))]
    for name in architectures:
        real, _, ptx = name.partition("+")
        code = real.replace(".", "")
        flags.append(f"-gencode=arch=compute_{code},code=sm_{code}")
        if ptx:
            flags.append(f"-gencode=arch=compute_{code},code=compute_{code}")
    return flags
