"""Compile the part for NVIDIA GPUs, lwrn_fast/_ops_cuda.so.

It needs nvcc, but no GPU and no torch with CUDA. Environment variables:
LWRN_FAST_CUDA=auto     build it where nvcc is found; 1: fail where it is not; 0: do not build it
LWRN_FAST_CUDA_ARCHS    the compute capabilities; default 8.0;8.6;8.9;9.0a;10.0+PTX, where +PTX serves later ones
CUDA_HOME               the folder of CUDA; default that of the nvcc in PATH, else /usr/local/cuda
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
# Compute capability of the instructions in the sources named *_sm90.cu.
HOPPER = "9.0a"
# Version of CUDA.
MINIMUM = (12, 0)
# Element types of csrc/cuda/device/numbers.cuh; the first two have 16 bits.
ELEMENTS = ["Bf16", "F16", "Tf32", "F32"]
HALF_ELEMENTS = ELEMENTS[:2]
FLAGS = ["-std=c++17", "-O3", "-Werror", "all-warnings", "-Xptxas=-Werror", "-Icsrc/cuda"]
HOST_FLAGS = ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# libtorch loads libtorch_cuda, where torch has it. CUDA's runtime is linked statically and its symbols are hidden, so
# that it does not meet the runtime of torch.
LINK = ["-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed", "-lcudart_static", "-lrt", "-lpthread", "-ldl"]
LINK += ["-Wl,--exclude-libs,ALL"]


class Cuda(NamedTuple):
    """An nvcc, the folder of its CUDA, its version, such as ``13.0``, and the compute capabilities to build for."""

    nvcc: Path
    home: Path
    version: str
    architectures: list[str]

    def libraries(self) -> list[str]:
        """Return the linker flags of the folders that hold CUDA's static runtime."""
        folders = [self.home / "lib64", self.home / "lib", *sorted(self.home.glob("targets/*/lib"))]
        return [f"-L{folder}" for folder in folders if (folder / "libcudart_static.a").exists()]


@cache
def find() -> Cuda | str:
    """Return the CUDA that compiles the part, or why it is not built; end the build where it must be built."""
    wanted = os.environ.get("LWRN_FAST_CUDA") or "auto"
    if wanted not in ("0", "1", "auto"):
        raise failure(f"LWRN_FAST_CUDA must be 0, 1 or auto, got {wanted!r}")
    if wanted == "0":
        return "LWRN_FAST_CUDA=0"
    cuda = _find()
    if isinstance(cuda, str) and wanted == "1":
        raise failure(f"LWRN_FAST_CUDA=1, but {cuda}")
    return cuda


def checked(cuda: Cuda | str, cxx: list[str], folder: Path) -> Cuda | str:
    """Return `cuda`, or the reason why its nvcc compiles nothing here, such as a C++ compiler that it does not know."""
    if isinstance(cuda, str):
        return cuda
    probe = folder / "probe.cu"
    probe.write_text("__global__ void probe() {}\n")
    command = [str(cuda.nvcc), *_flags(cuda.architectures, cxx), "-c", str(probe), "-o", str(folder / "probe.cu.o")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if not done.returncode:
        return cuda
    errors = [line for line in (done.stderr + done.stdout).splitlines() if re.search("error|fatal", line)]
    reason = f"nvcc {cuda.version} compiles nothing here: {' '.join((errors or ['it says nothing'])[0].split())}"
    if os.environ.get("LWRN_FAST_CUDA") == "1":
        raise failure(f"LWRN_FAST_CUDA=1, but {reason}")
    return reason.replace('"', "'")


def add(file: NinjaFile, cuda: Cuda, cxx: list[str], compile_flags: list[str], link_flags: list[str]) -> str:
    """Add the build of `_ops_cuda.so` to a build.ninja, and return its name. The flags are for a .cpp with torch."""
    add_rule(file, cuda)
    defined = [f'-DLWRN_NVCC="{cuda.version}"', *(["-DLWRN_HAVE_SM90"] if HOPPER in cuda.architectures else [])]
    ops_flags = [*compile_flags, "-DUSE_CUDA", "-Icsrc/cuda"]
    objects = [file.add("compile", "ops_cuda.o", ["csrc/cuda/ops_cuda.cpp"], ops_flags)]
    for name, source, macros in units(HOPPER in cuda.architectures):
        flags = [*_flags([HOPPER] if of_hopper(source) else cuda.architectures, cxx), *defined, *macros]
        objects.append(file.add("nvcc", f"{name}.cu.o", [source], flags))
    return file.add("link", "_ops_cuda.so", objects, [*link_flags, *cuda.libraries(), *LINK])


def add_rule(file: NinjaFile, cuda: Cuda) -> None:
    """Add the rule "nvcc" to a build.ninja."""
    # ptxas only remarks that wgmma instructions are serialised (C7515) or that it adds waits (C7517): errors here.
    file.rule(
        "nvcc",
        f"{command_line([str(cuda.nvcc)])} $flags -MMD -MF $out.d -c $in -o $out > $out.log 2>&1; status=$$?; "
        "cat $out.log; ! grep -qE '\\(C75[0-9]{2}\\)|Potential Performance Loss' $out.log && exit $$status",
        "depfile = $out.d",
        "deps = gcc",
    )


def units(with_hopper: bool) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the compilations: name, source, and the macro that names the element type."""
    for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        source = str(path.relative_to(ROOT))
        if of_hopper(source) and not with_hopper:
            continue
        if "LWRN_ELEMENT" not in path.read_text():
            yield path.stem, source, []
            continue
        for element in HALF_ELEMENTS if of_hopper(source) else ELEMENTS:
            yield f"{path.stem}.{element.lower()}", source, [f"-DLWRN_ELEMENT={element}"]


def of_hopper(source: str) -> bool:
    return source.endswith("_sm90.cu")


def _find() -> Cuda | str:
    """Return the CUDA of this machine, or the reason why there is none to use."""
    nvcc = _nvcc()
    if nvcc is None:
        return "nvcc is not there: set CUDA_HOME to where CUDA is"
    answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    version = re.search(r"release (\d+\.\d+)", answer.stdout)
    if answer.returncode or not version:
        return f"{nvcc} --version fails"
    if tuple(map(int, version[1].split("."))) < MINIMUM:
        return f"nvcc {version[1]} is too old: {'.'.join(map(str, MINIMUM))} is needed"
    # The nvcc in PATH may be a script that starts the real one elsewhere.
    plan = subprocess.run([nvcc, "--dryrun", "any.cu"], capture_output=True, text=True).stderr
    top = re.search(r"TOP=(.+)", plan)
    home = Path(top[1]) if top else nvcc.resolve().parent.parent
    return Cuda(nvcc, home.resolve(), version[1], _architectures(nvcc))


def _nvcc() -> Path | None:
    """Return the nvcc in CUDA_HOME, where it is set, else in PATH or in /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME")
    if home:
        nvcc = shutil.which("nvcc", path=str(Path(home, "bin")))
    else:
        nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    return Path(nvcc) if nvcc else None


def _architectures(nvcc: Path) -> list[str]:
    """Return the named compute capabilities, else the default ones that nvcc knows."""
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
    """Return nvcc's flags for these compute capabilities and this C++ compiler."""
    flags = [*FLAGS, f"-Xcompiler={','.join(HOST_FLAGS)}"]
    if len(cxx) == 1:  # nvcc cannot run a command such as "ccache g++"
        flags.append(f"-ccbin={cxx[0]}")
    flags += [f"-Xcompiler={word.replace(',', chr(92) + ',')}" for word in shlex.split(os.environ.get("CXXFLAGS", ""))]
    for name in architectures:
        real, _, ptx = name.partition("+")
        code = real.replace(".", "")
        flags.append(f"-gencode=arch=compute_{code},code=sm_{code}")
        if ptx:
            flags.append(f"-gencode=arch=compute_{code},code=compute_{code}")
    return flags
