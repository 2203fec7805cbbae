"""Times that can be divided by each other: contestants take turns, round by round, in one process."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from . import machine

Call = Callable[[], Any]
# Seconds before a timed call: threads of OpenMP, TBB and ONNX Runtime spin on for some milliseconds after a call.
SETTLE = 0.02
# Seconds of a call above which neither settling nor a call beforehand changes anything.
LONG = 0.5
# Seconds of a call of which one round is enough.
ENDLESS = 4.0


@dataclass
class Contest:
    """One case ready to be run, checked and judged: the result of a set-up function.

    contestants: name to a function that prepares it and returns the call to be timed.
    error: the error of a result; at most `tolerance` is timed. unchecked: names whose result is not the op's.
    operations, bytes: what the op needs at least, None where that is not one op.
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
        """Return the median of `name`'s time over `to`'s, over the rounds that both took part in."""
        pairs = zip(self.rounds[name], self.rounds[to], strict=True)
        return median(a / b for a, b in pairs if a is not None and b is not None)


def turns(names: Sequence[str], round_number: int) -> Iterator[str]:
    """Yield every name once; each round begins with the next one.

    >>> [list(turns("abc", number)) for number in (0, 1)]
    [['a', 'b', 'c'], ['b', 'c', 'a']]
    """
    for i in range(len(names)):
        yield names[(i + round_number) % len(names)]


def paired(calls: dict[str, Call], seconds: float, max_rounds: int = 24, min_rounds: int = 3) -> Times:
    """Run the calls, each of which has run before, in turn.

    Each gets about `seconds`: a slow one sits out rounds, but has at least `min_rounds`, or one if it is endless.

    >>> calls = {"a": lambda: None, "b": lambda: time.sleep(0.001)}
    >>> times = paired(calls, seconds=0.01, max_rounds=4)
    >>> times.ratio("b", to="a") > 1
    True
    """
    first = {name: _timed(call, LONG) for name, call in calls.items()}
    every = {name: _every(t, seconds, max_rounds, min_rounds) for name, t in first.items()}
    names = list(calls)
    times: dict[str, list[float | None]] = {name: [] for name in names}
    # Everyone sits out together where that is possible: no more rounds than the one that takes part most often.
    for r in range(0, max_rounds, min(every.values())):
        for name in turns(names, r):
            times[name].append(None if r % every[name] else _timed(calls[name], first[name]))
    return Times(times)


def race(
    contest: Contest, threads: int, seconds: float, only: tuple[str, ...] = (), failed: dict[str, str] | None = None
) -> Times:
    """Set up, check and time the contestants (those in `only`, or all) with this number of threads.

    Raises ArithmeticError where a result is wrong: then there is no number for anybody. With `failed`, whoever is wrong
    or raises anything is noted there, with the reason, and loses alone.
    """
    calls: dict[str, Call] = {}
    with machine.use_threads(threads):
        torch.compiler.reset()  # compiled code has the number of threads in it
        for name, make in contest.contestants.items():
            if only and name not in only:
                continue
            try:
                calls[name] = _checked(name, make, contest)
            except Exception as error:
                if failed is None:
                    raise
                failed[name] = first_line(error)
        with torch.inference_mode():
            return paired(calls, seconds) if calls else Times({})


def _checked(name: str, make: Callable[[], Call], contest: Contest) -> Call:
    """Prepare a contestant, run it once and check the result."""
    with torch.no_grad():
        call = make()
    with torch.inference_mode():
        result = call()
        error = 0.0 if name in contest.unchecked else contest.error(result)
    if not error <= contest.tolerance:
        raise ArithmeticError(f"{name}: error {error:.3g}, at most {contest.tolerance:.3g} is right")
    return call


def first_line(error: BaseException, default: str | None = None) -> str:
    """Return the first line of an error's message; of an empty one `default`, or else the error's class.

    >>> first_line(ValueError()), first_line(MemoryError(), "not enough memory")
    ('ValueError', 'not enough memory')
    """
    return (str(error).strip() or default or type(error).__name__).splitlines()[0]


def _every(once: float, seconds: float, max_rounds: int, min_rounds: int) -> int:
    """Return n for a call that takes part in every n-th round: a power of two, so that any two share rounds."""
    if once > ENDLESS:
        return max_rounds
    every = 1
    while once * max_rounds / every > seconds and max_rounds // (2 * every) >= min_rounds:
        every *= 2
    return every


def _timed(call: Call, expected: float) -> float:
    """Return the seconds of one call on settled threads, its own data in the caches, as in a loop of its own."""
    if expected < LONG:
        time.sleep(SETTLE)
        call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
