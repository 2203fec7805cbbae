"""Compile the C++ part with ninja: lwrn_fast/_ops.so (the operators), lwrn_fast/_C (facts about the build) and, with
build_tools/cuda.py, lwrn_fast/_ops_cuda.so (the operators on a GPU).

The build folder persists, so a second build compiles only what changed. Environment variables:
LWRN_FAST_NATIVE=0      build the pure-Python package, as on other systems than Linux
LWRN_FAST_BUILD_DIR     the build folder; default build/native
CXX CXXFLAGS LDFLAGS    the compiler, and words to add to its command lines
MAX_JOBS                compilers at once; default one per core
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from build_tools import cuda
from build_tools.cuda import Cuda
from build_tools.messages import failure, say
from build_tools.ninja_file import NinjaFile, command_line
from build_tools.torch_headers import REQUIREMENT, Torch, find_torch

ROOT = Path(__file__).resolve().parent.parent
# The oldest torch that the binary runs with: 2.10.
TARGET = "0x020a000000000000"

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *AVX2]
X86_SETS = {"avx512_bf16": [*AVX512, "-mavx512bf16"], "avx512": AVX512, "avx2": AVX2}
# A source that compiles only with AVX-512 BF16.
BF16_PROBE = "#include <immintrin.h>\n__m512 f(__m512 c, __m512bh a) { return _mm512_dpbf16_ps(c, a, a); }\n"

COMMON = ["-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-std=c++17"]
# GCC's own AVX-512 headers raise maybe-uninitialized.
KERNEL = ["-fno-math-errno", "-ffp-contract=fast", "-Wno-maybe-uninitialized"]


def wanted() -> bool:
    """Return True where the C++ part is built: on Linux, unless LWRN_FAST_NATIVE=0."""
    return os.environ.get("LWRN_FAST_NATIVE", "1") != "0" and sys.platform == "linux"


def requirements() -> list[str]:
    """Return what an isolated build needs beyond pyproject.toml: torch, where the target environment has none."""
    if not wanted():
        return []
    compiler()
    python_include()
    cuda.find()
    torch = find_torch()
    return [] if torch and torch.recent_enough() else [REQUIREMENT]


def compiler() -> list[str]:
    """Return the C++ compiler's command; end the build with one line where there is none."""
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        if shutil.which(named[0]):
            return named
        raise failure(f"CXX names {named[0]}, which is not there")
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    raise failure("no C++ compiler: install g++ (Debian: apt-get install g++), or set LWRN_FAST_NATIVE=0 to do without")


def build(version: str, outputs: dict[str, Path]) -> set[str]:
    """Build `_ops`, `_C` and, where possible, `_ops_cuda` for package version `version`, and copy each to its path in
    `outputs`. Return the names of those built."""
    cxx = compiler()
    torch = find_torch()
    if torch is None or not torch.recent_enough():
        error = f"torch {torch.version} is too old" if torch else "torch is not there"
        raise failure(f"{error}: install {REQUIREMENT}, or set LWRN_FAST_NATIVE=0 to do without")
    folder = Path(os.environ.get("LWRN_FAST_BUILD_DIR", ROOT / "build" / "native")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    gpu = cuda.checked(cuda.find(), cxx, folder)
    if isinstance(gpu, Cuda):
        say(f"building with CUDA: nvcc {gpu.version} for {', '.join(gpu.architectures)}")
    else:
        say(f"building without CUDA: {gpu}")
    say(f"compiling against the headers of torch {torch.version} in {torch.folder}")
    sets = instruction_sets(cxx, folder)
    text, built = ninja_file(version, cxx, torch, sets, folder, gpu)
    (folder / "build.ninja").write_text(text)
    jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
    if subprocess.run([*ninja(), "-C", str(folder), "-j", jobs]).returncode:
        raise failure("the C++ part did not compile: the compiler's messages are above")
    for name, file in built.items():
        outputs[name].parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / file, outputs[name])
    return set(built)


def ninja() -> list[str]:
    """Return ninja's command; end the build with one line where there is none."""
    if importlib.util.find_spec("ninja"):
        return [sys.executable, "-m", "ninja"]
    if not shutil.which("ninja"):
        raise failure("ninja is not there: pip install ninja")
    return ["ninja"]


def instruction_sets(cxx: list[str], folder: Path) -> dict[str, list[str]]:
    """Return the compiler's flags for each instruction set of the build."""
    sets: dict[str, list[str]] = {}
    if platform.machine() in ("x86_64", "AMD64") and sys.maxsize > 2**32:
        sets = dict(X86_SETS)
        probe = folder / "probe.cpp"
        probe.write_text(BF16_PROBE)
        command = [*cxx, *X86_SETS["avx512_bf16"], "-c", str(probe), "-o", str(folder / "probe.o")]
        if subprocess.run(command, capture_output=True).returncode:
            say(f"{cxx[0]} is too old for avx512_bf16: building without it")
            del sets["avx512_bf16"]
    return {**sets, "portable": []}


def ninja_file(
    version: str, cxx: list[str], torch: Torch, sets: dict[str, list[str]], folder: Path, gpu: Cuda | str
) -> tuple[str, dict[str, str]]:
    """Return the text of build.ninja, and the file name in `folder` of each library that it builds."""
    # Every path in the file leads through these links, so that its commands stay the same when an isolated build finds
    # the headers elsewhere. System headers are in no depfile; the commands name their versions instead.
    point(folder / "csrc", ROOT / "csrc")
    point(folder / "torch", torch.folder)
    point(folder / "pybind11", pybind11_include())
    point(folder / "python", python_include())
    user = shlex.split(os.environ.get("CXXFLAGS", ""))
    have = [f"-DLWRN_HAVE_{name.upper()}" for name in sets if name != "portable"]
    common = [*COMMON, "-Icsrc", *have, f'-DLWRN_COMPILER="{compiler_version(cxx)}"', *user]
    torch_version = f'-DLWRN_TORCH_VERSION="{torch.version}"'
    torch_flags = [f"-DTORCH_TARGET_VERSION={TARGET}", torch_version, "-isystem", "torch/include"]
    python_flags = [f'-DLWRN_VERSION="{version}"', torch_version, "-isystem", "pybind11", "-isystem", "python"]

    file = NinjaFile()
    command = command_line(cxx)
    file.rule("compile", f"{command} $flags -MMD -MF $out.d -c $in -o $out", "depfile = $out.d", "deps = gcc")
    file.rule("link", f"{command} -shared $in -o $out $flags")

    isa = file.add("compile", "isa.o", ["csrc/cpu/isa.cpp"], common)
    once, per_set = sources()
    objects = [isa]
    objects += [file.add("compile", f"{Path(source).stem}.o", [source], [*common, *torch_flags]) for source in once]
    # Link the portable set first: the linker keeps the first copy of an inline function that several objects hold.
    for name, flags in reversed(sets.items()):
        for source in per_set:
            kernel_flags = [*common, *KERNEL, *flags, f"-DLWRN_ISA={name}"]
            objects.append(file.add("compile", f"{Path(source).stem}.{name}.o", [source], kernel_flags))
    user_link = [*user, *shlex.split(os.environ.get("LDFLAGS", ""))]
    # The loader resolves libtorch_cpu by name among the loaded libraries: no run path ties the binary to one torch.
    torch_link = ["-Ltorch/lib", "-ltorch_cpu", *user_link]
    built = {"_ops": file.add("link", "_ops.so", objects, torch_link)}
    if isinstance(gpu, Cuda):
        built["_ops_cuda"] = cuda.add(file, gpu, cxx, [*common, *torch_flags], torch_link)

    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    python_flags += cuda_facts(gpu)
    module = file.add("compile", f"module{suffix}.o", ["csrc/module.cpp"], [*common, *python_flags])
    built["_C"] = file.add("link", f"_C{suffix}", [module, isa], user_link)
    return file.text(), built


def cuda_facts(gpu: Cuda | str) -> list[str]:
    """Return the macros that tell build_info() about the CUDA part."""
    architectures, text = (gpu.architectures, f"nvcc {gpu.version}") if isinstance(gpu, Cuda) else ([], f"none: {gpu}")
    listed = "".join(f'"{name}",' for name in architectures)
    return [f'-DLWRN_CUDA="{text}"', f"-DLWRN_CUDA_ARCHITECTURES={listed}"]


def sources() -> tuple[list[str], list[str]]:
    """Return the sources of `_ops`: those compiled once, and those compiled once per instruction set.

    The latter put their code into a namespace named by the macro LWRN_ISA.
    """
    once: list[str] = []
    per_set: list[str] = []
    for path in sorted([*(ROOT / "csrc").glob("*.cpp"), *(ROOT / "csrc" / "cpu").glob("*.cpp")]):
        name = str(path.relative_to(ROOT))
        if name not in ("csrc/module.cpp", "csrc/cpu/isa.cpp"):
            (per_set if "LWRN_ISA" in path.read_text() else once).append(name)
    return once, per_set


def compiler_version(cxx: list[str]) -> str:
    """Return the first line that the compiler prints about itself."""
    answer = subprocess.run([*cxx, "--version"], capture_output=True, text=True)
    if answer.returncode:
        raise failure(f"{' '.join(cxx)} --version failed")
    return answer.stdout.splitlines()[0].replace('"', "")


def pybind11_include() -> Path:
    """Return the folder of pybind11's headers; end the build with one line where there is none."""
    if not importlib.util.find_spec("pybind11"):
        raise failure("pybind11 is not there: pip install pybind11")
    import pybind11

    return Path(pybind11.get_include())


def python_include() -> Path:
    """Return the folder of Python's headers; end the build with one line where there is none."""
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        raise failure(f"Python.h is not in {include}: install Python's headers (Debian: apt-get install python3-dev)")
    return include


def point(link: Path, target: Path) -> None:
    """Replace `link` by a symbolic link to `target`."""
    link.unlink(missing_ok=True)
    link.symlink_to(target)
