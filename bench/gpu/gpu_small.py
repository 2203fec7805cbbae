"""Every kernel for this GPU once on small maps, against float64: `python bench/gpu/gpu_small.py [--backend cuda]`.

gpu_check.sh also runs it under compute-sanitizer. --compile compiles the Triton kernels only, in several processes.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import problems
import torch
from problems import DTYPES, Case, problem
from torch import Tensor

import gpu
from gpu import Job
from lwrn_fast.kernels import configs
from lwrn_fast.profiling import machine
from lwrn_fast.profiling.cases import CrpCase, FusionCase, UpsampleArgmaxCase

# Several tiles with overhang, several blocks of channels, input channels that fill no block.
SMALL: dict[str, list[Case]] = {
    "crp": [CrpCase(72, 19, 27)],
    "fusion": [FusionCase(((40, 19, 27), (72, 10, 14), (8, 19, 27)), 72, "relu6")],
    "upsample_argmax": [UpsampleArgmaxCase(21, 9, 13, (35, 50))],
}
UNALIGNED: list[Case] = [CrpCase(33, 19, 27), FusionCase(((33, 19, 27), (21, 10, 14)), 35, "none")]
# Largest error, relative to the largest value, by kind of arithmetic.
TOLERANCE = {"half": 4e-2, "tf32": 5e-3, "ieee": 1e-5}


@dataclass(frozen=True)
class Call:
    """The op as a user calls it, on the CUDA backend. kernel: replaces the backend's own choice."""

    op: str
    kind: str
    dtype: torch.dtype
    case: Case
    batch: int
    depthwise: bool = False
    kernel: str | None = None


def triton_jobs() -> Iterator[Job]:
    device = configs.device_key(torch.device("cuda"))
    for op, cases in SMALL.items():
        for kind in configs.table()[device][op]:
            for config in dict.fromkeys(configs.rows(configs.CONFIG_CLASSES[op], op, device, kind)):
                for case in cases:
                    yield Job(op, kind, case, config, batch=2)
                    if op == "crp":
                        yield Job(op, kind, case, config, batch=2, depthwise=True)


def cuda_calls() -> Iterator[Call]:
    kinds = [("half", torch.bfloat16), ("half", torch.float16), ("tf32", torch.float32), ("ieee", torch.float32)]
    for kind, dtype in kinds:
        for op, cases in SMALL.items():
            if op == "upsample_argmax" and kind == "tf32":  # nothing is multiplied by tensor cores
                continue
            for case in [*cases, *(case for case in UNALIGNED if isinstance(case, type(cases[0])))]:
                for kernel in (None, *gpu.CUDA_KERNELS[op]):
                    yield Call(op, kind, dtype, case, batch=2, kernel=kernel)
                if op == "crp":
                    yield Call(op, kind, dtype, case, batch=2, depthwise=True)


def triton_error(job: Job) -> float:
    """Return the error of the job's result, relative to the largest value."""
    inputs, weights = problems.random(job.case, DTYPES[job.kind], "cpu", job.batch, job.depthwise)
    launch = job.launch(given=([x.cuda() for x in inputs], [w.cuda() for w in weights]))
    problems.poison(launch.out)
    return problem(job.case, weights, job.depthwise).error(launch.run().cpu(), inputs)


def cuda_error(call: Call) -> float | None:
    """Return the error of the call's result; None where the call names a kernel that cannot run it."""
    inputs, weights = random_tensors(call)
    ours = problem(call.case, [w.cuda() for w in weights], call.depthwise).ours
    on_gpu = [x.cuda() for x in inputs]
    with machine.float32_precision(call.kind):
        got = gpu.if_it_can(gpu.on("cuda", lambda: ours(*on_gpu), call.kernel))
    return None if got is None else problem(call.case, weights, call.depthwise).error(got.cpu(), inputs)


def random_tensors(call: Call) -> tuple[list[Tensor], list[Tensor]]:
    return problems.random(call.case, call.dtype, "cpu", call.batch, call.depthwise)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true", help="compile Triton's only")
    parser.add_argument("--backend", choices=gpu.BACKENDS, action="append", help="only this; all that can run, if none")
    arguments = parser.parse_args()
    able = gpu.require(["triton"] if arguments.compile else arguments.backend or gpu.BACKENDS)
    torch.manual_seed(0)
    # Unwritten memory must not pass for a result.
    torch.use_deterministic_algorithms(True, warn_only=True)
    wrong, ran = 0, set()
    if arguments.compile:
        for job, reason in gpu.compiled_ahead(triton_jobs()):
            if reason:
                wrong += 1
                print(f"{job}: {reason}")
        return min(wrong, 1)
    everything = {"triton": (triton_jobs, triton_error), "cuda": (cuda_calls, cuda_error)}
    for backend in able:
        jobs, error = everything[backend]
        for job in jobs():
            got = error(job)
            if got is None:
                continue
            ran.add((job.op, getattr(job, "kernel", None)))
            right = got <= TOLERANCE[job.kind]
            wrong += not right
            print(f"{'right' if right else 'WRONG'} {got:.2e} {backend} {job}", flush=True)
    if "cuda" in able:
        print("CUDA kernels that ran:", *sorted(f"{op} {kernel}" for op, kernel in ran if kernel))
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
