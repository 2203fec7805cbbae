"""One pytest-benchmark entry per case, type, number of threads and contestant; the times of a group come from one race.

`pytest bench/bench_crp.py` runs the usual cases, `--everything` all of them; `--benchmark-json FILE` keeps the result
for `python bench/table.py`.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch

import memory
from lwrn_fast.profiling import machine, peers
from lwrn_fast.profiling.paired import Contest, Times, race
from shapes import Case


class Entry(NamedTuple):
    """One bar of the chart."""

    case: Case
    dtype: torch.dtype
    threads: int
    rivals: tuple[str, ...]
    contestant: str

    @property
    def group(self) -> str:
        return f"{self.case} {type_name(self.dtype)} {self.threads} thread(s)"


class Replay:
    """A clock that shows recorded times: pytest-benchmark reads it before and after `advance`, one round each."""

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
    absent = {(n, peers.why_absent(n, d)): type_name(d) for d in reversed(peers.DTYPES[:2]) for n in peers.ALL}
    lines = [f"{name} left out of {kind}: {reason}" for (name, reason), kind in absent.items() if reason]
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
    """Give it the op's set-up function: it runs the group's race, or takes this contestant's part of it."""

    def run(set_up: Callable[..., Contest]) -> None:
        request.node.add_marker(pytest.mark.benchmark(timer=REPLAY, group=entry.group))
        benchmark = request.getfixturevalue("benchmark")
        times, percent = _result(set_up, *entry[:4], request.config.getoption("seconds"))
        taken = times.taken(entry.contestant)
        REPLAY.coming = iter(taken)
        benchmark.pedantic(REPLAY.advance, rounds=len(taken))
        op = request.path.stem.removeprefix("bench_")
        dtype = type_name(entry.dtype)
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
            benchmark.extra_info["extra_bytes"] = memory.extra_bytes(
                op, str(entry.case), dtype, entry.contestant, entry.threads
            )

    return run


def type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _entries(bench: Any, everything: bool) -> Iterator[Entry]:
    """All of them; or the usual cases in float32 with all threads, the first also with one thread and, on a machine
    quick in it, in bfloat16.
    """
    threads = machine.thread_counts()
    for case in bench.CASES if everything else bench.USUAL:
        kinds = [(dtype, n) for dtype in bench.DTYPES for n in threads]
        if not everything:
            first = case == bench.USUAL[0]
            kinds = [(torch.float32, n) for n in (threads if first else threads[-1:])]
            kinds += [(torch.bfloat16, threads[-1])] * (first and machine.quick_in_bfloat16())
        for dtype, n in kinds:
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
    """The race of one group and how near each comes to the machine's limit; the group's entries follow each other."""
    contest = set_up(case, dtype)
    times = race(contest, threads, seconds, rivals)
    if contest.operations is None or contest.bytes is None:
        return times, {}
    limit = machine.limit(contest.operations, contest.bytes, dtype, threads)
    return times, {name: 100 * limit / times.median(name) for name in rivals if name != peers.FLOOR}


def _wants_memory(op: str, entry: Entry) -> bool:
    compared = entry.contestant in (peers.OURS, peers.EAGER)
    return compared and op in ("crp", "fusion") and entry.threads == machine.thread_counts()[-1]
