"""Many models in one process: each answers for itself, in any order, from threads, after others were deleted.

`python bench/targets/many_models.py [--calls 10000] [--models 20] [--threads 4] [--replaced 10] [--out FILE.json]`:
small models of several classes, weights, dtypes, modes, numbers of classes and sizes of input, through `optimize`,
`Segmenter` and torch.compile(backend="lwrn_fast"). Threads call them in random order, while some are deleted and others
made in their memory. Every answer is compared with plain PyTorch's in float64; the exit status is 1 where one is wrong.
`--seed` decides the models and the order. It compiles for about two seconds per model and size; `--cpp` also with the
calls in C++, which is optimize's default and takes eight seconds more each time.
"""

import argparse
import copy
import gc
import itertools
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import record
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lwrn_fast
from lwrn_fast import models, reference
from lwrn_fast.profiling.paired import first_line

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
# Largest error of an answer, relative to its largest value.
TOLERANCE = {F32: 1e-4, F64: 1e-4, BF16: 0.05}
SIZES = ((24, 32), (33, 40), (40, 28))
# Inputs of each size of a model.
INPUTS = 3
MAX_MESSAGES = 10


class Pooling(nn.Module):
    """Chained residual pooling as it is usually written."""

    def __init__(self, channels: int, stages: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=False) for _ in range(stages))
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = stage = x
        for conv in self.convs:
            stage = conv(self.pool(stage))
            out = out + stage
        return out


class Pyramid(nn.Module):
    """A stem, a deeper map, their fusion, chained residual pooling, and a head: all in PyTorch's own modules."""

    def __init__(self, channels: int, classes: int, stages: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU6())
        self.deep = nn.Conv2d(channels, 6, 3, 2, 1)
        self.fine1x1, self.deep1x1 = nn.Conv2d(channels, channels, 1), nn.Conv2d(6, channels, 1, bias=False)
        self.crp = Pooling(channels, stages)
        self.head = nn.Conv2d(channels, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stem(x)
        deep = self.deep1x1(self.deep(fine).relu())
        deep = F.interpolate(deep, fine.shape[2:], mode="bilinear", align_corners=True)
        return self.head(self.crp(F.relu(self.fine1x1(fine) + deep)))


class Counting(Pyramid):
    """The same forward by inheritance, with an attribute of each instance in it."""

    def __init__(self, channels: int, classes: int, stages: int) -> None:
        super().__init__(channels, classes, stages)
        self.gain = 1 + channels / 10

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * super().forward(x)


class Mobile(models.base.Network):
    """Inverted residuals, and the decoder of a Light-Weight RefineNet over them."""

    def __init__(self, channels: int, classes: int, stages: int) -> None:
        super().__init__()
        self._configure("mobile", classes, torch.channels_last)
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU6())
        wide = 3 * channels
        self.residual = nn.Sequential(
            nn.Conv2d(channels, wide, 1), nn.ReLU6(), nn.Conv2d(wide, wide, 3, 2, 1, groups=wide), nn.ReLU6()
        )
        self._add_levels([channels, wide], classes, channels, stages)

    def features(self, x: Tensor) -> list[Tensor]:
        fine = self.stem(x)
        return [fine, self.residual(fine)]


def sequential(channels: int, classes: int, stages: int) -> nn.Module:
    """Return a model of PyTorch's own class, whose instances share one forward."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, 2, 1), nn.ReLU(), lwrn_fast.CRP(channels, channels, stages),
        nn.Conv2d(channels, classes, 3, padding=1),
    )  # fmt: skip


# Classes, by the number of the model.
CLASSES: tuple[Callable[[int, int, int], nn.Module], ...] = (Pyramid, Counting, Mobile, sequential)
# Ways into the package, by the number of the model.
WAYS = ("optimize", "optimize", "optimize", "Segmenter", "torch.compile", "optimize", "optimize eager")


@dataclass
class Tried:
    """A model in use: its name, its call, and its inputs with the right answers."""

    name: str
    run: Callable[[Any], Any]
    inputs: list[Any]
    expected: list[Tensor]
    tolerance: float
    labels: bool

    def error(self, i: int) -> str | None:
        """Call it with one of the inputs; return the error of the answer, None where it is right."""
        try:
            got = self.run(self.inputs[i])
        except Exception as error:  # whatever is raised is no answer
            return f"{self.name}: {type(error).__name__}: {first_line(error, '-')}"
        exact = self.expected[i]
        if self.labels:
            chosen = exact.gather(1, torch.from_numpy(got).long()[None, None])
            error = float((exact.amax(1) - chosen[:, 0]).max())
        elif got.shape != exact.shape:
            return f"{self.name}: {tuple(got.shape)} came, not {tuple(exact.shape)}"
        else:
            error = float((got.double() - exact).abs().max())
        error /= float(exact.abs().max())
        return None if error <= self.tolerance else f"{self.name}: off by {error:.2g} of the largest value"


def make(number: int, seed: int, cpp: bool) -> Tried:
    """Make model `number`: its class follows from the number, its weights from the seed too."""
    random = np.random.RandomState([seed, number])
    make_model, way = CLASSES[number % len(CLASSES)], WAYS[number % len(WAYS)]
    channels, classes, stages = int(random.choice([8, 12])), int(random.randint(2, 9)), int(random.choice([2, 3]))
    dtype = BF16 if way == "optimize" and number % 5 == 4 else F32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.randint(1 << 30)))
        model = make_model(channels, classes, stages)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and tensor.dim() < 2:
                tensor.uniform_(0.5, 1.5) if name.endswith(("var", "weight")) else tensor.normal_(0, 0.2)
    class_name = getattr(make_model, "__name__", make_model)
    name = f"model {number}, {class_name} of {channels} channels by {way}, {dtype}"
    # A model in training mode must not matter to a way that makes a copy for inference.
    model.train(number % 3 == 0 and way.startswith("optimize"))
    sizes = [SIZES[i] for i in random.permutation(len(SIZES))[:2]]
    plain = copy.deepcopy(model).eval().requires_grad_(False).double()
    inputs = [_input(random, size, way, dtype) for size in sizes for _ in range(INPUTS)]
    with lwrn_fast.use_backend("reference"):
        expected = [_expected(plain, x) for x in inputs]
    run = _enter(model, way, sizes, dtype, cpp)
    return Tried(name, run, inputs, expected, TOLERANCE[dtype], way == "Segmenter")


def _input(random: np.random.RandomState, size: tuple[int, int], way: str, dtype: torch.dtype) -> Any:
    if way == "Segmenter":
        return random.randint(0, 256, (*size, 3)).astype(np.uint8)
    return torch.from_numpy(random.randn(1, 3, *size)).to(dtype)


def _expected(plain: nn.Module, x: Any) -> Tensor:
    """Return float64 logits; of an image, upsampled to its size."""
    if isinstance(x, Tensor):
        return plain(x.double())
    logits = plain(reference.normalise(torch.from_numpy(x), None, F64))
    return F.interpolate(logits, x.shape[:2], mode="bilinear", align_corners=True)


def _enter(model: nn.Module, way: str, sizes: list, dtype: torch.dtype, cpp: bool) -> Callable[[Any], Any]:
    """Return the model as `way` offers it."""
    example = torch.zeros(1, 3, *sizes[0], dtype=dtype)
    if way == "Segmenter":
        return lwrn_fast.Segmenter(model)
    if way == "optimize eager":
        return lwrn_fast.optimize(model, example, how="eager")
    if way == "torch.compile":
        compiled = torch.compile(model.eval().requires_grad_(False), backend="lwrn_fast", dynamic=False)
        compiled(example)
        return compiled
    run = lwrn_fast.optimize(model, example, dtype=dtype, options=None if cpp else {"cpp_wrapper": False})
    run(torch.zeros(1, 3, *sizes[1], dtype=dtype))
    return run


class Limits(logging.Handler):
    """Counter of Dynamo's messages that it compiles a function no more: from then on the model is slow."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "recompile_limit" in record.getMessage()


def try_all(calls: int, models_in_use: int, threads: int, replaced: int, seed: int, cpp: bool) -> dict:
    """Return figures of so many calls: how many were wrong, by the model called, and the first messages."""
    limits, start = Limits(), time.perf_counter()
    logging.getLogger("torch._dynamo").addHandler(limits)
    slots: list[Tried | None] = []
    for number in range(models_in_use):
        slots.append(make(number, seed, cpp))
        print(f"{time.perf_counter() - start:6.0f} s  made {slots[-1].name}", flush=True)  # type: ignore[union-attr]
    numbers, turns = itertools.count(models_in_use), itertools.count()
    wrong: Counter[str] = Counter()
    called: Counter[str] = Counter()
    messages: list[str] = []
    lock, making = threading.Lock(), threading.Lock()
    due = {calls * (i + 1) // (replaced + 1) for i in range(replaced)}

    def work(me: int) -> None:
        random = np.random.RandomState([seed, me, 1])
        while (turn := next(turns)) < calls:
            slot = random.randint(models_in_use)
            if turn in due:
                with making:
                    slots[slot] = None  # its memory is free before the next one is made
                    gc.collect()
                    slots[slot] = make(next(numbers), seed, cpp)
                print(f"{time.perf_counter() - start:6.0f} s  made {slots[slot].name}", flush=True)  # type: ignore[union-attr]
            tried = slots[slot]
            while tried is None:  # another thread is making one there
                slot = random.randint(models_in_use)
                tried = slots[slot]
            message = tried.error(random.randint(len(tried.inputs)))
            with lock:
                called[tried.name.split(" by ")[1]] += 1
                if message is not None:
                    wrong[tried.name] += 1
                    if len(messages) < MAX_MESSAGES and message not in messages:
                        messages.append(message)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, me) for me in range(threads)]:
            done.result()
    logging.getLogger("torch._dynamo").removeHandler(limits)
    return {
        **record.origin(),
        **{"seed": seed, "seconds": time.perf_counter() - start},
        **{"models": models_in_use, "threads": threads, "replaced": replaced, "recompile limit hit": limits.count},
        **{"calls": calls, "wrong": sum(wrong.values()), "calls by way": dict(called), "by model": dict(wrong)},
        "messages": messages,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=10000)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--replaced", type=int, default=10, help="models deleted, with another in their place")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpp", action="store_true", help="with the calls in C++ too, optimize's default")
    record.add_out(parser)
    given = parser.parse_args()
    figures = try_all(given.calls, given.models, given.threads, given.replaced, given.seed, given.cpp)
    record.write(given.out, figures)
    for message in figures["messages"]:
        print(message)
    if figures["recompile limit hit"]:
        print(f"Dynamo's recompile limit was hit {figures['recompile limit hit']} times: those models run uncompiled")
    print(f"{figures['calls']} calls, {figures['wrong']} wrong")
    return int(figures["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
