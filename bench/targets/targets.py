"""Speed targets, measured here: `python bench/targets/targets.py [LINE ...]`, e.g. `3 4`. PASS or FAIL each.

The targets are stated for two cores with AVX-512; elsewhere the ratios are worth knowing but bind nobody. Needs torch
alone; a line for which a peer is missing is said to be left out. The exit status is the number of lines failed, at
most 100, or 101 where there is nothing to measure.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

import lwrn_fast
from lwrn_fast.profiling import machine, peers, shapes, workloads
from lwrn_fast.profiling.accuracy import overall_error
from lwrn_fast.profiling.cases import Case, ModelCase, dtype_name
from lwrn_fast.profiling.paired import Contest, Times, race
from lwrn_fast.profiling.peers import COMPILE, EAGER, EAGER_NCHW, FLOOR, ONNX_RUNTIME, OPENVINO, OURS, OURS_NCHW
from lwrn_fast.profiling.workloads.model import TOLERANCE, Plain, random_model

F32, BF16 = torch.float32, torch.bfloat16
# Description, the ratio, "at most" or "at least", the bound.
Line = tuple[str, float, str, float]


def crp(seconds: float) -> Iterator[Line]:
    times = _race(workloads.crp, shapes.CRP_TARGET, F32, seconds, OURS, OURS_NCHW, EAGER_NCHW, OPENVINO, FLOOR)
    yield "3 crp float32, ours over the four convolutions", times.ratio(OURS, FLOOR), "at most", 1.35
    if OPENVINO in times.rounds:
        yield "3 crp float32, OpenVINO over ours", times.ratio(OPENVINO, OURS), "at least", 1.5
    yield "3 crp float32 from NCHW, eager over ours", times.ratio(EAGER_NCHW, OURS_NCHW), "at least", 10
    times = _race(workloads.crp, shapes.CRP_TARGET, BF16, seconds, OURS, FLOOR)
    yield "3 crp bfloat16, ours over the four convolutions", times.ratio(OURS, FLOOR), "at most", 1.6


def fusion_and_labels(seconds: float) -> Iterator[Line]:
    times = _race(workloads.fusion, shapes.FUSION_TARGET, F32, seconds, OURS, FLOOR)
    yield "4 fusion float32, ours over the two convolutions", times.ratio(OURS, FLOOR), "at most", 1.5
    times = _race(workloads.upsample_argmax, shapes.UPSAMPLE_ARGMAX_TARGET, F32, seconds, OURS, EAGER)
    yield "4 upsample_argmax float32, eager channels-last over ours", times.ratio(EAGER, OURS), "at least", 4


def model(seconds: float) -> Iterator[Line]:
    times = _race(workloads.model, shapes.MODEL_TARGET, F32, 4 * seconds, OURS, EAGER_NCHW, COMPILE)
    yield "5 rf_lw_mbv2 float32, plain NCHW over ours", times.ratio(EAGER_NCHW, OURS), "at least", 5
    if COMPILE in times.rounds:
        yield "5 rf_lw_mbv2 float32, torch.compile over ours", times.ratio(COMPILE, OURS), "at least", 1


def models(seconds: float) -> Iterator[Line]:
    for name, alone, whole in (("rf_lw_mbv2", 1.1, 1.25), ("rf_lw50", 1.0, 1.05)):
        for labels, bound in ((False, alone), (True, whole)):
            case = ModelCase(name, 512, 512, labels=labels)
            contest = workloads.model.set_up(case, F32)
            times = race(contest, max(machine.thread_counts()), 4 * seconds, (OURS, ONNX_RUNTIME, OPENVINO))
            limit = contest.operations / machine.gemm_rate(F32, max(machine.thread_counts()))
            took = ", ".join(f"{peer} {1e3 * times.median(peer):.1f} ms" for peer in times.rounds)
            print(f"      {case}: {took}; {1e3 * limit:.1f} ms at this machine's GEMM rate")
            for peer in times.rounds:
                if peer != OURS:
                    yield f"{case} float32, {peer} over ours", times.ratio(peer, OURS), "at least", bound
        yield from _in_bfloat16(name, seconds)


def _in_bfloat16(name: str, seconds: float) -> Iterator[Line]:
    """Ask both for bfloat16; a processor without instructions for it makes both compute in float32."""
    if peers.why_absent(OPENVINO):
        return
    case, model = ModelCase(name, 512, 512), random_model(name)
    x = torch.randn(1, 3, case.height, case.width)
    narrow = x.to(BF16)  # OpenVINO is bound to its memory
    with torch.no_grad():
        expected = model(x)
    plain = Plain(model, torch.contiguous_format)
    contestants = {
        OURS: lambda: functools.partial(lwrn_fast.optimize(model, x, dtype=BF16), narrow),
        OPENVINO: lambda: peers.openvino(peers.onnx_bytes(plain, [x]), [narrow], expected.to(BF16)),
    }
    contest = Contest(contestants, lambda got: overall_error(got, expected), TOLERANCE[BF16])
    times = race(contest, max(machine.thread_counts()), 4 * seconds)
    yield f"{case} bfloat16, OpenVINO over ours", times.ratio(OPENVINO, OURS), "at least", 1


def pipeline(seconds: float) -> Iterator[Line]:
    """Time an image to its labels by Segmenter, and the plain model alone, compiled."""
    contest = workloads.model.set_up(shapes.MODEL_TARGET, F32)
    case = shapes.MODEL_TARGET
    model = random_model(case.network)
    image = torch.randint(0, 256, (case.height, case.width, 3), dtype=torch.uint8).numpy()
    segmenters: dict[str, lwrn_fast.Segmenter] = {}

    def prepared(how: str) -> Callable[[], Any]:
        segmenters[how] = lwrn_fast.Segmenter(model, size=(case.height, case.width), how=how)
        return lambda: segmenters[how](image)

    names = {how: f"Segmenter, {how}" for how in ("compile", "eager")}
    contest.contestants |= {name: functools.partial(prepared, how) for how, name in names.items()}
    contest = dataclasses.replace(contest, unchecked=tuple(names.values()))
    times = race(contest, max(machine.thread_counts()), 4 * seconds, (COMPILE, *names.values()))
    for how, name in names.items():
        timings = segmenters[how].timings()
        took = ", ".join(f"{stage} {ms:.2f} ms" for stage, ms in timings.items() if ms)
        print(f"      {name}: {1e3 * times.median(name):.1f} ms; {took}")
        share = (timings["pre"] + timings["post"]) / sum(timings.values())
        yield f"{case} by {name}, share of what is before and after the network", share, "at most", 0.08
        if COMPILE in times.rounds:
            yield f"{case}, the network alone by torch.compile over {name}", times.ratio(COMPILE, name), "at least", 1


def training(seconds: float) -> Iterator[Line]:
    times = _race(workloads.training, shapes.CRP_TARGET, F32, 4 * seconds, OURS, EAGER_NCHW, EAGER)
    yield "training step of crp float32, eager NCHW over ours", times.ratio(EAGER_NCHW, OURS), "at least", 4
    yield "training step of crp float32, eager channels-last over ours", times.ratio(EAGER, OURS), "at least", 1.5


def levels(seconds: float) -> Iterator[Line]:
    for op, cases in shapes.OPS.items():
        for case in cases:
            for dtype in (F32, BF16):
                for threads in machine.thread_counts():
                    times = _race(getattr(workloads, op), case, dtype, seconds / 2, OURS, EAGER, threads=threads)
                    name = f"6 {op} {case} {dtype_name(dtype)}, {threads} thread(s), eager over ours"
                    yield name, times.ratio(EAGER, OURS), "at least", 1


LINES = {"3": crp, "4": fusion_and_labels, "5": model, "6": levels}
LINES |= {"training": training, "models": models, "pipeline": pipeline}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", nargs="*", choices=[[], *LINES], help="which lines; all without any")
    parser.add_argument("--seconds", type=float, default=1.0, help="measured time per contestant (1)")
    arguments = parser.parse_args()
    if reason := machine.why_no_numbers():
        print(reason, file=sys.stderr)
        return 101
    for key, value in machine.describe().items():
        print(f"{key}: {value or 'not installed'}")
    for name in (COMPILE, OPENVINO):
        if reason := peers.why_absent(name):
            print(f"{name} left out: {reason}")
    failed = 0
    for number in arguments.lines or LINES:
        for name, ratio, sense, bound in LINES[number](arguments.seconds):
            good = ratio <= bound if sense == "at most" else ratio >= bound
            failed += not good
            print(f"{'PASS' if good else 'FAIL'}  {name}: {ratio:.2f} ({sense} {bound:g})", flush=True)
    return min(failed, 100)


def _race(workload: Any, case: Case, dtype: torch.dtype, seconds: float, *names: str, threads: int = 0) -> Times:
    return race(workload.set_up(case, dtype), threads or max(machine.thread_counts()), seconds, names)


if __name__ == "__main__":
    sys.exit(main())
