"""Soak test of `Segmenter`: several threads, images of changing sizes, many calls; every result right, memory flat.

`python bench/targets/soak.py [--calls 20000] [--threads 4] [--out FILE.json]`: rf_lw_mbv2 with the package's weights.
Looks at the resident memory ten times a second and exits with 1 where a label map differs from the first one of its
image, or where the median or the highest in the last tenth of the calls is more than 5 % above that in the fourth
tenth. Until then it grows: every thread meets every size, and oneDNN keeps code for the last thousand shapes.
"""

import argparse
import itertools
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import record
import torch

import lwrn_fast
from lwrn_fast import heap, models
from lwrn_fast.training import generate

# Pixels of a side of the images.
MIN_SIDE, MAX_SIDE = 24, 120
IMAGES = 200
# Late memory over early memory, above which memory is said to grow.
MAX_GROWTH = 1.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--images", type=int, default=IMAGES)
    record.add_out(parser)
    arguments = parser.parse_args()
    figures = soak(arguments.calls, arguments.threads, arguments.images)
    record.write(arguments.out, figures)
    early, late = figures["early"], figures["late"]
    memory = ", ".join(f"{key} memory {early[key]:.1f} MB early, {late[key]:.1f} MB late" for key in early)
    print(
        f"{figures['calls']} calls from {arguments.threads} threads in {figures['seconds']:.0f} s, "
        f"{figures['wrong']} wrong; {memory}"
    )
    return int(figures["wrong"] > 0 or any(late[key] > MAX_GROWTH * early[key] for key in early))


def soak(calls: int, threads: int, count: int = IMAGES) -> dict:
    """Return the number of wrong results among so many calls, and the resident megabytes over time."""
    model = models.load(models.SHAPES)
    segmenter = lwrn_fast.Segmenter(model)
    images = [random_image(i) for i in range(count)]
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


def random_image(i: int) -> np.ndarray:
    """Draw shapes in an image of a size of its own."""
    height, width = np.random.RandomState(i).randint(MIN_SIDE, MAX_SIDE + 1, 2)
    return generate.draw_image(1, "test", i, (int(height), int(width)))[0]


def check(model: torch.nn.Module, image: np.ndarray, labels: np.ndarray) -> None:
    """Raise ArithmeticError where labels are not plain PyTorch's, but for pixels where two logits are nearly equal."""
    with lwrn_fast.use_backend("reference"), torch.inference_mode():
        logits = model(lwrn_fast.normalise(torch.from_numpy(image)))
        expected = lwrn_fast.upsample_argmax(logits, image.shape[:2])[0].numpy()
    if (expected != labels).mean() > 1e-3:
        raise ArithmeticError(f"{(expected != labels).mean():.2%} of the labels are not plain PyTorch's")


if __name__ == "__main__":
    sys.exit(main())
