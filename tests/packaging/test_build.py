"""The build as users run it: an sdist, isolated builds by an old and the newest pip, and the installed files."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from lwrn_fast import _version
from lwrn_fast.backends import cuda as _cuda
from support.building import ARCHITECTURES, ROOT, environment, make_environment, needs_cuda, run
from support.pages import BLOCKS

FOLDERS = ("bench", "build_tools", "csrc", "docs", "kernels", "lwrn_fast", "tests")
NOT_SOURCES = shutil.ignore_patterns("__pycache__", "*.so", ".*_cache", ".hypothesis", ".benchmarks", "*.egg-info")
USE = """
import lwrn_fast, lwrn_fast.kernels, torch
from lwrn_fast.backends import native
x = torch.randn(1, 3, 5, 7)
weights = [torch.randn(3, 3, 1, 1)]
torch.testing.assert_close(lwrn_fast.crp(x, weights), lwrn_fast.reference.crp(x, weights))
print(lwrn_fast.__file__, lwrn_fast.kernels.__file__, native.missing(), sep="\\n")
"""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Return the archive, made from a copy of the sources so that nothing is written into them."""
    copy = tmp_path_factory.mktemp("copy") / "lwrn_fast"
    copy.mkdir()
    for entry in ROOT.iterdir():
        if entry.is_file():
            shutil.copy2(entry, copy)
        elif entry.name in (*FOLDERS, ".ci", ".github"):
            shutil.copytree(entry, copy / entry.name, ignore=NOT_SOURCES)
    run(sys.executable, "-c", "from build_tools import backend; backend.build_sdist('dist')", cwd=copy)
    (archive,) = (copy / "dist").iterdir()
    return archive


@pytest.fixture(scope="module")
def tree(sdist, tmp_path_factory):
    """Return the unpacked sdist, where every build of this file happens, so that the C++ is compiled only once."""
    folder = tmp_path_factory.mktemp("with a space")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    (tree,) = folder.iterdir()
    if (ROOT / "build" / "native").exists():
        # The existing objects are used here too: ninja compiles only the files that differ.
        shutil.copytree(ROOT / "build" / "native", tree / "build" / "native", symlinks=True)
    return tree


@pytest.fixture(scope="module")
def old_pip(tmp_path_factory):
    return make_environment(tmp_path_factory.mktemp("old"), "pip==23.2.1")


@pytest.fixture(scope="module")
def new_pip(tmp_path_factory):
    return make_environment(tmp_path_factory.mktemp("new"), "pip", tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def wheel(tree, old_pip):
    """Return the wheel of an isolated build with the old pip, and the build's output."""
    log = run(old_pip, "-m", "pip", "wheel", "-v", "--no-deps", "-w", "dist", ".", cwd=tree)
    (path,) = (tree / "dist").glob("*.whl")
    return path, log


def source_files(*folders):
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            skipped = re.search(r"__pycache__|\.so$|/\.|egg-info", str(path.relative_to(ROOT)))
            if path.is_file() and not skipped:
                yield str(path.relative_to(ROOT))


def test_sdist_has_every_source(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    top = {"LICENSE", "MANIFEST.in", "Makefile", "CITATION.cff", "pyproject.toml", "setup.py", ".clang-format"}
    pages = {f"{page}.md" for page in ("README", "ARCHITECTURE", "CHANGELOG", "CONTRIBUTING", "SECURITY")}
    hidden = {".ci/run", ".pre-commit-config.yaml", ".github/ISSUE_TEMPLATE/bug_report.yml"}
    assert {*source_files(*FOLDERS), *top, *pages, *hidden} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_pre_commit_runs_the_linters_of_the_lint_extra():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    pinned = dict(re.findall(r"/(?:mirrors-)?(ruff|clang-format)(?:-pre-commit)?\n +rev: v(\S+)", hooks))
    tools = dict(re.findall(r'"([\w-]+)==([\d.]+)"', (ROOT / "pyproject.toml").read_text()))
    assert pinned == {name: tools[name] for name in ("ruff", "clang-format")}
    lint = re.search(r"^lint: .*?\n\n", (ROOT / "Makefile").read_text(), re.MULTILINE | re.DOTALL)
    assert lint is not None
    for tool in tools:
        command = "lint-imports" if tool == "import-linter" else tool
        assert command in hooks, tool
        assert command in lint[0], tool


def test_citation_has_the_version():
    assert f"version: {_version.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_extras_are_resolved():
    """`make lint` installs these without the package."""
    listed = run(sys.executable, "build_tools/extras.py", "lint", cwd=ROOT).split()
    assert {"pillow>=10.1", "tqdm", "types-tqdm"} <= set(listed)
    assert not [requirement for requirement in listed if requirement.startswith("lwrn-fast")]


@pytest.mark.slow
def test_wheel_has_the_package_and_nothing_else(wheel):
    path, _ = wheel
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"lwrn_fast-{_version.__version__}.dist-info/METADATA").decode()
        entry_points = archive.read(f"lwrn_fast-{_version.__version__}.dist-info/entry_points.txt").decode()
    kernels = {f"lwrn_fast/{name}" for name in source_files("kernels")}
    binaries = {name for name in names if name.endswith(".so")}
    plain = {"lwrn_fast/_ops.so", *(["lwrn_fast/_ops_cuda.so"] if ARCHITECTURES else [])}
    assert {re.sub(r"_C\..*", "_C", name) for name in binaries} == {*plain, "lwrn_fast/_C"}
    assert {n for n in names if ".dist-info/" not in n} == {*source_files("lwrn_fast"), *kernels, *binaries}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "License-Expression: BSD-3-Clause" in metadata
    required = re.findall(r"^Requires-Dist: (\w+)[^;\n]*$", metadata, re.MULTILINE)
    assert sorted(required) == ["numpy", "torch"]
    assert "lwrn-fast = lwrn_fast.cli:main" in entry_points
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{tag}-{tag}-linux" in path.name


def test_isolated_build_takes_the_torch_that_is_there(wheel):
    _, log = wheel
    assert f"against the headers of torch {torch.__version__} in" in log
    (line,) = re.findall(r"lwrn_fast: (building with(?:out)? CUDA: .*)", log)
    assert re.findall(r"\d+\.\d\w?(?:\+PTX)?", line.partition(" for ")[2]) == ARCHITECTURES
    assert not re.search(r"(Collecting|Downloading|Using cached) torch\b", log)


def test_wheel_works_from_another_folder(wheel, old_pip, tmp_path):
    run(old_pip, "-m", "pip", "install", "-q", "--force-reinstall", "--no-deps", wheel[0], cwd=tmp_path)
    package, kernels, missing = run(old_pip, "-c", USE, cwd=tmp_path).splitlines()
    assert old_pip.parent.parent in Path(package).parents
    assert Path(kernels).parent == Path(package).parent / "kernels"
    assert missing == "None"
    assert (old_pip.parent / "lwrn-fast").exists()


@pytest.mark.slow
def test_editable_install(wheel, tree, new_pip, tmp_path):
    run(new_pip, "-m", "pip", "install", "-q", "--no-deps", "-e", str(tree), cwd=tmp_path)
    package, kernels, missing = run(new_pip, "-c", USE, cwd=tmp_path).splitlines()
    assert Path(package) == tree / "lwrn_fast" / "__init__.py"
    assert Path(kernels) == tree / "kernels" / "__init__.py"
    assert missing == "None"


@pytest.mark.slow
def test_pure_python_package(wheel, tree, old_pip, tmp_path):
    pip = (old_pip, "-m", "pip")
    run(*pip, "wheel", "-q", "--no-deps", "-w", tmp_path, ".", cwd=tree, LWRN_FAST_NATIVE="0", CXX="no-such-compiler")
    (pure,) = tmp_path.glob("*.whl")
    assert pure.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(pure).namelist() if name.endswith(".so")]
    run(*pip, "install", "-q", "--no-deps", "--target", tmp_path / "pure", pure, cwd=tmp_path)
    package, _, missing = run(old_pip, "-c", USE, cwd=tmp_path, PYTHONPATH=str(tmp_path / "pure")).splitlines()[:3]
    assert tmp_path in Path(package).parents
    assert "pure Python" in missing


@pytest.mark.slow
def test_unchanged_sources_compile_nothing(wheel, tree, old_pip, tmp_path):
    build = (sys.executable, "setup.py", "-q", "build_ext", "--build-lib", tmp_path)
    run(*build, cwd=tree)
    assert "no work to do" in run(*build, cwd=tree)
    header = tree / "csrc" / "fusion.h"
    before = header.stat()
    header.touch()
    plan = run(sys.executable, "-m", "ninja", "-n", "-C", tree / "build" / "native", cwd=tree)
    os.utime(header, ns=(before.st_atime_ns, before.st_mtime_ns))
    compiled = re.findall(r"compile (\S+)", plan)
    assert "fusion.portable.o" in compiled
    assert not [name for name in compiled if name.startswith(("isa", "module"))]


@pytest.mark.parametrize("sees_torch", [True, False], ids=["torch there", "no torch"])
def test_requirements_of_the_build(sees_torch, tmp_path, old_pip):
    ask = "from build_tools import native; print(native.requirements())"
    python = old_pip
    if not sees_torch:
        venv.create(tmp_path / "bare", with_pip=False)
        python = tmp_path / "bare" / "bin" / "python"
    # -S puts the environment's own packages out of sight, as build isolation does.
    command = (python, "-S", "-c", ask)
    answer = run(*command, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert answer.strip() == ("[]" if sees_torch else "['torch>=2.10']")
    assert run(*command, cwd=tmp_path, PYTHONPATH=str(ROOT), LWRN_FAST_NATIVE="0", PATH="").strip() == "[]"


@pytest.fixture(scope="module")
def checkout(wheel, tree, tmp_path_factory):
    """Return the source tree with the environment of `make`, whose packages are links instead of downloads."""
    # The path has no space: inductor's command lines fail with one.
    make_environment(tree / ".venv", "pip", tmp_path_factory.mktemp("packages"))
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in BLOCKS if block.installs()], ids=str)
def test_pages_install_as_written(block, checkout, new_pip, tmp_path):
    """Run commands of README and docs/ that install, with the newest pip, and check the installed package."""
    if block.why_skipped() is not None:
        pytest.skip(f"{block}: {block.why_skipped()}")
    variables = {"PATH": f"{new_pip.parent}:{os.environ['PATH']}"}
    # One fused operation and the shortest time are enough of the measurements.
    variables["PYTEST_ADDOPTS"] = "--seconds 0.01 -k 'upsample_argmax and 512x512 and 1_thread'"
    if "CUDA_ARCHS" in block.text:  # the objects of the other tests must not change
        variables["LWRN_FAST_BUILD_DIR"] = str(tmp_path / "native")
        shutil.copytree(checkout / "build" / "native", tmp_path / "native", symlinks=True)
    output = run("bash", "-eu", "-c", block.text, cwd=checkout, **variables)
    assert not re.search(r"(Collecting|Downloading|Using cached) torch\b(?! *>)", output)
    bin = checkout / ".venv" / "bin" if "make " in block.text else new_pip.parent
    package, _, missing = run(bin / "python", "-c", USE, cwd=tmp_path).splitlines()[-3:]
    assert bin.parent in Path(package).parents, output
    assert (missing == "None") == ("LWRN_FAST_NATIVE=0" not in block.text), output


NO_NVCC = {"CUDA_HOME": "/nowhere"}
IMPOSSIBLE = {
    "no compiler": ({"PATH": "/nowhere"}, "install g++"),
    "CXX that is not there": ({"CXX": "no-such-compiler -O1"}, "CXX names no-such-compiler"),
    "CUDA without nvcc": ({"LWRN_FAST_CUDA": "1", **NO_NVCC}, "LWRN_FAST_CUDA=1, but nvcc is not there: set CUDA_HOME"),
    "neither with nor without": ({"LWRN_FAST_CUDA": "yes"}, "LWRN_FAST_CUDA must be 0, 1 or auto, got 'yes'"),
}


@pytest.mark.parametrize(("changes", "says"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_cannot_be_built_is_one_line(tree, changes, says):
    hook = "from build_tools import backend; backend.get_requires_for_build_wheel()"
    variables = environment(**changes)
    done = subprocess.run([sys.executable, "-c", hook], cwd=tree, env=variables, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = (done.stdout + done.stderr).splitlines()
    assert says in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"LWRN_FAST_CUDA": "0"}, "LWRN_FAST_CUDA=0"), ({"LWRN_FAST_CUDA": "auto", **NO_NVCC}, "nvcc is not there: ")],
    ids=["not wanted", "no nvcc"],
)
def test_without_cuda(wheel, tree, tmp_path, changes, reason):
    log = run(sys.executable, "setup.py", "-q", "build_ext", "--build-lib", tmp_path, cwd=tree, **changes)
    (line,) = [line for line in log.splitlines() if "CUDA" in line]
    assert line.startswith(f"lwrn_fast: building without CUDA: {reason}")
    assert {path.name.partition(".")[0] for path in tmp_path.glob("lwrn_fast/*.so")} == {"_ops", "_C"}
    ask = "import _C; info = _C.build_info(); print(info['cuda_architectures'], info['cuda'])"
    assert run(sys.executable, "-c", ask, cwd=tmp_path / "lwrn_fast").startswith(f"[] none: {reason}")


@needs_cuda
@pytest.mark.parametrize(
    ("architectures", "says"),
    [("8.0;ninety", "LWRN_FAST_CUDA_ARCHS must be like 8.0;"), ("1.0", "nvcc fatal : Unsupported gpu architecture")],
    ids=["no number", "unknown to nvcc"],
)
def test_architectures_that_cannot_be_built_are_one_line(wheel, tree, tmp_path, architectures, says):
    command = (sys.executable, "setup.py", "-q", "build_ext", "--build-lib", tmp_path)
    variables = environment(LWRN_FAST_CUDA="1", LWRN_FAST_CUDA_ARCHS=architectures)
    done = subprocess.run(command, cwd=tree, env=variables, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = (done.stdout + done.stderr).splitlines()
    assert says in line


SERIAL_WGMMA = """
__device__ __noinline__ float changed(float x) { return 2 * x; }
__global__ void serial(unsigned long long a, unsigned long long b, float* out) {
  float d[4] = {};
  for (int i = 0; i < 4; ++i) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, 0;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(a), "l"(b));
    d[0] = changed(d[0]);
  }
  out[threadIdx.x] = d[0];
}
"""
WRITE_BUILD = """
import sys
from build_tools import cuda
from build_tools.ninja_file import NinjaFile
file = NinjaFile()
cuda.add_rule(file, cuda.find())
file.add("nvcc", "serial.o", ["serial.cu"], ["-gencode=arch=compute_90a,code=sm_90a"])
open(sys.argv[1], "w").write(file.text())
"""


@needs_cuda
def test_products_that_wait_for_each_other_do_not_compile(tree, tmp_path):
    """ptxas only remarks that it serialises wgmma instructions; the build must fail."""
    (tmp_path / "serial.cu").write_text(SERIAL_WGMMA)
    run(sys.executable, "-c", WRITE_BUILD, tmp_path / "build.ninja", cwd=tree)
    done = subprocess.run([sys.executable, "-m", "ninja", "-C", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert "wgmma.mma_async instructions are serialized" in done.stdout


def symbols(path, *options):
    return [line.split()[-1] for line in run("nm", *options, path, cwd="/").splitlines() if line.split()]


def test_only_the_ops_include_torch_headers():
    """Kernels are plain C++ or CUDA: torch is included where an op is checked and registered, and nowhere else."""
    paths = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    sources = {path: path.read_text() for path in paths}
    assert {path.name for path, text in sources.items() if re.search(r"#include <(torch|ATen|c10)/", text)} == {
        "call.h",
        "packed_cache.h",
        "packed_cache.cpp",
        "stream.h",
        "run_package.cpp",
    }
    through = re.compile(r'#include ["<].*(call|packed_cache|device/stream)\.h[">]')
    assert {path.name for path, text in sources.items() if through.search(text)} == {
        "crp_call.h",
        "fusion_call.h",
        "normalise_call.h",
        "upsample_argmax_call.h",
        "packed_cache.cpp",
        "ops.cpp",
        "ops_cuda.cpp",
    }


def test_ops_depend_on_the_stable_abi_only(wheel, tree):
    binary = tree / "build" / "native" / "_ops.so"
    undefined = {name.partition("@")[0] for name in symbols(binary, "-D", "--undefined-only")}
    assert not [name for name in undefined if re.match(r"Py|_Py", name)]
    assert not [name for name in undefined if re.match(r"_Z.*(2at|3c10|5torch)", name)]
    assert not re.search("RPATH|RUNPATH", run("readelf", "-d", binary, cwd="/"))


# Symbols of the C and C++ libraries with their version, and weak ones for tools that may be in the process.
OF_THE_SYSTEM = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_|^(__gmon_start__|_ITM_\w+)$")


@needs_cuda
def test_the_cuda_part_depends_on_the_stable_abi_only(wheel, tree):
    """The CUDA part loads into any torch, and into one without CUDA as long as no call is made."""
    binary = tree / "build" / "native" / "_ops_cuda.so"
    of_torch = {name for name in symbols(binary, "-D", "--undefined-only") if not OF_THE_SYSTEM.search(name)}
    assert not [name for name in of_torch if not name.startswith(("aoti_torch_", "torch_"))]
    of_the_cpu = set(symbols(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so", "-D", "--defined-only"))
    assert of_torch - of_the_cpu <= {"aoti_torch_get_current_cuda_stream"}
    linked = run("readelf", "-d", binary, cwd="/")
    assert not re.search("RPATH|RUNPATH|libcuda", linked)
    assert "[libtorch.so]" in linked, "nothing leads to libtorch_cuda.so"
    of_the_standard_library = re.compile(r"_Z\w*S[abdiost]|__bss_start|_edata|_end$")
    exported = {name for name in symbols(binary, "-D", "--defined-only") if not of_the_standard_library.match(name)}
    assert {"lwrn_fast_ask_for_tf32", "lwrn_fast_why_not_on"} <= exported
    assert not [name for name in exported if not name.startswith("lwrn_fast_")]


@needs_cuda
def test_the_cuda_part_registers_its_kernels(wheel, tree):
    code = """
import ctypes, os, sys, torch
torch.ops.load_library("_ops.so")
library = ctypes.CDLL("./_ops_cuda.so", os.RTLD_LAZY)
library.lwrn_fast_why_not_on.restype = ctypes.c_char_p
print(*[torch._C._dispatch_has_kernel_for_dispatch_key(f"lwrn_fast::{op}", "CUDA") for op in sys.argv[1:]])
print(library.lwrn_fast_why_not_on(0))
"""
    folder = tree / "build" / "native"
    ops = ("crp", "fusion", "upsample_argmax")
    registered, why_not = run(sys.executable, "-c", code, *ops, cwd=folder).splitlines()[-2:]
    assert registered == "True True True"
    assert (why_not == "None") == (_cuda.missing() is None)


def test_inline_functions_come_from_the_plainest_set(wheel, tree):
    """An inline function compiled for AVX-512 and kept by the linker would also run on processors without it."""
    folder = tree / "build" / "native"
    objects = (folder / "build.ninja").read_text().split("build _ops.so: link ")[1].splitlines()[0].split()
    kept = {}
    for name in objects:
        for line in run("nm", "--defined-only", folder / name, cwd="/").splitlines():
            if line.split()[-2] in "VWu":
                kept.setdefault(line.split()[-1], name)
    assert not {symbol: name for symbol, name in kept.items() if re.search(r"\.avx", name)}
