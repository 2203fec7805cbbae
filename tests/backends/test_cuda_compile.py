"""Resources of the compiled CUDA kernels in cuda_resources.py: the package against the table, and broken kernels."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from support import bench_tools, compiling

ROOT = Path(__file__).parents[2]
cuda_resources = bench_tools.load("gpu/cuda_resources")
Kernel = cuda_resources.Kernel
BUILT = cuda_resources.default_file()
NVCC = compiling.missing("nvcc")
needs_cuobjdump = pytest.mark.skipif(cuda_resources.cuobjdump() is None, reason="not installed: cuobjdump")


def kernel(name: str, arch: str = "sm_80", **counts: int) -> Kernel:
    return Kernel(arch, name, 128, 0, 0, Counter({name.replace("_", " "): n for name, n in counts.items()}))


HALF = kernel("CrpLarge<Bf16>", HMMA=64, max2=80, global_16=10, shared_16=24)
TF32 = kernel("CrpLarge<Tf32>", HMMA=64, max=80, global_16=10, shared_16=24)
EXACT = kernel("CrpSmall<F32>", FFMA=256, max=80, global_16=10, shared_16=24)
HOPPER = kernel("CrpLargeSm90<F16>", "sm_90a", HGMMA=8, HGMMA_groups=2, overlaps=1, max2=80, global_16=10)
FUSION = kernel("FusionSmall<F16>", HMMA=64, global_16=10, shared_16=24)
LABELS = kernel("UpsampleArgmax<4>", "sm_100")


def without(good: Kernel, **counts: int) -> Kernel:
    changed = {name.replace("_", " "): n for name, n in counts.items()}
    return replace(good, counts=Counter({**good.counts, **changed}))


@pytest.mark.parametrize("good", [HALF, TF32, EXACT, HOPPER, FUSION, LABELS], ids=lambda kernel: kernel.name)
def test_rules_that_are_kept(good):
    assert list(cuda_resources.violations(good, {"registers": 128, "shared": 0})) == []


BROKEN = {
    "spills: 2 loads and stores, 0 bytes of stack": without(LABELS, **{"LDL+STL": 2}),
    "spills: 0 loads and stores, 16 bytes of stack": replace(LABELS, stack=16),
    "129 registers, the table has 128": replace(LABELS, registers=129),
    "1024 shared, the table has 0": replace(LABELS, shared=1024),
    "no HMMA": without(FUSION, HMMA=0),
    "no HGMMA": without(HOPPER, HGMMA=0, HGMMA_groups=0, HMMA=64),
    "HGMMA one by one: 8 groups of 8": without(HOPPER, HGMMA_groups=8),
    "all HGMMA are waited for": without(HOPPER, overlaps=0),
    "tensor cores in exact float32": without(EXACT, HMMA=1),
    "no multiply-add of float32": without(EXACT, FFMA=0),
    "no maximum of two values that keeps NaN": without(HALF, max2=0, max=160),
    "no maximum that keeps NaN": without(TF32, max=0),
    "no load of 16 bytes from global memory": without(HOPPER, global_16=0),
    "no load of 16 bytes from shared memory": without(EXACT, shared_16=0),
}


@pytest.mark.parametrize("message", BROKEN)
def test_rules_that_are_broken(message):
    assert list(cuda_resources.violations(BROKEN[message], {"registers": 128, "shared": 0})) == [message]


def test_table():
    """The table reports changed and missing kernels, and sizes only where the same compiler made them."""
    rows = {"registers": 100, "shared": 0}
    table = {"ptxas": "13.0.88", "sm_80": {HALF.name: rows, "OldKernel": rows}, "sm_90a": {HOPPER.name: rows}}
    message = "128 registers, the table has 100"
    assert list(cuda_resources.broken_rules([HALF, FUSION], table, "13.0.88")) == [
        f"sm_80 {HALF.name}: {message}",
        f"sm_80 {FUSION.name}: not in the table",
        "sm_80 OldKernel: in the table, not in what was compiled",
    ]
    assert list(cuda_resources.broken_rules([FUSION], table, "13.0.88", whole=False)) == [
        f"sm_80 {FUSION.name}: not in the table"
    ]
    assert list(cuda_resources.broken_rules([HOPPER], table, "13.0.88")) == [f"sm_90a {HOPPER.name}: {message}"]
    assert list(cuda_resources.broken_rules([HOPPER], table, "13.1.80")) == []


def test_names():
    space = "lwrn_fast::cuda::"
    product = f"{space}WarpProduct<{space}Bf16, {space}AccLayout<128, 128, 2> >"
    mangled = f"void {space}kernel<{space}Crp<{product}, true> >({space}Crp<{product}, true>::Task)"
    assert cuda_resources.readable(mangled) == "Crp<WarpProduct<Bf16, AccLayout<128, 128, 2>>, true>"


def resources(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, bench_tools.BENCH / "gpu" / "cuda_resources.py", *arguments]
    return subprocess.run([str(c) for c in command], capture_output=True, text=True)


# A kernel without tensor cores, wide loads and the maximum that keeps NaN, with an array too large for registers.
BAD_KERNEL = """
#include <device/numbers.cuh>
namespace lwrn_fast::cuda {
template <class Element>
struct Crp {
  struct Task { const int* from; float* to; };
};
template <class Kernel>
__global__ void kernel(typename Kernel::Task task) {
  float values[64];
  for (int i = 0; i < 64; ++i) values[i] = fmaxf(task.from[i], values[i / 2]);
  for (int i = 0; i < 64; ++i) task.to[i] = values[task.from[i]];
}
template __global__ void kernel<Crp<Bf16>>(Crp<Bf16>::Task);
}  // namespace lwrn_fast::cuda
"""


@needs_cuobjdump
@pytest.mark.skipif(NVCC is not None, reason=str(NVCC))
def test_a_bad_kernel_is_reported(tmp_path):
    source, table = tmp_path / "bad.cu", tmp_path / "table.json"
    source.write_text(BAD_KERNEL)
    include = f"-I{ROOT / 'csrc' / 'cuda'}"
    compiling.run("nvcc", "-std=c++17", "-arch=sm_80", include, "-c", source, "-o", tmp_path / "bad.o")
    done = resources(tmp_path / "bad.o", "--table", table, "--write")
    assert done.returncode == 1, done.stderr
    assert "sm_80 Crp<Bf16>: spills: " in done.stdout
    assert "bytes of stack\n" in done.stdout
    for message in ("no HMMA", "no maximum of two values that keeps NaN", "no load of 16 bytes from global memory"):
        assert f"sm_80 Crp<Bf16>: {message}\n" in done.stdout
    written = json.loads(table.read_text())
    assert written["sm_80"]["Crp<Bf16>"]["registers"] > 0
    written["sm_80"]["Crp<Bf16>"]["registers"] = 8
    table.write_text(json.dumps(written))
    assert " registers, the table has 8\n" in resources(tmp_path / "bad.o", "--table", table).stdout


def test_a_missing_file_is_reported(tmp_path):
    done = resources(tmp_path / "none.o")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"missing: {tmp_path / 'none.o'}\n"


@pytest.mark.slow
@needs_cuobjdump
@pytest.mark.skipif(not BUILT.exists(), reason="the package has no CUDA kernels")
def test_the_package_keeps_the_rules():
    done = resources()
    assert done.returncode == 0, done.stdout + done.stderr
