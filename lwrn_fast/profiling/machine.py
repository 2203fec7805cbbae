"""Description of this machine, and its limits: how fast it multiplies and copies."""

import functools
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from .._version import __version__
from ..backends import native
from . import peers


def thread_counts() -> list[int]:
    """Return the numbers of threads to measure with: 1, and 2 where there are as many cores."""
    return [n for n in (1, 2) if n <= cores()]


def why_no_numbers() -> str | None:
    """Return why "ours" would be PyTorch's own, the compiled part being absent; None where it is there."""
    reason = native.missing()
    return f"nothing of ours to measure: {reason}" if reason else None


def quick_in_bfloat16() -> bool:
    """Tell if PyTorch's convolutions are; on x86 without AVX-512 a model in bfloat16 takes half a minute."""
    return platform.machine() != "x86_64" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, str]:
    """Return machine and versions, for the result file and for the reader."""
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
    """Return the operations per second of PyTorch's matrix products at their best.

    They are torch.mm, and on a CPU oneDNN's, because MKL leaves half of AVX-512 unused on some processors. A dtype that
    the machine is slow in may be widened to float32.
    """
    best = 0.0
    with use_threads(threads):
        for operand in dict.fromkeys((torch.float32, dtype)):
            for m, k, n in ((1024, 256, 256), (16384, 256, 256), (2048, 2048, 2048)):
                a, b = (torch.randn(shape).to(device, operand) for shape in ((m, k), (k, n)))
                products = [functools.partial(torch.mm, a, b)]
                if device == "cpu" and operand == torch.float32 and torch.backends.mkldnn.is_available():
                    onednn = torch.ops.mkldnn._linear_pointwise
                    products.append(functools.partial(onednn, a, b.t().contiguous(), None, "none", [], ""))
                rate = 2 * m * k * n / min(map(_best, products))
                if rate < best / 8:
                    break  # the larger ones would take minutes
                best = max(best, rate)
    return best


@functools.cache
def copy_rate(threads: int, device: str = "cpu") -> float:
    """Return bytes per second, read plus written, of a copy far larger than the caches."""
    with use_threads(threads):
        source = torch.ones(64 << 20, device=device)
        target = source.clone()  # memory that has been touched
        return 2 * source.nbytes / _best(lambda: target.copy_(source))


def rates(dtype: torch.dtype, threads: int, device: str = "cpu") -> tuple[float, float]:
    """Measure `gemm_rate` and `copy_rate` anew."""
    return gemm_rate.__wrapped__(dtype, threads, device), copy_rate.__wrapped__(threads, device)


def limit(operations: int, nbytes: int, dtype: torch.dtype, threads: int) -> float:
    """Return the seconds that this machine needs at least: multiplications or traffic, whichever takes longer."""
    return max(operations / gemm_rate(dtype, threads), nbytes / copy_rate(threads))


def _best(call: Callable[[], object], seconds: float = 0.3) -> float:
    """Return the seconds of the fastest call: of two at least, of more while there is time."""
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


@contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """Have PyTorch multiply float32 on a GPU in TF32 ("tf32") or exactly (anything else), in convolutions too.

    The old settings are made first: torch.compile reads them, and refuses to see only the new ones changed.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    def choose(tf32: bool) -> None:
        matmul.allow_tf32 = cudnn.allow_tf32 = tf32
        cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"  # type: ignore[attr-defined]

    before = (matmul.allow_tf32, cudnn.allow_tf32)
    choose(precision == "tf32")
    try:
        yield
    finally:
        choose(before[1])
        matmul.allow_tf32 = before[0]


@contextmanager
def use_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
