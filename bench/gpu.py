"""What the GPU's commands share: what the GPU is, how fast it multiplies and copies, times by CUDA events, problems,
and compilation in several processes."""

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
from torch import Tensor

import lwrn_fast
import shapes
from lwrn_fast.backends import cuda, native
from lwrn_fast.backends import triton as _triton
from lwrn_fast.profiling.cases import STAGES
from lwrn_fast.profiling.paired import Times
from shapes import CrpCase, FusionCase, UpsampleArgmaxCase

Call = Callable[[], Any]
Case = CrpCase | FusionCase | UpsampleArgmaxCase
CASES: dict[str, dict[Case, str]] = {
    "crp": shapes.CRP,
    "fusion": shapes.FUSION,
    "upsample_argmax": shapes.UPSAMPLE_ARGMAX,
}
TARGETS: dict[str, Case] = {
    "crp": shapes.CRP_TARGET,
    "fusion": shapes.FUSION_TARGET,
    "upsample_argmax": shapes.UPSAMPLE_ARGMAX_TARGET,
}
# kinds of arithmetic, as configs.json names them, by the dtype that stands for each
DTYPES = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}
BACKENDS = {"cuda": cuda, "triton": _triton}
# Of csrc/cuda, by the names in its sources; each runs what it can.
CUDA_KERNELS = {
    "crp": ("smallest", "small", "large", "small_resident", "large_resident", "large_sm90", "large_resident_sm90"),
    "fusion": ("small", "medium", "large", "medium_sm90", "large_sm90"),
    "upsample_argmax": (),
}
# what the ops say where the only kernel that may run cannot
CANNOT = ("more planes or pixels than the kernels take on this device", "no kernel runs this on this device")
FACTS = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"


def why_not(backend: str) -> str | None:
    """Why the backend cannot run on this GPU, None where it can."""
    if not torch.cuda.is_available():
        return "PyTorch finds no GPU"
    return BACKENDS[backend].why_not_on(torch.device("cuda"))


def require(names: Iterable[str] = BACKENDS) -> list[str]:
    """Those of the backends that can run; ends the program where none can."""
    reasons = {name: why_not(name) for name in names}
    able = [name for name, reason in reasons.items() if reason is None]
    for reason in dict.fromkeys(reasons.values()):
        if not able:
            print(f"{os.path.basename(sys.argv[0])}: needs a GPU: {reason}", file=sys.stderr)
    if not able:
        raise SystemExit(2)
    return able


def on(backend: str, call: Call, kernel: str | None = None) -> Call:
    """The call, by this backend and, of the CUDA kernels of its op, by this one alone."""

    def run() -> Any:
        with lwrn_fast.use_backend(backend), only(kernel):
            return call()

    return run


@contextmanager
def only(kernel: str | None) -> Iterator[None]:
    """Calls of the CUDA backend run this kernel alone, or fail."""
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
    """Machine, versions and commit, for the result file."""
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
    """Its result; None where the CUDA kernel that it runs on alone cannot run it."""
    try:
        return call()
    except RuntimeError as error:
        if any(reason in str(error) for reason in CANNOT):
            return None
        raise


@contextmanager
def multiplying(kind: str) -> Iterator[None]:
    """Have PyTorch multiply float32 as `kind` says, in convolutions and elsewhere. Set in the old way first, which
    torch.compile asks about and refuses to see changed in the new way alone."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    def choose(tf32: bool) -> None:
        matmul.allow_tf32 = cudnn.allow_tf32 = tf32
        cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"

    before = (matmul.allow_tf32, cudnn.allow_tf32)
    choose(kind == "tf32")
    try:
        yield
    finally:
        choose(before[1])
        matmul.allow_tf32 = before[0]


@functools.cache
def copy_rate() -> float:
    """Bytes per second, read plus written, of a copy far larger than the caches."""
    source = torch.ones(1 << 30, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(elapsed(lambda: target.copy_(source)) for _ in range(10))


@functools.cache
def gemm_rate(kind: str) -> float:
    """Operations per second of torch.mm at its best, on random data."""
    rate = 0.0
    with multiplying(kind):
        for rows, inner, columns in ((8192, 8192, 8192), (16384, 2048, 2048)):
            a = torch.randn(rows, inner, device="cuda", dtype=DTYPES[kind])
            b = torch.randn(inner, columns, device="cuda", dtype=DTYPES[kind])
            torch.mm(a, b)
            run = functools.partial(torch.mm, a, b)
            rate = max(rate, 2 * rows * inner * columns / median(elapsed(run) for _ in range(10)))
    return rate


def limit(case: Case, kind: str) -> float:
    """Seconds below which this GPU cannot do it: its multiplications or its traffic, whichever takes longer."""
    traffic = case.bytes(DTYPES[kind].itemsize) / copy_rate()
    if isinstance(case, UpsampleArgmaxCase):  # nothing a matrix unit does
        return traffic
    return max(case.operations / gemm_rate(kind), traffic)


def elapsed(run: Call) -> float:
    """Seconds on the GPU between what comes before and what comes after."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def repeated(call: Call, times: int) -> Call:
    """The call so many times; the result is the last one's."""

    def run() -> Any:
        for _ in range(times):
            result = call()
        return result

    return run


def captured(calls: Sequence[Call]) -> tuple[Call, list[Any]]:
    """The replay of one CUDA graph of all these calls, and their results, which each replay writes anew."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls[0]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [call() for call in calls]
    return graph.replay, results


def race(runs: dict[str, Call], seconds: float, most: int = 50, least: int = 5) -> Times:
    """Times of all runs, each of which has run before, in turn. One that has had its seconds sits out the rest."""
    rounds: dict[str, list[float | None]] = {name: [] for name in runs}
    spent = dict.fromkeys(runs, 0.0)
    names = list(runs)
    for r in range(most):
        for i in range(len(names)):
            name = names[(i + r) % len(names)]
            if r >= least and spent[name] > seconds:
                rounds[name].append(None)
                continue
            start = time.perf_counter()
            rounds[name].append(elapsed(runs[name]))
            spent[name] += time.perf_counter() - start
        if all(taken[-1] is None for taken in rounds.values()):
            break
    return Times(rounds)


def host_seconds(call: Call, calls: int = 200) -> float:
    """Python's time for one call, the GPU not waited for."""
    tries = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        tries.append((time.perf_counter() - start) / calls)
    torch.cuda.synchronize()
    return median(tries)


def poison(result: Any) -> None:
    """So that nothing unwritten passes for a result."""
    if isinstance(result, Tensor):
        result.fill_(torch.nan if result.is_floating_point() else 255)


def random(case: Case, dtype: torch.dtype, device: str = "cuda", batch: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    """Channels-last inputs and weights that keep their scale."""

    def maps(*shape: int) -> Tensor:
        x = torch.randn(batch, *shape, device=device, dtype=dtype)
        return x.contiguous(memory_format=torch.channels_last)

    def weights(planes: int, channels: int) -> Tensor:
        return torch.randn(planes, channels, 1, 1, device=device, dtype=dtype) / channels**0.5

    if isinstance(case, CrpCase):
        x = maps(case.planes, case.height, case.width)
        return [x], [weights(case.planes, case.planes) for _ in range(STAGES)]
    if isinstance(case, FusionCase):
        return [maps(*shape) for shape in case.inputs], [weights(case.planes, c) for c, _, _ in case.inputs]
    return [maps(case.classes, case.height, case.width)], []


def told(error: BaseException) -> str:
    """In one line; of a compiler's errors the cause says what is wrong, and in its last line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1].strip()[:160]}"


def pixels(case: Case) -> int:
    """What rows of configs.json are looked up by."""
    if isinstance(case, UpsampleArgmaxCase):
        return case.to[0] * case.to[1]
    height, width = (case.height, case.width) if isinstance(case, CrpCase) else case.inputs[0][1:]
    return height * width


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
        from lwrn_fast.kernels import crp, fusion, upsample_argmax

        inputs, weights = given or random(self.case, DTYPES[self.kind], device, self.batch)
        if isinstance(self.case, CrpCase):
            if self.depthwise:
                weights = [w[:, :1] for w in weights]
            groups = self.case.planes if self.depthwise else 1
            launch = crp.prepare(inputs[0], weights, [], groups, self.config)
        elif isinstance(self.case, FusionCase):
            launch = fusion.prepare(inputs, weights, [], self.case.activation, True, self.config)
        else:
            launch = upsample_argmax.prepare(inputs[0], *self.case.to, True, self.config)
        if "PRECISION" in launch.arguments:  # also where there are no data, hence no device to ask
            launch.arguments["PRECISION"] = "tf32" if self.kind == "tf32" else "ieee"
        return launch


def compiled_ahead(jobs: Iterable[Job], deadline: float = float("inf")) -> Iterator[tuple[Job, str | None]]:
    """Compile into Triton's cache on disk, in as many processes as there are cores; each job with why it failed, None
    where it did not. After `deadline` (time.monotonic) the rest fail."""
    futures = [(job, _compilers().submit(why_not_compiled, job)) for job in jobs]
    for job, future in futures:
        if time.monotonic() > deadline and future.cancel():
            yield job, "no time left"
        else:
            yield job, future.result()


@functools.cache
def _compilers() -> ProcessPoolExecutor:
    """Kept, for each process takes seconds to import PyTorch."""
    from triton.runtime import driver

    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    machine = (driver.active.get_current_target(), multiprocessors, shared_memory())
    return ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn"), stand_in, machine)


def shared_memory() -> int:
    """Bytes that one program may have."""
    from triton.runtime import driver

    return driver.active.utils.get_device_properties(torch.cuda.current_device())["max_shared_mem"]


class _Driver:
    """Stands for Triton's driver of the GPU in a process that only compiles."""

    def __init__(self, target: Any) -> None:
        self.get_current_target = lambda: target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


_shared_memory = 0


def stand_in(target: Any, multiprocessors: int, shared_memory: int) -> None:
    """Have this process compile for that GPU without using it."""
    from triton.runtime import driver

    from lwrn_fast.kernels import crp

    global _shared_memory
    _shared_memory = shared_memory
    driver.set_active(_Driver(target))
    crp.num_sms = lambda device: multiprocessors


def why_not_compiled(job: Job) -> str | None:
    try:
        launch = job.launch("meta")
        # The same way in as for a launch, so that a launch finds it in the cache.
        compiled = launch.kernel.warmup(grid=launch.grid, **launch.arguments, enable_fp_fusion=True)
    except Exception as error:  # whatever the compiler raises
        return told(error)
    if compiled.metadata.shared > _shared_memory:
        return "more shared memory than there is"
    return None
