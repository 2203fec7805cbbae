"""One pytest-benchmark entry per case, dtype, number of threads and contestant; a group's times come from one race.

`pytest bench/ops/bench_crp.py` runs the usual cases, `--everything` all of them; `--benchmark-json FILE` keeps the
result for `python bench/table.py`.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch

from lwrn_fast.profiling import machine, memory, peers
from lwrn_fast.profiling.cases import Case, dtype_name
from lwrn_fast.profiling.paired import Contest, Times, race


class Entry(NamedTuple):
    """One bar of the chart."""

    case: Case
    dtype: torch.dtype
    threads: int
    rivals: tuple[str, ...]
    contestant: str

    @property
    def group(self) -> str:
        return f"{self.case} {dtype_name(self.dtype)} {self.threads} thread(s)"


class Replay:
    """Clock that shows recorded times: pytest-benchmark reads it before and after `advance`, one round each."""

    def __init__(self) -> None:
        self.now = 0.0
        self.coming: Iterator[float] = iter(())

    def __call__(self) -> float:
        return self.now

    def advance(self) -> None:
        self.now += next(self.coming, 0.0)


REPLAY = Replay()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--everything", action="store_true", help="all cases, types and numbers of threads")
    parser.addoption("--seconds", type=float, default=0.5, help="measured time per contestant (0.5)")


def pytest_report_header(config: pytest.Config) -> list[str]:
    absent = {(n, peers.why_absent(n, d)): dtype_name(d) for d in reversed(peers.DTYPES[:2]) for n in peers.ALL}
    lines = [f"{name} left out of {dtype}: {reason}" for (name, reason), dtype in absent.items() if reason]
    if not machine.quick_in_bfloat16() and not config.getoption("everything"):
        lines.append("bfloat16 left out: PyTorch is slow in it on this CPU; --everything has it")
    return lines


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "entry" in metafunc.fixturenames:
        entries = list(_entries(metafunc.module, metafunc.config.getoption("everything")))
        metafunc.parametrize("entry", entries, ids=[f"{e.group} {e.contestant}".replace(" ", "_") for e in entries])


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["described"] = machine.describe()


def pytest_runtestloop(session: pytest.Session) -> None:
    reason = machine.why_no_numbers()
    if reason and not session.config.option.collectonly:
        pytest.exit(reason, returncode=2)


@pytest.fixture
def measure(request: pytest.FixtureRequest, entry: Entry) -> Callable[[Callable[..., Contest]], None]:
    """Return a function that takes the op's set-up function and runs the group's race, once for all its entries."""

    def run(set_up: Callable[..., Contest]) -> None:
        request.node.add_marker(pytest.mark.benchmark(timer=REPLAY, group=entry.group))
        benchmark = request.getfixturevalue("benchmark")
        times, percent = _result(set_up, *entry[:4], request.config.getoption("seconds"))
        taken = times.taken(entry.contestant)
        REPLAY.coming = iter(taken)
        benchmark.pedantic(REPLAY.advance, rounds=len(taken))
        op = request.path.stem.removeprefix("bench_")
        dtype = dtype_name(entry.dtype)
        benchmark.extra_info.update(
            op=op,
            case=str(entry.case),
            where=request.module.CASES[entry.case],
            dtype=dtype,
            threads=entry.threads,
            contestant=entry.contestant,
            times_ours=times.ratio(entry.contestant, peers.OURS),
            percent_of_limit=percent.get(entry.contestant),
            extra_bytes=None,
        )
        if _wants_memory(op, entry):
            benchmark.extra_info["extra_bytes"] = memory.of_case(
                op, str(entry.case), dtype, entry.contestant, entry.threads
            )

    return run


def _entries(bench: Any, everything: bool) -> Iterator[Entry]:
    """Yield all entries, or those of the usual cases: in float32 with all threads, the first case also with one thread
    and, on a machine quick in it, in bfloat16.
    """
    threads = machine.thread_counts()
    for case in bench.CASES if everything else bench.USUAL:
        settings = [(dtype, n) for dtype in bench.DTYPES for n in threads]
        if not everything:
            first = case == bench.USUAL[0]
            settings = [(torch.float32, n) for n in (threads if first else threads[-1:])]
            settings += [(torch.bfloat16, threads[-1])] * (first and machine.quick_in_bfloat16())
        for dtype, n in settings:
            rivals = tuple(peers.taking_part(dtype, bench.CONTESTANTS))
            for name in rivals:
                yield Entry(case, dtype, n, rivals, name)


@functools.lru_cache(maxsize=1)
def _result(
    set_up: Callable[..., Contest],
    case: Case,
    dtype: torch.dtype,
    threads: int,
    rivals: tuple[str, ...],
    seconds: float,
) -> tuple[Times, dict[str, float]]:
    """Run the race of one group; return the times and percentages of the machine's limit.

    The group's entries follow each other, so one result is kept.
    """
    contest = set_up(case, dtype)
    times = race(contest, threads, seconds, rivals)
    if contest.operations is None or contest.bytes is None:
        return times, {}
    limit = machine.limit(contest.operations, contest.bytes, dtype, threads)
    return times, {name: 100 * limit / times.median(name) for name in rivals if name != peers.FLOOR}


def _wants_memory(op: str, entry: Entry) -> bool:
    shown = entry.contestant in (peers.OURS, peers.EAGER)
    return shown and op in ("crp", "fusion") and entry.threads == machine.thread_counts()[-1]
