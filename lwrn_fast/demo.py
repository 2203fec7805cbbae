"""The main job in one command: `python -m lwrn_fast.demo [PHOTOS...] [--out DIR] [--checkpoint FILE]`.

Segments drawn pictures, of which the truth is known, or photographs; compares with the reference backend and with the
plain PyTorch network.
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

from . import cli, models
from .inference import segment
from .inference.segmenter import Segmenter
from .io import images
from .models import outputs
from .models.networks import Network
from .ops.upsample_argmax import upsample_argmax
from .training import data, generate

RUNS = 5
INPUT = (512, 512)
PICTURES = 3
SIZE = (192, 256)
COMPARISON = "picture_labels_truth.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; returns the exit code, as `lwrn_fast.cli.main`."""
    parser = cli.Parser(prog="python -m lwrn_fast.demo", description="Segment photographs, verify, and time it.")
    parser.add_argument("photos", nargs="*", metavar="PHOTOS", help="images and folders; default: drawn pictures")
    parser.add_argument("--out", type=Path, default=Path("lwrn_fast_demo"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--checkpoint", metavar="FILE", help="trained weights; default: the package's, of drawn shapes")
    arguments = parser.parse_args(argv)
    return cli.exit_code(lambda: demonstrate(arguments.photos, arguments.out, arguments.checkpoint))


def demonstrate(photos: Sequence[str], out: Path, checkpoint: str | None) -> int:
    """Everything, told on stdout; returns the exit code."""
    drawn: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    try:
        images.make_folder(out)
        if not photos:
            drawn = draw(out)
            photos = list(drawn)
        options = segment.Options(
            out / "labels", checkpoint=checkpoint or str(models.SHAPES), overlay=True, verify=True
        )
        segment.check_backend(None)
        model, _ = segment.build(options)
        print(f"network   {model.name}, {outputs.classes(model.num_classes)}")
        print(f"weights   {options.checkpoint}" + ("" if checkpoint else ": they know drawn shapes, nothing else"))
        report = segment.run(photos, options, model, error=cli.say_error, progress=cli.progress_bar())
        if report.skipped is not None:
            print(report.skipped)
        print(f"labels    {options.out}\n\n{report.table(verified=True)}")
        if drawn and model.num_classes == len(generate.CLASSES):
            right = compare(drawn, options.out, out / COMPARISON)
            print(f"\n{right:.1%} of the pixels are right; pictures, labels and truth: {out / COMPARISON}")
    except (images.ImageError, segment.UserError) as error:
        return cli.say_error(str(error))
    print(f"\n{speed(model)}")
    return 2 if report.errors else 0


def draw(out: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pictures that no network was trained with, written to `out`: of each path the picture and its labels."""
    drawn = {}
    for i in range(PICTURES):
        path = out / f"shapes_{i + 1}.png"
        drawn[str(path)] = generate.draw_image(segment.SEED, "test", i, SIZE)
        images.write(path, drawn[str(path)][0])
    return drawn


def compare(drawn: Mapping[str, tuple[np.ndarray, np.ndarray]], labels: Path, to: Path) -> float:
    """Write each picture beside the labels found in the folder `labels` and the true ones; the share that is right."""
    rows, right = [], []
    for path, (picture, truth) in drawn.items():
        found = data.read_labels(labels / Path(path).name)
        rows.append(np.hstack([picture, models.PALETTE[found], models.PALETTE[truth]]))
        right.append(found == truth)
    images.write(to, np.vstack(rows))
    return float(np.mean(right))


def speed(model: Network) -> str:
    """The medians of the network and of the plain PyTorch one, run in turn, and their ratio."""
    image = np.random.RandomState(0).randint(0, 256, (*INPUT, 3)).astype(np.uint8)
    plain = deepcopy(model)
    plain.memory_format = torch.contiguous_format

    def plain_labels() -> None:
        with segment.backends.use_backend("reference"), torch.inference_mode():
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
