"""`Segmenter` from several threads with pictures of changing sizes, for long: is every result right, and memory flat?

`python bench/soak.py [--calls 20000] [--threads 4] [--out FILE.json]`: rf_lw_mbv2 with the package's weights. Looks at
the resident memory ten times a second and exits with 1 where a label map differs from the first one of its picture, or
where the median or the highest in the last tenth of the calls is more than 5 % above that in the fourth tenth. Until
then it grows: every thread meets every size, and oneDNN keeps code for the last thousand shapes.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

import lwrn_fast
from lwrn_fast import heap, models
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
    early, late = found["early"], found["late"]
    print(
        f"{found['calls']} calls from {arguments.threads} threads in {found['seconds']:.0f} s, {found['wrong']} wrong; "
        + ", ".join(f"{which} memory {early[which]:.1f} MB early, {late[which]:.1f} MB late" for which in early)
    )
    return int(found["wrong"] > 0 or any(late[which] > GROWTH * early[which] for which in early))


def soak(calls: int, threads: int, pictures: int = PICTURES) -> dict:
    """Figures of so many calls: how many were wrong, and resident megabytes over time."""
    model = models.load(models.SHAPES)
    segmenter = lwrn_fast.Segmenter(model)
    images = [picture(i) for i in range(pictures)]
    expected = [segmenter(image) for image in images]
    for image, labels in zip(images[:20], expected, strict=False):
        check(model, image, labels)
    turns, wrong, start = itertools.count(), [0] * threads, time.perf_counter()
    done = 0

    def work(me: int) -> None:
        nonlocal done
        random = np.random.RandomState(me)
        while (turn := next(turns)) < calls:
            i = random.randint(len(images))
            wrong[me] += not np.array_equal(segmenter(images[i]), expected[i])
            done = turn

    tenths: list[list[float]] = [[] for _ in range(10)]
    with ThreadPoolExecutor(threads) as pool:
        workers = [pool.submit(work, me) for me in range(threads)]
        while not all(worker.done() for worker in workers):
            seen = tenths[done * 10 // calls]
            seen.append(heap.resident() / 2**20)
            if len(seen) == 1:
                print(f"{done:7} calls, {seen[0]:.1f} MB", flush=True)
            time.sleep(0.1)
    for worker in workers:
        worker.result()
    memory = [{"median": statistics.median(seen), "highest": max(seen)} for seen in tenths if seen]
    return {
        "calls": calls,
        "threads": threads,
        "wrong": sum(wrong),
        "seconds": time.perf_counter() - start,
        "early": memory[len(memory) * 3 // 10],
        "late": memory[-1],
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


if __name__ == "__main__":
    sys.exit(main())
