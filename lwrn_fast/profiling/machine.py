"""What this machine is, and how fast it multiplies and copies: the limits that results are held against."""

import functools
import os
import platform
import time
from collections.abc import Callable

import torch

from .._version import __version__
from ..backends import native
from . import peers


def thread_counts() -> list[int]:
    """1, and 2 where there are as many cores."""
    return [n for n in (1, 2) if n <= cores()]


def why_no_numbers() -> str | None:
    """Where the compiled part is absent, "ours" would be PyTorch's own; None where it is there."""
    reason = native.missing()
    return f"nothing of ours to measure: {reason}" if reason else None


def quick_in_bfloat16() -> bool:
    """Whether PyTorch's convolutions are; on x86 without AVX-512 a network in bfloat16 takes half a minute."""
    return platform.machine() != "x86_64" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, str]:
    """Machine and versions, for the result file and for the reader."""
    extension = native.extension()
    return {
        "cpu": _cpu_name(),
        "cores": str(cores()),
        "isa": "none" if extension is None else extension.cpu_isa(),
        "oneDNN isa": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lwrn_fast": __version__,
        **peers.versions(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_initialized() else {}),
    }


@functools.cache
def gemm_rate(dtype: torch.dtype, threads: int, device: str = "cpu") -> float:
    """Operations per second of PyTorch's matrix products at their best: torch.mm, and on a CPU oneDNN's, for MKL leaves
    half of AVX-512 unused on some processors. A type the machine is slow in may be widened to float32."""
    rate = 0.0
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for kind in dict.fromkeys((torch.float32, dtype)):
        for rows, inner, columns in ((1024, 256, 256), (16384, 256, 256), (2048, 2048, 2048)):
            a, b = (torch.randn(shape).to(device, kind) for shape in ((rows, inner), (inner, columns)))
            ways = [functools.partial(torch.mm, a, b)]
            if device == "cpu" and kind == torch.float32 and torch.backends.mkldnn.is_available():
                onednn = torch.ops.mkldnn._linear_pointwise
                ways.append(functools.partial(onednn, a, b.t().contiguous(), None, "none", [], ""))
            found = 2 * rows * inner * columns / min(_best(way) for way in ways)
            if found < rate / 8:
                break  # the larger ones would take minutes
            rate = max(rate, found)
    torch.set_num_threads(before)
    return rate


@functools.cache
def copy_rate(threads: int, device: str = "cpu") -> float:
    """Bytes per second, read plus written, of a copy far larger than the caches."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    source = torch.ones(64 << 20, device=device)
    target = source.clone()  # memory that has been touched
    rate = 2 * source.nbytes / _best(lambda: target.copy_(source))
    torch.set_num_threads(before)
    return rate


def rates(dtype: torch.dtype, threads: int, device: str = "cpu") -> tuple[float, float]:
    """Both of these, measured anew."""
    return gemm_rate.__wrapped__(dtype, threads, device), copy_rate.__wrapped__(threads, device)


def limit(operations: int, nbytes: int, dtype: torch.dtype, threads: int) -> float:
    """Seconds below which this machine cannot do it: its multiplications or its traffic, whichever takes longer."""
    return max(operations / gemm_rate(dtype, threads), nbytes / copy_rate(threads))


def _best(call: Callable[[], object], seconds: float = 0.3) -> float:
    """The fastest call; at least two, more while there is time."""
    best, spent, calls = float("inf"), 0.0, 0
    while calls < 2 or spent < seconds:
        start = time.perf_counter()
        call()
        synchronize()
        took = time.perf_counter() - start
        best, spent, calls = min(best, took), spent + took, calls + 1
        if took > seconds:
            break
    return best


def synchronize() -> None:
    """Wait for the GPU, where this process uses one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
