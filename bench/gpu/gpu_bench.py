"""Times on a GPU, as JSON: `python bench/gpu/gpu_bench.py --json FILE [--cases target|levels]`.

Contestants run eagerly, launch by launch, and from a CUDA graph of several calls: "hot" on the same input again and
again, as after the layer that wrote it, and "rotating" over inputs that the L2 cache cannot hold together. Ours is
every backend that can run, and times are shown as multiples of the first one's. Whoever is wrong has no number.
"""

import argparse
import datetime
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import problems
import torch
from problems import CASES, DTYPES, TARGETS, Case, Problem, problem
from torch import Tensor

import gpu
from gpu import Call
from lwrn_fast.io import atomic
from lwrn_fast.profiling import machine, text
from lwrn_fast.profiling.accuracy import TOLERANCE
from lwrn_fast.profiling.cases import CrpCase, FusionCase, UpsampleArgmaxCase
from lwrn_fast.profiling.peers import COMPILE, EAGER, FLOOR, OURS
from lwrn_fast.profiling.text import significant

GRAPH = ", CUDA graph"
OURS_BY = {f"{OURS}, {backend}": backend for backend in gpu.BACKENDS}
# Prefix of contestants that are ours, by one CUDA kernel alone.
KERNEL = "cuda kernel "
OTHERS = (EAGER, COMPILE, FLOOR)
KINDS = ("half", "tf32")
# Calls at a time on the same input.
HOT = 20
# Sets of inputs that are rotated.
MAX_SETS = 256
# Cases so small that a GPU is done with them before Python has made the next call.
SMALLEST: dict[str, Case] = {
    "crp": CrpCase(256, 16, 16),
    "fusion": FusionCase(((256, 16, 16), (256, 8, 8)), 256, "relu"),
    "upsample_argmax": UpsampleArgmaxCase(21, 16, 16, (64, 64)),
}


def base(names: Iterable[str]) -> str:
    """Return the contestant that the others are compared with: the first of ours."""
    present = {name.removesuffix(GRAPH) for name in names}
    return next((name for name in OURS_BY if name in present), OURS)


def measure(
    op: str, case: Case, kind: str, seconds: float, names: tuple[str, ...], kernels: bool = False
) -> list[dict[str, Any]]:
    """Return a row per contestant of this case; one that fails or is wrong has a row that says so.

    kernels: each of the CUDA kernels is a contestant, which shows if the fastest is chosen.
    """
    torch.manual_seed(0)
    torch.compiler.reset()  # a function is compiled for a few cases only, then left as it is
    nbytes = case.bytes(DTYPES[kind])
    count = min(MAX_SETS, max(2, -(-3 * torch.cuda.get_device_properties(0).L2_cache_size // nbytes)))
    inputs, weights = problems.random(case, DTYPES[kind])
    sets = [inputs, *(problems.random(case, DTYPES[kind])[0] for _ in range(count - 1))]
    solved = problem(case, weights)
    functions: dict[str, Callable[..., Any] | None] = {
        **dict.fromkeys(OURS_BY, solved.ours),
        EAGER: solved.plain,
        COMPILE: torch.compile(solved.plain, mode="max-autotune-no-cudagraphs", dynamic=False),
        FLOOR: solved.floor,
        **{KERNEL + kernel: solved.ours for kernel in gpu.CUDA_KERNELS[op] if kernels},
    }
    tolerance = TOLERANCE[torch.float16] if kind == "tf32" else TOLERANCE[DTYPES[kind]]
    hot: dict[str, Call] = {}
    rotating: dict[str, Call] = {}
    facts_by_name: dict[str, dict[str, Any]] = {}
    for name, function in functions.items():
        if function is None or not (name in names or name.startswith(KERNEL)):
            continue
        facts_by_name[name] = facts_by_name[name + GRAPH] = {}
        try:
            facts_by_name[name] = prepare(name, function, sets, solved, tolerance, hot, rotating)
        except Exception as error:  # whatever a contestant raises: the others go on
            facts_by_name[name] = {"failed": gpu.one_line(error)}
            facts_by_name[name + GRAPH] = facts_by_name[name]
            for runs in (hot, rotating):
                runs.pop(name, None)
                runs.pop(name + GRAPH, None)
    times = {"hot": (gpu.race(hot, seconds), HOT), "rotating": (gpu.race(rotating, seconds), len(sets))}
    limit = gpu.limit(case, kind)
    results = []
    for name, facts in facts_by_name.items():
        row = {"op": op, "case": str(case), "where": CASES[op].get(case, ""), "kind": kind, "contestant": name, **facts}
        if "failed" not in facts:
            like = base(names) + GRAPH * name.endswith(GRAPH)
            for mode, (taken, calls) in times.items():
                row[f"{mode}_us"] = significant(1e6 * taken.median(name) / calls)
                row[f"{mode}_times_ours"] = significant(taken.ratio(name, like)) if like in taken.rounds else None
                row[f"{mode}_rounds"] = len(taken.taken(name))
            if name.removesuffix(GRAPH) != FLOOR:
                row["percent_of_limit"] = significant(1e8 * limit / row["rotating_us"])
            row["limit_us"] = significant(1e6 * limit)
        results.append(row)
    return results


def prepare(
    name: str,
    function: Callable[..., Any],
    sets: list[list[Tensor]],
    solved: Problem,
    tolerance: float,
    hot: dict[str, Call],
    rotating: dict[str, Call],
) -> dict[str, Any]:
    """Check the function on the first and the last inputs, eagerly and from a graph, and add its calls to be timed."""

    def call(given: list[Tensor]) -> Call:
        return lambda: function(*given)

    def chosen(run: Call) -> Call:
        if name.startswith(KERNEL):
            return gpu.on("cuda", run, name.removeprefix(KERNEL))
        return gpu.on(OURS_BY[name], run) if name in OURS_BY else run

    def check(got: Any, given: list[Tensor]) -> None:
        error = 0.0 if name == FLOOR else solved.error(got, given)
        if not error <= tolerance:
            raise ArithmeticError(f"error {error:.3g}, at most {tolerance:.3g} is right")

    calls = [call(given) for given in sets]
    for i in (0, -1):
        used = chosen(calls[i])()
        problems.poison(used)
        del used  # its memory is the next result's
        check(chosen(calls[i])(), sets[i])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = chosen(calls[0])()
    torch.cuda.synchronize()
    kept = sum(t.nbytes for t in (result if isinstance(result, list) else [result]))
    extra = torch.cuda.max_memory_allocated() - before - kept

    replay_hot, _ = gpu.captured([chosen(gpu.repeated(calls[0], HOT))])
    replay, results = gpu.captured([chosen(one) for one in calls])
    for result in results:
        problems.poison(result)
    replay()
    for i in (0, -1):
        check(results[i], sets[i])
    hot[name] = chosen(gpu.repeated(calls[0], HOT))
    rotating[name] = chosen(lambda: [one() for one in calls][-1])
    hot[name + GRAPH], rotating[name + GRAPH] = replay_hot, replay
    return {"extra_bytes": extra}


def python_times(names: Iterable[str]) -> dict[str, dict[str, float]]:
    """Return microseconds of Python per call, on maps so small that the GPU is done first."""
    times: dict[str, dict[str, float]] = {}
    for op, case in SMALLEST.items():
        inputs, weights = problems.random(case, torch.bfloat16)
        solved = problem(case, weights)
        times[op] = {EAGER: host_microseconds(solved.plain, inputs)}
        for name in names:
            if name in OURS_BY:
                ours = functools.partial(host_microseconds, solved.ours, inputs)
                times[op][name] = gpu.on(OURS_BY[name], ours)()
    return times


def host_microseconds(function: Callable[..., Any], inputs: list[Tensor]) -> float:
    return significant(1e6 * gpu.host_seconds(lambda: function(*inputs)))


def save(path: Path, result: dict[str, Any]) -> None:
    """Write the results, whole or not at all, since the time may run out at any moment."""
    atomic.write(path, lambda unfinished: unfinished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8"))


def table(results: list[dict[str, Any]]) -> str:
    """Return a line per case and kind: the first of ours in microseconds, and the others as multiples of it."""
    groups: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in results:
        groups.setdefault((row["op"], row["case"], row["kind"]), {})[row["contestant"]] = row
    first = base(row["contestant"] for row in results)
    ours = [name for by in OURS_BY for name in (by, by + GRAPH) if name != first + GRAPH]
    others = [*ours, EAGER, EAGER + GRAPH, COMPILE, COMPILE + GRAPH, FLOOR + GRAPH]
    present = dict.fromkeys(row["contestant"] for row in results)
    others += [name for name in present if name.startswith(KERNEL) and name.endswith(GRAPH)]
    head = ["op", "case", "kind", f"{first}{GRAPH}, hot, us", "rotating, us", "% of limit", *others]
    lines = []
    for key, group in groups.items():
        best = group.get(first + GRAPH, {})
        cells = [*key, *(str(best.get(k, "-")) for k in ("hot_us", "rotating_us", "percent_of_limit"))]
        for name in others:
            row = group.get(name, {})
            us, base_us = row.get("rotating_us"), best.get("rotating_us")
            cells.append("failed" if "failed" in row else f"{us / base_us:.2f}" if us and base_us else "-")
        lines.append(cells)
    return text.markdown([head, *lines], left=len(head))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    parser.add_argument("--cases", choices=("target", "levels"), default="target", help="the targets, or every level")
    parser.add_argument("--op", choices=CASES, action="append", help="only these")
    parser.add_argument("--kind", choices=DTYPES, action="append", help=f"only these; {' and '.join(KINDS)} if none")
    parser.add_argument("--contestant", choices=[*OURS_BY, *OTHERS], action="append", help="only these")
    parser.add_argument("--kernels", action="store_true", help="each of the CUDA kernels too")
    parser.add_argument("--seconds", type=float, default=0.3, help="measured time per contestant and mode (0.3)")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no case is begun")
    parser.add_argument("--commit", default="", help="what is measured, for the result file")
    parser.add_argument("--machine", action="store_true", help="print what the GPU is, and end")
    arguments = parser.parse_args()
    able = gpu.require()
    start = time.monotonic()
    described = gpu.describe(arguments.commit)
    if arguments.machine:
        print(json.dumps(described, indent=1))
        return 0
    names = tuple(n for n in arguments.contestant or [*OURS_BY, *OTHERS] if OURS_BY.get(n, able[0]) in able)
    chosen = TARGETS if arguments.cases == "target" else CASES
    wanted = [
        (op, case, kind)
        for kind in arguments.kind or KINDS
        for op in arguments.op or CASES
        for case in ([chosen[op]] if arguments.cases == "target" else chosen[op])
    ]
    results: list[dict[str, Any]] = []
    result = {"date": datetime.date.today().isoformat(), "machine": described, "results": results}
    result["cannot_run"] = {backend: gpu.why_not(backend) for backend in gpu.BACKENDS if backend not in able}
    with torch.no_grad():
        result["copy_bytes_per_second"] = gpu.copy_rate()
        result["operations_per_second"] = {kind: gpu.gemm_rate(kind) for kind in dict.fromkeys(k for *_, k in wanted)}
        result["python_us_per_call"] = python_times(names)
        result["left_out"] = []
        for op, case, kind in wanted:
            if time.monotonic() - start > arguments.budget:
                result["left_out"].append([op, str(case), kind])
                continue
            with machine.float32_precision(kind):
                rows = measure(op, case, kind, arguments.seconds, names, arguments.kernels and "cuda" in able)
            results += rows
            if arguments.json:
                save(arguments.json, result)
            for row in rows:
                if "failed" in row:
                    print(f"{op} {case} {kind}, {row['contestant']}: {row['failed']}", flush=True)
    if arguments.json:
        save(arguments.json, result)
    print(json.dumps({key: value for key, value in result.items() if key != "results"}, indent=1))
    print(table(results))
    if result["left_out"]:
        print(f"left out for want of time: {len(result['left_out'])} cases")
    return int(any("failed" in row and row["contestant"] in OURS_BY for row in results))


if __name__ == "__main__":
    sys.exit(main())
