"""Times that can be divided by each other: contestants take turns, round by round, in one process."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

Call = Callable[[], Any]
SETTLE = 0.02  # seconds; the threads of OpenMP, TBB and ONNX Runtime spin on for some milliseconds after a call
LONG = 0.5  # seconds; above it neither settling nor a call beforehand changes anything
ENDLESS = 4.0  # seconds; one round of it is enough


@dataclass
class Contest:
    """What one set-up function returns: everything to run, check and judge one case.

    contestants: name to a function that prepares it and returns the call to be timed.
    error: how wrong a result is; `tolerance` is what may be timed at all. unchecked: names whose result is not the
    op's. operations, bytes: what the op needs at least, None where that is not one op.
    """

    contestants: dict[str, Callable[[], Call]]
    error: Callable[[Any], float]
    tolerance: float
    unchecked: tuple[str, ...] = ()
    operations: int | None = None
    bytes: int | None = None


class Times:
    """Seconds per contestant and round; None where it sat a round out."""

    def __init__(self, rounds: dict[str, list[float | None]]) -> None:
        self.rounds = rounds

    def taken(self, name: str) -> list[float]:
        return [t for t in self.rounds[name] if t is not None]

    def median(self, name: str) -> float:
        return median(self.taken(name))

    def ratio(self, name: str, to: str) -> float:
        """The median of `name`'s time over `to`'s, over the rounds that both took part in."""
        pairs = zip(self.rounds[name], self.rounds[to], strict=True)
        return median(a / b for a, b in pairs if a is not None and b is not None)


def paired(calls: dict[str, Call], seconds: float, most: int = 24, least: int = 3) -> Times:
    """Run the calls, each of which has run before, in turn.

    Each gets about `seconds`: a slow one sits out rounds, but has at least `least`, or one if it is endless.

    >>> calls = {"a": lambda: None, "b": lambda: time.sleep(0.001)}
    >>> times = paired(calls, seconds=0.01, most=4)
    >>> times.ratio("b", to="a") > 1
    True
    """
    first = {name: _timed(call, LONG) for name, call in calls.items()}
    every = {name: _every(t, seconds, most, least) for name, t in first.items()}
    # everyone sits out together at best: no more rounds than the one that takes part most often
    names = list(calls)
    times: dict[str, list[float | None]] = {name: [] for name in names}
    for r in range(0, most, min(every.values())):
        for i in range(len(names)):
            name = names[(i + r) % len(names)]
            times[name].append(None if r % every[name] else _timed(calls[name], first[name]))
    return Times(times)


def race(
    contest: Contest, threads: int, seconds: float, only: tuple[str, ...] = (), failed: dict[str, str] | None = None
) -> Times:
    """Set up, check and time the contestants (those in `only`, or all) with this number of threads.

    Raises ArithmeticError where a result is wrong: then there is no number for anybody. With `failed`, whoever is wrong
    or raises anything is noted there, with the reason, and loses alone.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.compiler.reset()  # compiled code has the number of threads in it
    calls: dict[str, Call] = {}
    try:
        for name, make in contest.contestants.items():
            if only and name not in only:
                continue
            try:
                with torch.no_grad():
                    call = make()
                with torch.inference_mode():
                    result = call()
                    error = 0.0 if name in contest.unchecked else contest.error(result)
                if not error <= contest.tolerance:
                    raise ArithmeticError(f"{name}: error {error:.3g}, at most {contest.tolerance:.3g} is right")
                calls[name] = call
            except Exception as error:
                if failed is None:
                    raise
                failed[name] = (str(error).strip() or type(error).__name__).splitlines()[0]
        with torch.inference_mode():
            return paired(calls, seconds) if calls else Times({})
    finally:
        torch.set_num_threads(before)


def _every(once: float, seconds: float, most: int, least: int) -> int:
    """Takes part in every how many-th round: a power of two, so that any two contestants share rounds."""
    if once > ENDLESS:
        return most
    every = 1
    while once * most / every > seconds and most // (2 * every) >= least:
        every *= 2
    return every


def _timed(call: Call, expected: float) -> float:
    """Seconds of one call on settled threads and with its own data in the caches, as in a loop of its own."""
    if expected < LONG:
        time.sleep(SETTLE)
        call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
