"""The main job in one command: `python -m lwrn_fast.demo [PHOTOS...] [--out DIR] [--checkpoint FILE]`.

Segments the photographs, or a drawn picture, compares with the reference backend and with the plain PyTorch network.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

from . import cli, images, models, segment
from .models.networks import Network

RUNS = 5
INPUT = (512, 512)
PICTURE = "drawn_picture.png"
WEIGHTS = "untrained_weights.safetensors"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; returns the exit code, as `lwrn_fast.cli.main`."""
    parser = cli.Parser(prog="python -m lwrn_fast.demo", description="Segment photographs, verify, and time it.")
    parser.add_argument("photos", nargs="*", metavar="PHOTOS", help="images and folders; default: a drawn picture")
    parser.add_argument("--out", type=Path, default=Path("lwrn_fast_demo"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--checkpoint", metavar="FILE", help="trained weights; default: a generated, untrained file")
    arguments = parser.parse_args(argv)
    return cli.exit_code(lambda: demonstrate(arguments.photos, arguments.out, arguments.checkpoint))


def demonstrate(photos: Sequence[str], out: Path, checkpoint: str | None) -> int:
    """Everything, told on stdout; returns the exit code."""
    try:
        images.make_folder(out)
        if not photos:
            images.write(out / PICTURE, picture())
            photos = [str(out / PICTURE)]
        trained = checkpoint is not None
        if checkpoint is None:
            checkpoint = str(out / WEIGHTS)
            generate_weights(checkpoint)
        options = segment.Options(out / "labels", checkpoint=checkpoint, overlay=True, verify=True)
        segment.check_backend(None)
        model, _ = segment.build(options)
        print(f"network   {model.name}, {model.num_classes} classes")
        print(f"weights   {checkpoint}" + ("" if trained else ": UNTRAINED, the labels mean nothing"))
        report = segment.run(photos, options, model, error=cli.say_error, progress=cli.progress_bar())
    except (images.ImageError, segment.UserError) as error:
        return cli.say_error(str(error))
    print(f"labels    {options.out}\n\n{report.table(verified=True)}\n\n{speed(model)}")
    if not trained:
        print("\nThe weights are UNTRAINED. With a published checkpoint: --checkpoint FILE")
    return 2 if report.errors else 0


def speed(model: Network) -> str:
    """The medians of the network and of the plain PyTorch one, run in turn, and their ratio."""
    image = models.preprocess(np.random.RandomState(0).randint(0, 256, (*INPUT, 3)).astype(np.uint8))
    plain = deepcopy(model)
    plain.memory_format = torch.contiguous_format

    def plain_labels() -> None:
        with segment.backends.use_backend("reference"):
            segment.segment(plain, image.contiguous(), INPUT)

    contestants = {"plain PyTorch, NCHW": plain_labels, "lwrn_fast": lambda: segment.segment(model, image, INPUT)}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in range(RUNS + 1):
        for name, call in contestants.items():
            seconds = _seconds(call)
            if run:  # the first one warms up
                times[name].append(seconds)
    slow, fast = (statistics.median(values) for values in times.values())
    threads = torch.get_num_threads()
    rows = [f"image to labels at {INPUT[0]} x {INPUT[1]}, median of {RUNS}, {threads} thread{'s' * (threads != 1)}"]
    rows += [f"{name:22}{1000 * statistics.median(values):10.1f} ms" for name, values in times.items()]
    return "\n".join([*rows, f"{'speed-up':22}{slow / fast:10.2f} x"])


def generate_weights(path: str) -> None:
    """A weight file of rf_lw_mbv2, random but such that activations keep their size and every class appears."""
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise segment.UserError("the demonstration needs safetensors: pip install safetensors") from error
    generator = torch.Generator().manual_seed(segment.SEED)
    model = models.rf_lw_mbv2()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, generator=generator)
            if module.bias is not None:
                module.bias.data.zero_()
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # the running statistics become those of the picture
    with torch.no_grad():
        logits = model.train()(models.preprocess(picture()))
        deviation, mean = torch.std_mean(logits, (0, 2, 3))
        model.get_parameter(f"{model.head}.weight").div_(deviation[:, None, None, None])
        model.get_parameter(f"{model.head}.bias").sub_(mean).div_(deviation)
    try:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    except OSError as error:
        raise segment.UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def picture(height: int = 480, width: int = 640) -> np.ndarray:
    """A drawn landscape, uint8 (height, width, 3): sky, sun, two hills, a meadow, a house."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width])[:, None, None]
    image = np.stack([110 + 110 * y, 160 + 70 * y, 235 - 30 * y], axis=2)

    def paint(where: np.ndarray, *colour: int) -> None:
        image[where] = colour

    paint((x - 0.78) ** 2 + 0.6 * (y - 0.2) ** 2 < 0.006, 255, 220, 90)
    paint(y > 0.45 + 0.1 * np.sin(5 * x), 90, 120, 130)
    paint(y > 0.6 + 0.07 * np.sin(7 * x + 2), 70, 110, 60)
    paint(y > 0.75 + 0.02 * np.sin(20 * x), 110, 160, 70)
    paint((abs(x - 0.3) < 0.11) & (abs(y - 0.66) < 0.1), 200, 170, 140)
    paint((y < 0.56) & (y - 0.42 > abs(x - 0.3)), 150, 60, 50)
    paint((abs(x - 0.27) < 0.025) & (abs(y - 0.7) < 0.06), 80, 55, 45)
    paint((abs(x - 0.36) < 0.025) & (abs(y - 0.64) < 0.03), 120, 150, 180)
    grain = np.random.RandomState(0).normal(0, 6, image.shape)
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
