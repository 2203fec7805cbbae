"""One model, layer by layer, on each backend: the figures of `lwrn-fast profile`, as one dictionary for JSON.

In each round every backend runs twice as it is and once with hooks, which time the layers; so the hooks' cost is known.
All times are medians of rounds.
"""

import datetime
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..errors import UserError
from ..inference import segment
from ..inference.segment import DTYPES
from ..models.networks import Network
from . import layers, machine, memory
from .costs import Cost
from .layers import Layer
from .paired import first_line
from .subject import Options, prepare

# Backends of a device.
OF_DEVICE = {"cpu": ("reference", "cpu"), "cuda": ("reference", "triton", "cuda")}
PARTS = ("fusion", "crp", "refine")
MAX_ROUNDS, MIN_ROUNDS = 25, 3
Say = Callable[[str], object]


def profile(options: Options, trace: Path | None = None, say: Say = lambda _: None) -> dict[str, Any]:
    """Measure, and return all figures. Raises UserError for what the user can mend.

    trace: where a Chrome trace of one run per backend goes. say: called with a line for each step.
    """
    with machine.use_threads(options.threads or torch.get_num_threads()), torch.no_grad():
        return _measure(_resolved(options), trace, say)


def _resolved(options: Options) -> Options:
    """Return the options with device and backends named; UserError where they do not fit each other or this machine."""
    names = dict.fromkeys(options.names)
    device = options.device or ("cuda" if {"cuda", "triton"} & set(names) else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        asked = next((name for name in names if name in ("cuda", "triton")), None)
        named = f"the backend {asked!r}" if asked else "--device cuda"
        raise UserError(f"{named} cannot run here: {backends.missing(asked or 'cuda') or 'PyTorch finds no GPU'}")
    if not names or "all" in names:
        names = dict.fromkeys(name for name in OF_DEVICE[device] if backends.missing(name) is None)
    for name in names:
        if name not in OF_DEVICE[device]:
            raise UserError(f"the backend {name!r} does not run on {device}: {', '.join(OF_DEVICE[device])} do")
        segment.check_backend(name)
    return replace(options, names=tuple(names), device=device, threads=options.threads or torch.get_num_threads())


def _measure(options: Options, trace: Path | None, say: Say) -> dict[str, Any]:
    device, dtype, threads = torch.device(options.device or "cpu"), DTYPES[options.dtype], torch.get_num_threads()
    model, images = prepare(options, options.size)
    say("measuring this machine's limits")
    before = machine.rates(dtype, threads, device.type)
    say("counting operations and bytes")
    measured = layers.layers(model, images)
    calls, longest, absent = _warmed_up(options, partial(layers.run, model, images), say)
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(options.seconds / max(longest, 1e-6) / 3)))
    say(f"timing, {rounds} rounds")
    whole, runs = _times(model, images, calls, rounds)
    say("recording a trace")
    operations = _operations(model, images, list(calls), trace)
    say("measuring peak memory")
    peaks = {name: _peak(name, options, calls[name]) for name in calls}
    say("measuring this machine's limits again")
    gemm, copy = map(max, before, machine.rates(dtype, threads, device.type))  # other work may have held one up
    names = [layer.name for layer in measured]
    times = {name: {layer: median(run[layer] for run in runs[name]) for layer in names} for name in calls}
    limits = {"gemm": gemm, "copy": copy}
    totals = {
        name: {
            "ms": _ms(median(whole[name])),
            "hooked_ms": _ms(median(sum(run.values()) for run in runs[name])),
            "layers_ms": _ms(sum(times[name].values())),
            "between_ms": _ms(median(sum(run.values()) - sum(run[layer] for layer in names) for run in runs[name])),
            "runs": rounds,
            "peak_bytes": peaks[name],
        }
        for name in calls
    }
    return {
        "kind": "profile",
        "title": f"{options.network}, layer by layer",
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe() | {"device": device.type},
        "options": {
            "model": options.network,
            "checkpoint": options.checkpoint and Path(options.checkpoint).name,
            "size": list(options.size),
            "batch": options.batch,
            "dtype": options.dtype,
            "threads": threads,
        },
        "limits": {"operations_per_s": gemm, "bytes_per_s": copy},
        "backends": list(calls),
        "absent": absent,
        "totals": totals,
        "total": _row("total", measured, times, limits),
        "groups": _groups(measured, times, limits),
        "layers": [
            {"group": layer.group, "part": layer.part, "what": layer.what, "shape": list(layer.shape)}
            | _row(layer.name, [layer], times, limits)
            for layer in measured
        ],
        "ops": operations,
    }


def _warmed_up(
    options: Options, once: Callable[[], Any], say: Say
) -> tuple[dict[str, Callable[[], float]], float, dict[str, str]]:
    """Return a run on each backend, the seconds of the slowest one, and why others are absent."""
    others = [name for name in backends.BACKENDS if name not in ("auto", *options.names)]
    absent = {name: backends.missing(name) or f"not asked for, or not for {options.device}" for name in others}
    calls: dict[str, Callable[[], float]] = {}
    longest = 0.0
    for name in options.names:
        say(f"warming up {name}")
        call = _on(name, once)
        try:
            call()
            longest = max(longest, call())
            calls[name] = call
        except Exception as error:  # one that fails does not lose the rest
            absent[name] = f"failed: {first_line(error)}"
            say(f"{name} {absent[name]}")
    if not calls:
        raise UserError("; ".join(f"{name}: {absent[name]}" for name in options.names))
    return calls, longest, absent


def _on(name: str, once: Callable[[], Any]) -> Callable[[], float]:
    """Return a function that runs once on a backend and returns the seconds."""

    def call() -> float:
        with backends.use_backend(name):
            start = time.perf_counter()
            once()
            machine.synchronize()
            return time.perf_counter() - start

    return call


def _times(
    model: Network, images: Tensor, calls: dict[str, Callable[[], float]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[dict[str, float]]]]:
    """Return the seconds of each backend round by round: of the whole, and of each layer."""
    whole: dict[str, list[float]] = {name: [] for name in calls}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()  # as in a loop of its own: its data are in the caches
            whole[name].append(call())
            watch = layers.Stopwatch(images.device)
            with backends.use_backend(name), layers.watched(model, watch.switch):
                layers.run(model, images, watch.switch)
            runs[name].append(watch.seconds())
    return whole, runs


class _Ranges:
    """A listener that makes each layer a named range of the trace."""

    def __init__(self) -> None:
        self._open = ExitStack()

    def switch(self, name: str) -> None:
        self.close()
        self._open.enter_context(torch.profiler.record_function(name))

    def close(self) -> None:
        self._open.close()


def _operations(
    model: Network, images: Tensor, names: Sequence[str], trace: Path | None
) -> dict[str, list[dict[str, Any]]]:
    """Return the milliseconds of each operation itself, PyTorch's and ours, the longest first; write the trace."""
    gpu = images.is_cuda
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * gpu
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it says on stderr when it begins and ends
    ranges = _Ranges()
    with torch.profiler.profile(activities=activities) as recorded:
        for name in names:
            with torch.profiler.record_function(f"backend {name}"), backends.use_backend(name):
                with layers.watched(model, ranges.switch):
                    layers.run(model, images, ranges.switch)
                ranges.close()
                machine.synchronize()
    if trace is not None:
        recorded.export_chrome_trace(str(trace))
    events = list(recorded.events() or [])
    operations: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        span = next(e.time_range for e in events if e.name == f"backend {name}")
        sums: dict[str, list[float]] = {}
        for event in events:
            if "::" in event.name and span.start <= event.time_range.start <= span.end:
                took = event.self_device_time_total if gpu else event.self_cpu_time_total
                sums.setdefault(event.name, []).append(took / 1e3)
        longest = sorted(sums.items(), key=lambda item: -sum(item[1]))
        operations[name] = [{"name": op, "ms": round(sum(taken), 4), "calls": len(taken)} for op, taken in longest]
    return operations


def _peak(name: str, options: Options, call: Callable[[], Any]) -> int | None:
    """Return the peak bytes of a run beyond weights and images, None where they cannot be known."""
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    given = {key: getattr(options, key) for key in ("network", "checkpoint", "size", "batch", "dtype")}
    try:
        return memory.of_model(name, options.threads or 1, **given)
    except subprocess.CalledProcessError:
        return None


def _row(
    name: str, members: Sequence[Layer], times: dict[str, dict[str, float]], limits: dict[str, float]
) -> dict[str, Any]:
    """Return costs and times of these layers together; the limit is the sum of the layers' limits."""
    cost = Cost()
    for layer in members:
        cost = cost.plus(layer.cost)
    limit = sum(max(m.cost.operations / limits["gemm"], m.cost.bytes / limits["copy"]) for m in members)
    seconds = {backend: sum(taken[layer.name] for layer in members) for backend, taken in times.items()}
    return {
        "name": name,
        "flops": cost.flops,
        "others": cost.others,
        "bytes": cost.bytes,
        "limit_ms": _ms(limit),
        "ms": {backend: _ms(took) for backend, took in seconds.items()},
        "percent": {backend: round(100 * limit / took, 2) if took else None for backend, took in seconds.items()},
    }


def _groups(
    measured: Sequence[Layer], times: dict[str, dict[str, float]], limits: dict[str, float]
) -> list[dict[str, Any]]:
    """Return a row per stage of the encoder, per level with rows of its parts below it, and per later stage."""
    rows = []
    for group in dict.fromkeys(layer.group for layer in measured):
        members = [layer for layer in measured if layer.group == group]
        parts = list(dict.fromkeys(layer.part for layer in members))
        kind = "level" if group.startswith("level ") else parts[0]
        below = []
        if kind == "level":
            parts.sort(key=PARTS.index)
            below = [_row(part, [m for m in members if m.part == part], times, limits) for part in parts]
        rows.append({"kind": kind, "parts": below} | _row(group, members, times, limits))
    return rows


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 6)
