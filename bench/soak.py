"""`Segmenter` from several threads with pictures of changing sizes, for long: is every result right, and memory flat?

`python bench/soak.py [--calls 20000] [--threads 4] [--out FILE.json]`: rf_lw_mbv2 with the package's weights. Prints
the resident memory as it goes, and exits with 1 where a label map differs from the first one of its picture, or where
memory of the last tenth of the calls is more than 5 % above that of the second tenth (the first one warms up).
"""

import argparse
import itertools
import json
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

import lwrn_fast
from lwrn_fast import models
from lwrn_fast.training import generate

LEAST, MOST = 24, 120
"""Pixels of a side."""
PICTURES = 200
GROWTH = 1.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as JSON")
    arguments = parser.parse_args()
    found = soak(arguments.calls, arguments.threads, arguments.pictures)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"{found['calls']} calls from {arguments.threads} threads in {found['seconds']:.0f} s, {found['wrong']} wrong; "
        f"memory {found['early']:.1f} MB early, {found['late']:.1f} MB late"
    )
    return int(found["wrong"] > 0 or found["late"] > GROWTH * found["early"])


def soak(calls: int, threads: int, pictures: int = PICTURES) -> dict:
    """Figures of so many calls: how many were wrong, and resident megabytes over time."""
    model = models.load(models.SHAPES)
    segmenter = lwrn_fast.Segmenter(model)
    images = [picture(i) for i in range(pictures)]
    expected = [segmenter(image) for image in images]
    for image, labels in zip(images[:20], expected, strict=False):
        check(model, image, labels)
    turns, wrong, memory = itertools.count(), [0] * threads, []
    start = time.perf_counter()

    def work(me: int) -> None:
        random = np.random.RandomState(me)
        while (turn := next(turns)) < calls:
            i = random.randint(len(images))
            wrong[me] += not np.array_equal(segmenter(images[i]), expected[i])
            if turn % max(1, calls // 100) == 0:
                memory.append((turn, resident()))
                if turn % max(1, calls // 10) == 0:
                    print(f"{turn:7} calls, {memory[-1][1]:.1f} MB", flush=True)

    workers = [threading.Thread(target=work, args=(me,)) for me in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    memory.sort()
    return {
        "calls": calls,
        "threads": threads,
        "wrong": sum(wrong),
        "seconds": time.perf_counter() - start,
        "early": statistics.median(m for turn, m in memory if calls / 10 <= turn < calls / 5),
        "late": statistics.median(m for turn, m in memory if turn >= calls * 9 / 10),
        "megabytes": memory,
    }


def picture(i: int) -> np.ndarray:
    """Drawn shapes, of a size of its own."""
    height, width = np.random.RandomState(i).randint(LEAST, MOST + 1, 2)
    return generate.picture(1, "test", i, (int(height), int(width)))[0]


def check(model: torch.nn.Module, image: np.ndarray, labels: np.ndarray) -> None:
    """The labels are those of plain PyTorch, but for pixels where two logits are nearly equal."""
    with lwrn_fast.use_backend("reference"), torch.inference_mode():
        logits = model(lwrn_fast.normalise(torch.from_numpy(image)))
        true = lwrn_fast.upsample_argmax(logits, image.shape[:2])[0].numpy()
    if (true != labels).mean() > 1e-3:
        raise ArithmeticError(f"{(true != labels).mean():.2%} of the labels are not plain PyTorch's")


def resident() -> float:
    """Megabytes of this process in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmRSS")


if __name__ == "__main__":
    sys.exit(main())
