"""Call overhead: the package's entrances in turn with the plain model, on small inputs.

`python bench/targets/overhead.py [--rounds 300] [--seconds 60] [--no-compile] [--out FILE.json]`: rf_lw_mbv2 in
PyTorch's own modules, as it was published, at 32 x 32, where overhead takes the larger part of the time, and at
512 x 512; and a model that is one chained residual pooling, on 1 x 8 x 6 x 7. Each contestant has a turn in every
round, so that a slow moment of the machine meets all of them. The table has medians, and the median over rounds of the
ratio to the plain model in the same round, with the quartiles: compare those of two commits, which are two processes.
PYTHONPATH chooses the commit, so this file uses little of the package.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import record
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lwrn_fast
from lwrn_fast.models.mobilenet_v2 import MobileNetV2

PLAIN = "plain"
MIN_ROUNDS = 7
Call = Callable[[], Any]


class Pooling(nn.Module):
    """Chained residual pooling under its published names, in PyTorch's own modules."""

    def __init__(self, channels: int, stages: int = 4) -> None:
        super().__init__()
        for i in range(stages):
            self.add_module(f"{i + 1}_outvar_dimred", nn.Conv2d(channels, channels, 1, bias=False))
        self.stages = stages
        self.maxpool = nn.MaxPool2d(kernel_size=5, stride=1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        stage = x
        for i in range(self.stages):
            stage = getattr(self, f"{i + 1}_outvar_dimred")(self.maxpool(stage))
            x = x + stage
        return x


class PlainMobile(MobileNetV2):
    """rf_lw_mbv2 without a block of ours; its encoder is PyTorch's own modules in any case."""

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        self.relu = nn.ReLU6()
        for number, channels in zip(range(3, 9), self.planes, strict=True):
            self.add_module(f"conv{number}", nn.Conv2d(channels, 256, 1, bias=False))
        for number in (4, 3, 2, 1):
            self.add_module(f"crp{number}", nn.Sequential(Pooling(256)))
        for number in (4, 3, 2):
            self.add_module(f"conv_adapt{number}", nn.Conv2d(256, 256, 1, bias=False))
        self.segm = nn.Conv2d(256, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        l3, l4, l5, l6, l7, l8 = self.features(x)
        x = self.crp4(self.relu(self.conv8(l8) + self.conv7(l7)))
        x = self._up(self.conv_adapt4(x), l6)
        x = self.crp3(self.relu(self.conv6(l6) + self.conv5(l5) + x))
        x = self._up(self.conv_adapt3(x), l4)
        x = self.crp2(self.relu(self.conv4(l4) + x))
        x = self._up(self.conv_adapt2(x), l3)
        return self.segm(self.crp1(self.relu(self.conv3(l3) + x)))

    @staticmethod
    def _up(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)


def accelerated(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    if not lwrn_fast.accelerate(model).count("crp"):
        raise RuntimeError("accelerate replaced nothing")
    return model


def model_calls(model: nn.Module, x: Tensor, compiling: bool, lightly: bool) -> dict[str, Call]:
    """Return the contestants for a model. lightly: also those whose calls cost more than they save on large inputs."""
    made: dict[str, Callable[[], Any]] = {PLAIN: lambda: model}
    if lightly:
        made["accelerate"] = lambda: accelerated(model)
        made["optimize, eager"] = lambda: lwrn_fast.optimize(model, x, how="eager")
        options = {"backend": "eager"}
        made['torch.compile, backend="lwrn_fast", the rest eager'] = lambda: torch.compile(
            copy.deepcopy(model), backend="lwrn_fast", options=options, dynamic=False
        )
    if compiling:
        made["optimize"] = lambda: lwrn_fast.optimize(model, x)
    calls = {}
    expected = model(x)
    for name, make in made.items():
        run = make()
        error = float((run(x) - expected).abs().max() / expected.abs().max())
        if not error < 1e-4:
            raise ArithmeticError(f"{name}: off by {error:.2g} of the largest value")
        calls[name] = lambda run=run: run(x)
    return calls


def crp_calls() -> dict[str, Call]:
    """Return the contestants for one block: accelerated, our module, and the function alone."""
    model, x = Pooling(8), torch.rand(1, 8, 6, 7)
    calls = model_calls(model, x, compiling=False, lightly=True)
    ours = lwrn_fast.CRP(8, 8)
    ours.load_state_dict(model.state_dict())
    weights = list(model.parameters())
    calls["lwrn_fast.CRP"] = lambda: ours(x)
    calls["lwrn_fast.crp"] = lambda: lwrn_fast.crp(x, weights)
    return calls


def race(calls: dict[str, Call], rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Return milliseconds and ratios to the plain model, of at most so many rounds or seconds; at least MIN_ROUNDS."""
    repeats = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        repeats[name] = max(1, int(0.002 / _seconds(call, 3)))  # so that the clock costs nothing
    times: dict[str, list[float]] = {name: [] for name in calls}
    names, start = list(calls), time.perf_counter()
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() - start > seconds:
            break
        for i in range(len(names)):
            name = names[(i + number) % len(names)]
            calls[name]()  # its data in the caches, as in a loop of its own
            times[name].append(1000 * _seconds(calls[name], repeats[name]))
    figures = {}
    for name, taken in times.items():
        ratios = [ours / plain for ours, plain in zip(taken, times[PLAIN], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        figures[name] = {
            **{"ms": statistics.median(taken), "least ms": min(taken), "rounds": len(taken)},
            **{"ratio": middle, "low": low, "high": high},
        }
    return figures


def _seconds(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=60.0, help="at most, of each table (60)")
    parser.add_argument("--no-compile", action="store_true", help="without optimize's compiled code, for minutes")
    record.add_out(parser)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    tables = {}
    with torch.no_grad():
        model = PlainMobile().eval()
        small, large = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 512, 512)
        cases: dict[str, Callable[[], dict[str, Call]]] = {
            "one CRP, 1 x 8 x 6 x 7": crp_calls,
            "rf_lw_mbv2, 32 x 32": lambda: model_calls(model, small, not arguments.no_compile, lightly=True),
            "rf_lw_mbv2, 512 x 512": lambda: model_calls(model, large, not arguments.no_compile, lightly=False),
        }
        if arguments.no_compile:
            del cases["rf_lw_mbv2, 512 x 512"]
        for case, set_up in cases.items():
            tables[case] = race(set_up(), arguments.rounds, arguments.seconds)
            print(f"\n{case}\n{'':52}{'median ms':>11}{'least ms':>11}{'of plain':>10}{'quartiles':>16}")
            for name, row in tables[case].items():
                quartiles = f"{row['low']:.3f} to {row['high']:.3f}"
                figures = f"{row['ms']:11.4f}{row['least ms']:11.4f}{row['ratio']:10.3f}"
                print(f"{name:52}{figures}{quartiles:>16}", flush=True)
    record.write(arguments.out, record.origin() | {"threads": torch.get_num_threads(), "tables": tables})
    return 0


if __name__ == "__main__":
    sys.exit(main())
