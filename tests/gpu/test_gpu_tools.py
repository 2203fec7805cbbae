"""The commands for a GPU, as far as they go without one."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import lwrn_fast
from lwrn_fast.backends import triton
from lwrn_fast.kernels import configs
from lwrn_fast.profiling import machine
from lwrn_fast.profiling.cases import CrpCase
from support import bench_tools

TOOLS = bench_tools.BENCH / "gpu"
NAMES = ("candidates", "gpu", "gpu_bench", "gpu_small", "problems", "tune")
candidates, gpu, gpu_bench, gpu_small, problems, tune = (bench_tools.load(f"gpu/{name}") for name in NAMES)
COMMANDS = ["gpu_bench.py", "gpu_small.py", "tune.py"]
H200 = candidates.Gpu(multiprocessors=132, shared_memory=232448)
LEVELS = [(op, kind) for op in ("crp", "fusion") for kind in ("half", "tf32", "ieee")]
LEVELS += [("upsample_argmax", "half"), ("upsample_argmax", "ieee")]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def run(*command: object, **environment: str) -> subprocess.CompletedProcess:
    package = str(Path(lwrn_fast.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package, **environment}
    return subprocess.run([str(c) for c in command], env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    done = run(sys.executable, TOOLS / command, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


@pytest.mark.slow
@without_gpu
@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_gpu(command):
    done = run(sys.executable, TOOLS / command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{command}: needs a GPU: PyTorch finds no GPU\n"


class TestCheck:
    def test_syntax(self):
        done = run("bash", "-n", TOOLS / "gpu_check.sh")
        assert (done.returncode, done.stderr) == (0, "")

    def test_wrong_arguments(self, tmp_path):
        for arguments in ([], [tmp_path, "everything"]):
            done = run("bash", TOOLS / "gpu_check.sh", *arguments)
            assert done.returncode == 2
            assert "gpu_check.sh OUTDIR [correctness|benchmarks|all]" in done.stderr

    @without_gpu
    def test_without_a_gpu(self, tmp_path):
        done = run("bash", TOOLS / "gpu_check.sh", tmp_path / "out", PYTHON=sys.executable)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("gpu_check.sh: needs a GPU")
        assert not (tmp_path / "out").exists()

    EVERYTHING = (
        *("install", "cuda kernels", "machine", "compile small", "small, cuda", "small, triton"),
        *("gpu tests, cuda", "op tests, cuda", "gpu tests, triton", "op tests, triton"),
        *("memcheck, cuda", "racecheck, cuda", "synccheck, cuda"),
        *("memcheck, triton", "racecheck, triton", "synccheck, triton", "benchmarks"),
    )

    @pytest.mark.parametrize(
        ("environment", "fails", "left"),
        [
            ({}, "nothing", EVERYTHING),
            ({"LWRN_FAST_CUDA": "0"}, "nothing", [step for step in EVERYTHING if "cuda" not in step]),
            ({}, "cuda.missing", [step for step in EVERYTHING if ", cuda" not in step]),
        ],
        ids=["everything", "without_cuda", "cuda_missing"],
    )
    def test_steps(self, tmp_path, environment, fails, left):
        """With programs that do nothing, and one of which fails."""
        (tmp_path / "bench" / "gpu").mkdir(parents=True)
        (tmp_path / "tests").mkdir()
        script = tmp_path / "bench" / "gpu" / "gpu_check.sh"
        script.write_text((TOOLS / "gpu_check.sh").read_text())
        for program in ("python", "compute-sanitizer"):
            (tmp_path / program).write_text(f'#!/bin/sh\ncase "$*" in *{fails}*) exit 1;; esac\n')
            (tmp_path / program).chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = run("bash", script, tmp_path / "out", PYTHON=str(tmp_path / "python"), PATH=path, **environment)
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        steps = {step["step"]: step["status"] for step in summary["steps"]}
        assert list(steps) == list(left)
        failed = {step for step, status in steps.items() if status.startswith("failed")}
        assert failed == ({"cuda kernels"} if "missing" in fails else set()), done.stdout
        assert done.returncode == (1 if failed else 0)


class TestCandidates:
    @pytest.mark.parametrize(("op", "kind"), LEVELS)
    def test_are_few_but_some_for_every_level(self, op, kind):
        for case in problems.CASES[op]:
            grid = candidates.grid(op, kind, [case], H200)
            assert 5 <= len(set(grid)) <= 250
            assert len(set(grid)) == len(grid)
            assert all(candidates.fits(config, kind, case, H200) for config in grid)

    @pytest.mark.parametrize("op", problems.CASES)
    def test_have_items_for_the_multiprocessors(self, op):
        large = problems.TARGETS[op]
        assert all(candidates.items(c, large) >= 132 / 4 for c in candidates.grid(op, "half", [large], H200))
        assert candidates.grid(op, "half", [large], candidates.Gpu(10**6, 232448)), "too large a GPU leaves some"

    def test_respect_shared_memory(self):
        case = problems.TARGETS["crp"]
        small = candidates.grid("crp", "half", [case], candidates.Gpu(132, 50_000))
        assert 0 < len(small) < len(candidates.grid("crp", "half", [case], H200))
        for c in small:
            assert c.num_stages * 2 * c.block_k * (c.block_h * c.block_w + c.block_n) <= 50_000

    def test_are_no_larger_than_the_problem(self):
        case = CrpCase(64, 100, 100)
        assert all(c.block_n * c.passes <= 64 for c in candidates.grid("crp", "half", [case], H200))

    @pytest.mark.parametrize(("op", "kind"), LEVELS)
    def test_neighbours_differ_in_one_field(self, op, kind):
        cases = [problems.TARGETS[op]]
        config = candidates.grid(op, kind, cases, H200)[0]
        neighbours = candidates.neighbours(config, op, kind, cases, H200)
        assert neighbours
        fields = [field.name for field in dataclasses.fields(config)]
        assert {sum(getattr(c, f) != getattr(config, f) for f in fields) for c in neighbours} == {1}

    @pytest.mark.parametrize("op", problems.CASES)
    def test_know_every_field(self, op):
        names = {field.name for field in dataclasses.fields(configs.CONFIG_CLASSES[op])}
        assert set(candidates.CHOICES[op]) | {"pixels"} == names


def row(pixels: int, warps: int) -> dict[str, int]:
    return {"pixels": pixels, "block_h": 8, "block_w": 16, "block_classes": 1, "num_warps": warps}


class TestTable:
    TABLE = {
        "80": {"upsample_argmax": {"half": [row(0, 4)]}},
        "90": {"upsample_argmax": {"half": [row(9000, 4), row(0, 4)], "ieee": [row(0, 4)]}},
    }
    NEW = {("upsample_argmax", "half", 0): configs.UpsampleArgmax(**row(0, 8))}

    def test_one_row_of_one_gpu_is_replaced(self):
        table = tune.with_rows(self.TABLE, "90", "90", self.NEW)
        half = table["90"]["upsample_argmax"]["half"]
        assert half == [row(9000, 4), row(0, 8)]
        assert list(half[1]) == list(row(0, 8)), "in the order of the table"
        half[1]["num_warps"] = 4
        assert table == self.TABLE

    def test_a_new_gpu_begins_as_a_copy(self):
        table = tune.with_rows(self.TABLE, "100", "90", self.NEW)
        assert {key: table[key] for key in self.TABLE} == self.TABLE
        assert table["100"]["upsample_argmax"]["ieee"] == [row(0, 4)]
        assert table["100"]["upsample_argmax"]["half"] == [row(9000, 4), row(0, 8)]

    def test_is_written_as_it_was(self, tmp_path):
        path = tmp_path / "configs.json"
        before = json.loads(tune.TABLE.read_text())
        tune.save(path, before)
        assert json.loads(path.read_text()) == before
        assert [file.name for file in tmp_path.iterdir()] == ["configs.json"]

    def test_cases_by_row(self):
        rows = [configs.UpsampleArgmax(**row(270_000, 4)), configs.UpsampleArgmax(**row(0, 4))]
        selected = tune.cases_by_row(rows, problems.CASES["upsample_argmax"])
        assert {r.pixels: [str(case) for case in cases] for r, cases in selected.items()} == {
            0: ["21x128x128-512x512"],
            270_000: ["21x157x117-625x468"],
        }

    def test_the_tables_row_stays_where_it_is_about_as_fast(self):
        current, other = (configs.UpsampleArgmax(**row(0, warps)) for warps in (4, 8))
        search = tune.Search("upsample_argmax", "half", [problems.TARGETS["upsample_argmax"]])
        assert tune.chosen(search, current) is None
        search.seconds = {current: [1.01e-5], other: [1.0e-5]}
        assert tune.chosen(search, current) == current
        search.seconds[current] = [1.1e-5]
        assert tune.chosen(search, current) == other


COMPILE = """
import dataclasses, sys
sys.path.insert(0, sys.argv[1])
import gpu, gpu_small, problems
from lwrn_fast.kernels import configs
from triton.backends.compiler import GPUTarget

gpu.compile_for(GPUTarget("cuda", 90, 32), 132, 232448)
for op in problems.CASES:
    config = configs.rows(configs.CONFIG_CLASSES[op], op, "90", "half")[-1]
    print(gpu.why_not_compiled(gpu.Job(op, "half", gpu_small.SMALL[op][0], config)))
deep = dataclasses.replace(configs.rows(configs.Crp, "crp", "90", "half")[0], num_stages=20)
print(gpu.why_not_compiled(gpu.Job("crp", "half", problems.TARGETS["crp"], deep)))
"""


@pytest.mark.slow
@pytest.mark.skipif(triton.missing() == "Triton is not installed", reason="Triton is not installed")
def test_kernels_are_compiled_for_a_gpu_that_is_not_used(tmp_path):
    done = run(sys.executable, "-c", COMPILE, TOOLS, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["None"] * 3 + ["more shared memory than there is"]


class TestBench:
    @torch.no_grad()
    def test_everybody_computes_the_same(self):
        for op, case in {"crp": CrpCase(8, 6, 7), "fusion": gpu_bench.SMALLEST["fusion"]}.items():
            inputs, weights = problems.random(case, torch.float32, "cpu")
            problem = problems.problem(case, weights)
            for function in (problem.plain, problem.ours):
                assert problem.error(function(*inputs), inputs) < 1e-5, op
            assert len(problem.floor(*inputs)) == len(weights)

    def test_rows_of_a_map_share_its_memory(self):
        (x,), _ = problems.random(CrpCase(8, 6, 7), torch.bfloat16, "cpu")
        assert problems.rows(x).data_ptr() == x.data_ptr()
        assert torch.equal(problems.rows(x)[9], x[0, :, 1, 2])

    def test_measure(self, monkeypatch):
        """On the CPU, where one of the kernels cannot run and another is wrong."""
        used = set()

        def on(backend, call, kernel=None):
            used.add((backend, kernel))
            if kernel == "smallest":
                raise RuntimeError("smallest cannot")
            return (lambda: torch.zeros(1)) if kernel == "small" else call

        def captured(calls):
            results = [call() for call in calls]
            made = [(i, result) for i, result in enumerate(results) if isinstance(result, torch.Tensor)]
            return lambda: [result.copy_(calls[i]()) for i, result in made], results

        def elapsed(run):
            start = time.perf_counter()
            run()
            return time.perf_counter() - start

        monkeypatch.setattr(problems, "random", functools.partial(problems.random, device="cpu"))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=10_000))
        for name in ("synchronize", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.cuda, name, lambda: None)
        for name in ("memory_allocated", "max_memory_allocated"):
            monkeypatch.setattr(torch.cuda, name, lambda: 0)
        monkeypatch.setattr(torch, "compile", lambda module, **_: module)
        for function in (on, captured, elapsed):
            monkeypatch.setattr(gpu, function.__name__, function)
        monkeypatch.setattr(gpu, "limit", lambda *_: 1e-6)
        names = (*gpu_bench.OURS_BY, *gpu_bench.OTHERS)
        with torch.no_grad():
            rows = {
                row["contestant"]: row
                for row in gpu_bench.measure("crp", CrpCase(8, 6, 7), "ieee", 0.0, names, kernels=True)
            }
        kernels = [gpu_bench.KERNEL + kernel for kernel in gpu.CUDA_KERNELS["crp"]]
        assert set(rows) == {name + graph for name in (*names, *kernels) for graph in ("", gpu_bench.GRAPH)}
        assert used == {("cuda", None), ("triton", None), *(("cuda", kernel) for kernel in gpu.CUDA_KERNELS["crp"])}
        failed = {name: row["failed"] for name, row in rows.items() if "failed" in row}
        assert {name.split(",")[0] for name in failed} == set(kernels[:2])
        assert failed[kernels[0]] == "RuntimeError: smallest cannot"
        assert failed[kernels[1]].startswith("ArithmeticError: error inf")
        assert rows["ours, cuda"]["hot_times_ours"] == 1
        assert all(row["hot_us"] > 0 and row["rotating_us"] > 0 for name, row in rows.items() if name not in failed)

    def test_table(self):
        def entry(contestant, us, **more):
            return {"op": "crp", "case": "8x6x7", "kind": "half", "contestant": contestant, "rotating_us": us, **more}

        results = [
            entry("ours, cuda", 30.0),
            entry("ours, cuda, CUDA graph", 20.0, hot_us=19.0, percent_of_limit=50.0),
            entry("ours, triton, CUDA graph", 25.0),
            entry("eager, channels-last, CUDA graph", 50.0),
            {**entry("torch.compile", None), "failed": "no"},
        ]
        assert gpu_bench.table(results).splitlines()[2] == (
            "| crp | 8x6x7 | half | 19.0 | 20.0 | 50.0 | 1.50 | - | 1.25 | - | 2.50 | failed | - | - |"
        )
        alone = [row for row in results if "cuda" not in row["contestant"]]
        head, _, line = gpu_bench.table(alone).splitlines()
        assert "| ours, triton, CUDA graph, hot, us |" in head
        assert line == "| crp | 8x6x7 | half | - | 25.0 | - | - | - | - | - | 2.00 | failed | - | - |"


def test_names_and_words_of_the_cuda_kernels():
    for op, names in gpu.CUDA_KERNELS.items():
        sources = "".join(path.read_text() for path in (bench_tools.BENCH.parent / "csrc" / "cuda").glob(f"{op}*.cu*"))
        assert set(re.findall(r'kName = "(\w+)"', sources)) - {"depthwise"} == set(names), op
        assert not names or sum(f'"{reason}"' in sources for reason in gpu.CANNOT) == 1, op


def test_small_problems_of_the_cuda_kernels():
    """All ops and kinds, aligned and not; and wrong results are wrong."""
    calls = list(gpu_small.cuda_calls())
    assert {(call.op, call.kind) for call in calls} == set(LEVELS)
    for call in calls:
        if call.kind != "ieee" or call.kernel:
            continue
        inputs, weights = gpu_small.random_tensors(call)
        problem = problems.problem(call.case, weights, call.depthwise)
        got = problem.ours(*inputs)
        assert problem.error(got, inputs) < gpu_small.TOLERANCE["ieee"], call
        got[0, ..., -1, -1] = 0 if got.is_floating_point() else 1 - got[0, -1, -1].clamp(max=1)
        assert problem.error(got, inputs) > gpu_small.TOLERANCE["ieee"], call


def test_float32_is_multiplied_as_told():
    conv = torch.backends.cudnn.conv
    for kind in ("tf32", "ieee", "half"):
        with machine.float32_precision(kind):
            assert conv.fp32_precision == ("tf32" if kind == "tf32" else "ieee")
    assert conv.fp32_precision == "tf32", "as PyTorch has it"
    assert torch.backends.cudnn.allow_tf32  # raises where old and new settings differ
    assert not torch.backends.cuda.matmul.allow_tf32
