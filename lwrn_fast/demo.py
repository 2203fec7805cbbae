"""The main job in one command: `python -m lwrn_fast.demo [PHOTOS...] [--out DIR] [--checkpoint FILE]`.

Segment drawn images, whose true labels are known, or images of the user; compare with the reference backend and with
the plain PyTorch model.
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

from . import backends, models
from .cli import building
from .cli.terminal import Parser, exit_code, progress_bar, say_error
from .inference import segment
from .inference.segmenter import Segmenter
from .io import images
from .models import outputs
from .models.networks import Network
from .ops.upsample_argmax import upsample_argmax
from .training import data, generate

# Timed runs of each contestant.
RUNS = 5
# Height and width of the timed image.
INPUT = (512, 512)
# Number of drawn images, and their height and width.
IMAGES = 3
SIZE = (192, 256)
COMPARISON = "picture_labels_truth.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; return the exit code, as `lwrn_fast.cli.main`."""
    parser = Parser(prog="python -m lwrn_fast.demo", description="Segment photographs, verify, and time it.")
    parser.add_argument("photos", nargs="*", metavar="PHOTOS", help="images and folders; default: drawn pictures")
    parser.add_argument("--out", type=Path, default=Path("lwrn_fast_demo"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--checkpoint", metavar="FILE", help="trained weights; default: the package's, of drawn shapes")
    arguments = parser.parse_args(argv)
    return exit_code(lambda: demonstrate(arguments.photos, arguments.out, arguments.checkpoint))


def demonstrate(photos: Sequence[str], out: Path, checkpoint: str | None) -> int:
    """Segment, compare and time, and print the results; return the exit code. Raises UserError."""
    drawn: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    images.make_folder(out)
    if not photos:
        drawn = draw(out)
        photos = list(drawn)
    options = segment.Options(out / "labels", checkpoint=checkpoint or str(models.SHAPES), overlay=True, verify=True)
    segment.check_backend(None)
    model, _ = building.build(options, announce=False)
    print(f"network   {model.name}, {outputs.classes(model.num_classes)}")
    print(f"weights   {options.checkpoint}" + ("" if checkpoint else ": they know drawn shapes, nothing else"))
    report = segment.run(photos, options, model, error=say_error, progress=progress_bar())
    if report.skipped is not None:
        print(report.skipped)
    print(f"labels    {options.out}\n\n{report.table(verified=True)}")
    if drawn and model.num_classes == len(generate.CLASSES):
        share = compare(drawn, options.out, out / COMPARISON)
        print(f"\n{share:.1%} of the pixels are right; pictures, labels and truth: {out / COMPARISON}")
    print(f"\n{speed(model)}")
    return 2 if report.errors else 0


def draw(out: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write images that no model was trained with to `out`; return each one and its labels by its path."""
    drawn = {}
    for i in range(IMAGES):
        path = out / f"shapes_{i + 1}.png"
        drawn[str(path)] = generate.draw_image(segment.SEED, "test", i, SIZE)
        images.write(path, drawn[str(path)][0])
    return drawn


def compare(drawn: Mapping[str, tuple[np.ndarray, np.ndarray]], labels: Path, to: Path) -> float:
    """Write each image beside the labels in the folder `labels` and the true ones; return the share that is right."""
    rows, matches = [], []
    for path, (image, truth) in drawn.items():
        predicted = data.read_labels(labels / Path(path).name)
        rows.append(np.hstack([image, models.PALETTE[predicted], models.PALETTE[truth]]))
        matches.append(predicted == truth)
    images.write(to, np.vstack(rows))
    return float(np.mean(matches))


def speed(model: Network) -> str:
    """Return the medians of the model and of the plain PyTorch one, run in turn, and their ratio."""
    image = np.random.RandomState(0).randint(0, 256, (*INPUT, 3)).astype(np.uint8)
    plain = deepcopy(model)
    plain.memory_format = torch.contiguous_format

    def plain_labels() -> None:
        with backends.use_backend("reference"), torch.inference_mode():
            logits = plain(models.preprocess(image).contiguous())
            upsample_argmax(logits, INPUT)

    fast = Segmenter(model)
    contestants: dict[str, Callable[[], object]] = {
        "plain PyTorch, NCHW": plain_labels,
        "lwrn_fast": functools.partial(fast, image),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in range(RUNS + 1):
        for name, call in contestants.items():
            seconds = _seconds(call)
            if run:  # the first one warms up
                times[name].append(seconds)
    medians = [statistics.median(values) for values in times.values()]
    threads = torch.get_num_threads()
    rows = [f"image to labels at {INPUT[0]} x {INPUT[1]}, median of {RUNS}, {threads} thread{'s' * (threads != 1)}"]
    rows += [f"{name:22}{1000 * statistics.median(values):10.1f} ms" for name, values in times.items()]
    return "\n".join([*rows, f"{'speed-up':22}{medians[0] / medians[1]:10.2f} x"])


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
