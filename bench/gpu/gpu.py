"""Helpers of the GPU's commands: its description and limits, times by CUDA events, and compilation in processes."""

import functools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch
from problems import DTYPES, Case, random
from torch import Tensor

import lwrn_fast
from lwrn_fast.backends import cuda, native
from lwrn_fast.backends import triton as _triton
from lwrn_fast.profiling import machine
from lwrn_fast.profiling.cases import CrpCase, FusionCase, UpsampleArgmaxCase
from lwrn_fast.profiling.paired import Times, turns

Call = Callable[[], Any]
BACKENDS = {"cuda": cuda, "triton": _triton}
# Kernels of csrc/cuda by op, by the names in its sources; each runs the calls that it can.
CUDA_KERNELS = {
    "crp": ("smallest", "small", "large", "small_resident", "large_resident", "large_sm90", "large_resident_sm90"),
    "fusion": ("small", "medium", "large", "medium_sm90", "large_sm90"),
    "upsample_argmax": (),
}
# Errors of the ops where the only kernel that may run cannot.
CANNOT = ("more channels or pixels than the kernels take on this device", "no kernel runs this on this device")
# Fields that nvidia-smi is asked for.
FACTS = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"


def why_not(backend: str) -> str | None:
    """Return why the backend cannot run on this GPU, None where it can."""
    if not torch.cuda.is_available():
        return "PyTorch finds no GPU"
    return BACKENDS[backend].why_not_on(torch.device("cuda"))


def require(names: Iterable[str] = BACKENDS) -> list[str]:
    """Return those of the backends that can run; end the program where none can."""
    reasons = {name: why_not(name) for name in names}
    able = [name for name, reason in reasons.items() if reason is None]
    for reason in dict.fromkeys(reasons.values()):
        if not able:
            print(f"{os.path.basename(sys.argv[0])}: needs a GPU: {reason}", file=sys.stderr)
    if not able:
        raise SystemExit(2)
    return able


def on(backend: str, call: Call, kernel: str | None = None) -> Call:
    """Return the call by this backend and, where a CUDA kernel of its op is named, by that one alone."""

    def run() -> Any:
        with lwrn_fast.use_backend(backend), only(kernel):
            return call()

    return run


@contextmanager
def only(kernel: str | None) -> Iterator[None]:
    """Make calls of the CUDA backend run this kernel alone, or fail."""
    if kernel is None:
        yield
        return
    use_only = cuda._library().lwrn_fast_use_only
    use_only(kernel.encode())
    try:
        yield
    finally:
        use_only(None)


def describe(commit: str = "") -> dict[str, Any]:
    """Return machine, versions and commit, for the result file."""
    import triton

    extension = native.extension()
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "l2": properties.L2_cache_size,
        "nvidia-smi": _printed("nvidia-smi", f"--query-gpu={FACTS}", "--format=csv"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": triton.__version__,
        "nvcc": _printed("nvcc", "--version").rpartition("\n")[2],
        "lwrn_fast": lwrn_fast.__version__,
        "built": extension.build_info() if extension else {},
        "installed": os.path.dirname(lwrn_fast.__file__),
        "commit": commit,
    }


def _printed(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def if_it_can(call: Call) -> Any:
    """Return the call's result; None where the CUDA kernel that it runs on alone cannot run it."""
    try:
        return call()
    except RuntimeError as error:
        if any(reason in str(error) for reason in CANNOT):
            return None
        raise


@functools.cache
def copy_rate() -> float:
    """Return bytes per second, read plus written, of a copy far larger than the caches."""
    source = torch.ones(1 << 30, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(elapsed(lambda: target.copy_(source)) for _ in range(10))


@functools.cache
def gemm_rate(kind: str) -> float:
    """Return operations per second of torch.mm at its best, on random data."""
    rate = 0.0
    with machine.float32_precision(kind):
        for m, k, n in ((8192, 8192, 8192), (16384, 2048, 2048)):
            a = torch.randn(m, k, device="cuda", dtype=DTYPES[kind])
            b = torch.randn(k, n, device="cuda", dtype=DTYPES[kind])
            torch.mm(a, b)
            run = functools.partial(torch.mm, a, b)
            rate = max(rate, 2 * m * k * n / median(elapsed(run) for _ in range(10)))
    return rate


def limit(case: Case, kind: str) -> float:
    """Return the seconds that this GPU needs at least: multiplications or traffic, whichever takes longer."""
    traffic = case.bytes(DTYPES[kind]) / copy_rate()
    if isinstance(case, UpsampleArgmaxCase):  # nothing for a matrix unit
        return traffic
    return max(case.operations / gemm_rate(kind), traffic)


def elapsed(run: Call) -> float:
    """Return the seconds that a run takes on the GPU, by events before and after it."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def repeated(call: Call, times: int) -> Call:
    """Return a call that makes this one so many times; the result is the last one's."""

    def run() -> Any:
        for _ in range(times):
            result = call()
        return result

    return run


def captured(calls: Sequence[Call]) -> tuple[Call, list[Any]]:
    """Return the replay of one CUDA graph of all these calls, and their results, which each replay writes anew."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls[0]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [call() for call in calls]
    return graph.replay, results


def race(runs: dict[str, Call], seconds: float, max_rounds: int = 50, min_rounds: int = 5) -> Times:
    """Time all runs, each of which has run before, in turn. One that has had its seconds sits out the rest."""
    rounds: dict[str, list[float | None]] = {name: [] for name in runs}
    spent = dict.fromkeys(runs, 0.0)
    for r in range(max_rounds):
        for name in turns(list(runs), r):
            if r >= min_rounds and spent[name] > seconds:
                rounds[name].append(None)
                continue
            start = time.perf_counter()
            rounds[name].append(elapsed(runs[name]))
            spent[name] += time.perf_counter() - start
        if all(taken[-1] is None for taken in rounds.values()):
            break
    return Times(rounds)


def host_seconds(call: Call, calls: int = 200) -> float:
    """Return Python's time for one call, the GPU not waited for."""
    tries = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        tries.append((time.perf_counter() - start) / calls)
    torch.cuda.synchronize()
    return median(tries)


def one_line(error: BaseException) -> str:
    """Return an error in one line: the last line of the first cause, where compilers say what is wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1].strip()[:160]}"


@dataclass(frozen=True)
class Job:
    """A kernel to be compiled or run: the op on this case with this configuration (kernels/configs.py)."""

    op: str
    kind: str
    case: Case
    config: Any
    batch: int = 1
    depthwise: bool = False

    def launch(self, device: str = "cuda", given: tuple[list[Tensor], list[Tensor]] | None = None) -> Any:
        """Prepare the launch on tensors of this device, or on those given: inputs and weights."""
        from lwrn_fast.kernels import crp, fusion, upsample_argmax

        inputs, weights = given or random(self.case, DTYPES[self.kind], device, self.batch, self.depthwise)
        if isinstance(self.case, CrpCase):
            groups = self.case.channels if self.depthwise else 1
            launch = crp.prepare(inputs[0], weights, [], groups, self.config)
        elif isinstance(self.case, FusionCase):
            launch = fusion.prepare(inputs, weights, [], self.case.activation, True, self.config)
        else:
            launch = upsample_argmax.prepare(inputs[0], *self.case.to, True, self.config)
        if "PRECISION" in launch.arguments:  # also where there are no data, hence no device to ask
            launch.arguments["PRECISION"] = "tf32" if self.kind == "tf32" else "ieee"
        return launch


def compiled_ahead(jobs: Iterable[Job], deadline: float = float("inf")) -> Iterator[tuple[Job, str | None]]:
    """Compile into Triton's cache on disk, in as many processes as there are cores.

    Yields each job with the reason why it failed, None where it did not. After `deadline` (time.monotonic) the rest
    fail.
    """
    futures = [(job, _compilers().submit(why_not_compiled, job)) for job in jobs]
    for job, future in futures:
        if time.monotonic() > deadline and future.cancel():
            yield job, "no time left"
        else:
            yield job, future.result()


@functools.cache
def _compilers() -> ProcessPoolExecutor:
    """Return the pool of processes, which is kept: each takes seconds to import PyTorch."""
    from triton.runtime import driver

    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    target = (driver.active.get_current_target(), multiprocessors, shared_memory())
    return ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn"), compile_for, target)


def shared_memory() -> int:
    """Return the bytes of shared memory that one program may have."""
    from triton.runtime import driver

    return driver.active.utils.get_device_properties(torch.cuda.current_device())["max_shared_mem"]


class _Driver:
    """Replacement of Triton's driver of the GPU in a process that only compiles."""

    def __init__(self, target: Any) -> None:
        self.get_current_target = lambda: target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


# Bytes of shared memory of the GPU that `compile_for` was told.
_shared_memory = 0


def compile_for(target: Any, multiprocessors: int, shared_memory: int) -> None:
    """Make this process compile for a GPU without using it."""
    from triton.runtime import driver

    from lwrn_fast.kernels import crp

    global _shared_memory
    _shared_memory = shared_memory
    driver.set_active(_Driver(target))
    crp.num_sms = lambda device: multiprocessors


def why_not_compiled(job: Job) -> str | None:
    """Compile the job; return the error in one line, None where there is none."""
    try:
        launch = job.launch("meta")
        # Compiled in the same way as for a launch, so that a launch finds it in the cache.
        compiled = launch.kernel.warmup(grid=launch.grid, **launch.arguments, enable_fp_fusion=True)
    except Exception as error:  # whatever the compiler raises
        return one_line(error)
    if compiled.metadata.shared > _shared_memory:
        return "more shared memory than there is"
    return None
