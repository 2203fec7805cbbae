"""Every configuration of this GPU's kernels once on small maps, against float64: `python bench/gpu_small.py`.

gpu_check.sh also runs it under compute-sanitizer. --compile compiles the kernels only, in several processes.
"""

import argparse
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

import gpu
from gpu import DTYPES, Case, Job
from lwrn_fast import reference
from lwrn_fast.kernels import configs
from shapes import CrpCase, FusionCase, UpsampleArgmaxCase
from wrong import label_error, largest_error

# several tiles with overhang, several blocks of planes, channels that fill no block
SMALL: dict[str, list[Case]] = {
    "crp": [CrpCase(72, 19, 27)],
    "fusion": [FusionCase(((40, 19, 27), (72, 10, 14), (8, 19, 27)), 72, "relu6")],
    "upsample_argmax": [UpsampleArgmaxCase(21, 9, 13, (35, 50))],
}
TOLERANCE = {"half": 4e-2, "tf32": 5e-3, "ieee": 1e-5}


def jobs() -> Iterator[Job]:
    device = configs.device_key(torch.device("cuda"))
    for op, kinds in configs.table()[device].items():
        for kind in kinds:
            for config in dict.fromkeys(configs.rows(configs.KINDS[op], op, device, kind)):
                for case in SMALL[op]:
                    yield Job(op, kind, case, config, batch=2)
                    if op == "crp":
                        yield Job(op, kind, case, config, batch=2, depthwise=True)


def error(job: Job) -> float:
    """How wrong the job's result is, relative to the largest value."""
    inputs, weights = gpu.random(job.case, DTYPES[job.kind], "cpu", job.batch)
    launch = job.launch(given=([x.cuda() for x in inputs], [w.cuda() for w in weights]))
    gpu.poison(launch.out)
    got = launch.run().cpu()
    if isinstance(job.case, UpsampleArgmaxCase):
        return label_error(got, inputs[0], job.case.to)
    return largest_error(got.double(), expected(job, [x.double() for x in inputs], [w.double() for w in weights]))


def expected(job: Job, inputs: list[Tensor], weights: list[Tensor]) -> Tensor:
    if isinstance(job.case, FusionCase):
        return reference.fusion(inputs, weights, activation=job.case.activation)
    if job.depthwise:
        return reference.crp(inputs[0], [w[:, :1] for w in weights], groups=job.case.planes)
    return reference.crp(inputs[0], weights)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true", help="compile only")
    arguments = parser.parse_args()
    gpu.require()
    torch.manual_seed(0)
    wrong = 0
    if arguments.compile:
        for job, reason in gpu.compiled_ahead(jobs()):
            if reason:
                wrong += 1
                print(f"{job}: {reason}")
        return min(wrong, 1)
    for job in jobs():
        found = error(job)
        right = found <= TOLERANCE[job.kind]
        wrong += not right
        print(f"{'right' if right else 'WRONG'} {found:.2e} {job}", flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
