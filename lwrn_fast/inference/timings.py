"""The record of where time goes, which `Segmenter` fills and the commands read."""

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

# Calls that a Segmenter's record keeps per stage.
REMEMBERED = 1000


class Timings:
    """Seconds of each stage of the last calls.

    calls: kept per stage; None keeps all. synchronise: wait for the GPU at the end of each stage, for who takes the
    stages one by one; without it, a stage on a GPU is left to the record of CUDA's own clock (`cuda_graphs`).

    >>> timings = Timings()
    >>> timings.add("network", 0.002)
    >>> timings.medians()
    {'network': 2.0}
    """

    def __init__(self, calls: int | None = REMEMBERED, synchronise: bool = False) -> None:
        self.synchronise = synchronise
        self._seconds: dict[str, deque[float]] = defaultdict(partial(deque, maxlen=calls))

    def add(self, stage: str, seconds: float) -> None:
        """Note the time of a call's stage."""
        self._seconds[stage].append(seconds)

    @contextmanager
    def measure(self, stage: str, device: torch.device | None = None) -> Iterator[None]:
        """Note the time that is spent within, unless it raises. device: where the work is; None: the CPU.

        >>> timings = Timings()
        >>> with timings.measure("read"):
        ...     pass
        >>> timings.count("read")
        1
        """
        on_gpu = device is not None and device.type == "cuda"
        start = time.perf_counter()
        yield
        if on_gpu and not self.synchronise:
            return
        if on_gpu:
            torch.cuda.synchronize(device)
        self.add(stage, time.perf_counter() - start)

    def count(self, stage: str) -> int:
        """Return the number of calls that are kept of a stage."""
        return len(self._seconds.get(stage, ()))

    def last(self, stage: str) -> float:
        """Return the seconds of the last call's stage."""
        return self._seconds[stage][-1]

    def milliseconds(self, stage: str) -> list[float]:
        """Return the times of a stage, the oldest first."""
        return [1000 * seconds for seconds in self._seconds.get(stage, ())]

    def medians(self) -> dict[str, float]:
        """Return the median milliseconds of each stage that happened."""
        return {stage: 1000 * statistics.median(seconds) for stage, seconds in self._seconds.items()}
