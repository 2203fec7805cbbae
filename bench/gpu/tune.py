"""Search the kernels' configurations for the GPU at hand: `python bench/gpu/tune.py [--op crp] [--kind half] --write`.

For each op, kind of arithmetic and row of kernels/configs.json, on the decoder's shapes that select the row: compile a
grid of tiles on all cores, time them, then go on from the best, one field at a time. Configurations that are
wrong, spill or do not compile are left out and counted. --write replaces this GPU's rows; other GPUs' stay.
"""

import argparse
import copy
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import candidates
import problems
import torch
from candidates import Config
from gpu_bench import save
from problems import CASES, DTYPES, TARGETS, Case, Problem, problem
from torch import Tensor

import gpu
import lwrn_fast
from gpu import Job
from lwrn_fast.kernels import configs
from lwrn_fast.profiling.accuracy import TOLERANCE
from lwrn_fast.profiling.text import significant

TABLE = Path(__file__).parents[2] / "kernels" / "configs.json"
# Calls in a graph.
CALLS = 20
# Configurations whose neighbours are tried.
BEST = 3
# Time of the table's configuration over that of a faster one, above which it is replaced.
MARGIN = 1.02
# Op, kind, smallest number of pixels.
Row = tuple[str, str, int]


@dataclass
class Search:
    """Results for one row: seconds per case, or why there are none."""

    op: str
    kind: str
    cases: list[Case]
    seconds: dict[Config, list[float]] = field(default_factory=dict)
    failures: dict[Config, str] = field(default_factory=dict)

    def ranked(self) -> list[Config]:
        return sorted(self.seconds, key=self.score)

    def score(self, config: Config) -> float:
        """Return the geometric mean over the cases."""
        return math.exp(sum(map(math.log, self.seconds[config])) / len(self.cases))

    def try_all(self, configurations: Iterable[Config], deadline: float) -> None:
        """Time those not yet tried."""
        new = [c for c in dict.fromkeys(configurations) if c not in self.seconds and c not in self.failures]
        jobs = [Job(self.op, self.kind, case, config) for config in new for case in self.cases]
        if not jobs:
            return
        for job, reason in gpu.compiled_ahead(jobs, deadline):
            if reason:
                self.failures.setdefault(job.config, reason)
        for config in new:
            if config not in self.failures:
                try:
                    self.seconds[config] = [seconds(Job(self.op, self.kind, case, config)) for case in self.cases]
                except Exception as error:  # whatever the launch raises
                    self.failures[config] = gpu.one_line(error)

    def race(self, finalists: Sequence[Config], max_rounds: int = 20) -> None:
        """Time these again, in turn."""
        for i, case in enumerate(self.cases):
            given = tensors(case, self.kind)
            runs = {c: graph(Job(self.op, self.kind, case, c).launch(given=given)) for c in finalists}
            times = gpu.race({str(n): run for n, run in enumerate(runs.values())}, 1.0, max_rounds)
            for n, config in enumerate(runs):
                self.seconds[config][i] = times.median(str(n)) / CALLS


def search(op: str, kind: str, cases: list[Case], current: Config, device: candidates.Gpu, deadline: float) -> Search:
    """Try the table's configuration, the grid, then neighbours of the best while there is time and they are faster."""
    tried = Search(op, kind, cases)
    tried.try_all([current, *candidates.grid(op, kind, cases, device)], deadline)
    for _ in range(4):
        best = tried.ranked()[:BEST]
        if not best or time.monotonic() > deadline:
            break
        tried.try_all((n for c in best for n in candidates.neighbours(c, op, kind, cases, device)), deadline)
        if tried.ranked()[0] == best[0]:
            break
    finalists = list(dict.fromkeys([*tried.ranked()[:5], *(c for c in [current] if c in tried.seconds)]))
    tried.race(finalists)
    return tried


def chosen(tried: Search, current: Config) -> Config | None:
    """Return the fastest, or the table's where that is about as fast; None where nothing ran."""
    ranked = tried.ranked()
    if not ranked:
        return None
    if current in tried.seconds and tried.score(current) <= MARGIN * tried.score(ranked[0]):
        return current
    return ranked[0]


def seconds(job: Job) -> float:
    """Return the seconds of one launch, in a graph of several.

    Raises ArithmeticError where its result is wrong or it spills registers.
    """
    inputs, weights = tensors(job.case, job.kind)
    launch = job.launch(given=(inputs, weights))
    problems.poison(launch.out)
    compiled = launch.kernel[launch.grid](**launch.arguments, enable_fp_fusion=True)
    if getattr(compiled, "n_spills", 0):
        raise ArithmeticError("registers are spilled")
    error = problem_of(job.case, job.kind).error(launch.out, inputs)
    tolerance = TOLERANCE[torch.float16] if job.kind == "tf32" else TOLERANCE[DTYPES[job.kind]]
    if not error <= tolerance:
        raise ArithmeticError(f"wrong by {error:.2g}")
    run = graph(launch)
    run()
    return min(gpu.elapsed(run) for _ in range(5)) / CALLS


def graph(launch: Any) -> gpu.Call:
    return gpu.captured([gpu.repeated(launch.run, CALLS)])[0]


@cache
def tensors(case: Case, kind: str) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    return problems.random(case, DTYPES[kind])


@cache
def problem_of(case: Case, kind: str) -> Problem:
    return problem(case, tensors(case, kind)[1])


def rows_of(table: dict[str, Any], key: str, op: str, kind: str) -> list[Config]:
    return [configs.CONFIG_CLASSES[op](**row) for row in table[key][op][kind]]


def cases_by_row(rows: Sequence[Config], cases: Iterable[Case]) -> dict[Config, list[Case]]:
    """Return the rows that any of the cases select, with those cases."""
    selected: dict[Config, list[Case]] = {}
    for case in cases:
        selected.setdefault(next(row for row in rows if problems.pixels(case) >= row.pixels), []).append(case)
    return selected


def with_rows(table: dict[str, Any], key: str, like: str, rows: dict[Row, Config]) -> dict[str, Any]:
    """Return the table with these rows in place of `key`'s of as many pixels; a new key begins as a copy of `like`."""
    table = copy.deepcopy(table)
    entry = table.setdefault(key, copy.deepcopy(table[like]))
    for (op, kind, pixels), config in rows.items():
        others = [row for row in entry[op].get(kind, []) if row["pixels"] != pixels]
        values = {"pixels": pixels, **{k: v for k, v in asdict(config).items() if k != "pixels"}}
        entry[op][kind] = sorted([*others, values], key=lambda row: -row["pixels"])
    return table


def report(tried: Search, row: Row, current: Config, best: Config | None) -> Iterator[str]:
    op, kind, pixels = row
    yield f"{op} {kind} from {pixels} pixels on: {', '.join(map(str, tried.cases))}; microseconds per case"
    for config in dict.fromkeys([*tried.ranked()[:8], *(c for c in [current] if c in tried.seconds)]):
        mark = "*" if config == best else "=" if config == current else " "
        times = " ".join(f"{significant(1e6 * t):8}" for t in tried.seconds[config])
        yield f" {mark} {times}  {candidates.described(config)}"
    yield f"   {len(tried.seconds)} timed, {len(tried.failures)} left out"
    for reason, count in Counter(tried.failures.values()).most_common(6):
        yield f"   {count} times: {reason}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", choices=CASES, action="append", help="only these")
    parser.add_argument("--kind", choices=DTYPES, action="append", help="only these")
    parser.add_argument("--cases", choices=("target", "levels"), default="levels", help="tune for these (levels)")
    parser.add_argument("--budget", type=float, default=480, help="seconds for all of it (480)")
    parser.add_argument("--write", action="store_true", help="put what was found into the table")
    parser.add_argument("--key", help="tune for this entry of the table (the one this GPU uses), new or not")
    parser.add_argument("--table", type=Path, default=TABLE, help=f"the table ({TABLE.name} of the sources)")
    arguments = parser.parse_args()
    gpu.require(["triton"])
    properties = torch.cuda.get_device_properties(0)
    device = candidates.Gpu(properties.multi_processor_count, gpu.shared_memory())
    table = json.loads(arguments.table.read_text(encoding="utf-8"))
    used = configs.device_key(torch.device("cuda"))
    key = arguments.key or used
    like = key if key in table else used
    wanted: list[tuple[Row, Config, list[Case]]] = []
    for kind in arguments.kind or DTYPES:
        for op in arguments.op or CASES:
            if kind in table[like][op]:
                cases = [TARGETS[op]] if arguments.cases == "target" else list(CASES[op])
                for row, selecting in cases_by_row(rows_of(table, like, op, kind), cases).items():
                    wanted.append(((op, kind, row.pixels), replace(row, pixels=0), selecting))
    begun = time.monotonic()
    end = begun + arguments.budget
    done = 0
    with torch.no_grad(), lwrn_fast.use_backend("triton"):
        for i, (row, current, selecting) in enumerate(wanted):
            now = time.monotonic()
            if now >= end:
                print(f"no time left for {len(wanted) - i} of {len(wanted)} rows, the first of them {row}")
                break
            tried = search(*row[:2], selecting, current, device, now + (end - now) / (len(wanted) - i))
            best = chosen(tried, current)
            print("\n".join(report(tried, row, current, best)), flush=True)
            if best is not None:
                done += 1
                table = with_rows(table, key, like, {row: best})
                if arguments.write:
                    save(arguments.table, table)
            torch.cuda.empty_cache()
    print(f"{done} of {len(wanted)} rows of {key} in {time.monotonic() - begun:.0f} s")
    return int(done < len(wanted))


if __name__ == "__main__":
    sys.exit(main())
