"""Image files to label maps, for `lwrn-fast segment` and the demonstration."""

import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import backends, models
from ..errors import UserError, as_user_error, reason
from ..io import formats, images
from ..models.networks import Network
from ..ops.normalise import normalise
from ..ops.upsample_argmax import upsample_argmax
from .segmenter import Segmenter
from .timings import Timings

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
# Classes that a label map of uint8 holds.
MAX_CLASSES = 256
# Seed of random weights.
SEED = 0
# Rows of the closing table, and the stages of `Timings` in each.
ROWS = {"pre": ("read", "pre"), "infer": ("network",), "post": ("post", "write")}


@dataclass(frozen=True)
class Options:
    """Options of a run, for all of its images."""

    out: Path
    network: str | None = None
    checkpoint: str | None = None
    num_classes: int | None = None
    backend: str | None = None
    dtype: str = "f32"
    size: tuple[int, int] | None = None
    scale: float = 1.0
    overlay: bool = False
    verify: bool = False
    # Take images in folders below too.
    recursive: bool = False
    # Skip images that are done, as `folders.run` does.
    resume: bool = False
    # "cpu" or "cuda"; None takes a GPU where there is one.
    device: str | None = None
    # One of several sets of weights in the checkpoint, as for `models.load`.
    weights: str | None = None
    # Pixels of an image file and of the model's input; None: `images.max_pixels()` and images.MAX_INPUT.
    max_pixels: int | None = None


@dataclass
class Report:
    """Result of a run: the time per image, differences to the reference backend, and errors."""

    # Times by ROWS, for all images that are done.
    times: Timings = field(default_factory=lambda: Timings(calls=None))
    # Largest difference of a logit from the reference backend in float32, relative to its largest logit.
    max_difference: float = 0.0
    # Labels that differ from the reference backend's, of so many pixels.
    other_labels: int = 0
    pixels: int = 0
    # A line for each result whose name differs from its image's, which was in use or too long.
    renamed: list[str] = field(default_factory=list)
    # A line about the images of the folders that were skipped, because Pillow cannot read their format here.
    skipped: str | None = None
    errors: list[str] = field(default_factory=list)
    # A line about what all processes have done, where there is a manifest.
    folder: str | None = None

    @property
    def done(self) -> int:
        """Images whose results are written."""
        return self.times.count("post")

    def table(self, verified: bool = False) -> str:
        """Return the closing table."""
        if not self.done:
            return "0 images"
        rows = [f"{'ms per image':14}{'median':>10}{'least':>10}{'most':>10}"]
        columns = {row: self.times.milliseconds(row) for row in ROWS}
        for row, values in columns.items():
            rows.append(f"{row:14}{statistics.median(values):10.1f}{min(values):10.1f}{max(values):10.1f}")
        total = sum(map(sum, columns.values())) / 1000
        rows.append(f"{self.done} image{'s' * (self.done != 1)}, {self.done / total:.2f} images/s")
        if verified:
            rows.append(
                f"difference to the reference backend in float32: logits {self.max_difference:.1e} relative, "
                f"{self.other_labels} of {self.pixels} labels ({100 * self.other_labels / self.pixels:.4f} %)"
            )
        return "\n".join(rows)


def build(options: Options) -> tuple[Network, bool]:
    """Return the model in eval mode and float32, and whether it is trained; without a checkpoint it is random."""
    classes = options.num_classes
    if classes is not None and not 1 <= classes <= MAX_CLASSES:
        raise UserError(f"--num-classes must be 1 to {MAX_CLASSES}, got {classes}")
    if options.checkpoint is not None:
        model = models.load(options.checkpoint, options.network, classes, options.weights)
        if model.num_classes > MAX_CLASSES:
            raise UserError(f"{options.checkpoint}: has {model.num_classes} classes, label maps hold {MAX_CLASSES}")
        return model, model.loaded is None or not model.loaded.untrained
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return models.NETWORKS[options.network or "rf_lw_mbv2"](classes or 21).eval(), False


def check_backend(name: str | None) -> None:
    """Raise UserError where the backend, None for the one in use, is unknown or cannot run here at all."""
    with as_user_error(str, ValueError):  # LWRN_FAST_BACKEND names no backend
        name = name or backends.requested()
    missing = backends.missing(name)
    if missing is not None:
        raise UserError(f"the backend {name!r} cannot run here: {missing}")


def segmenter(model: Network, options: Options) -> Segmenter:
    """Return the Segmenter of a model and these options."""
    target = device(options.device)
    return Segmenter(model, device=target, dtype=DTYPES[options.dtype], size=options.size, scale=options.scale)


def device(name: str | None) -> str:
    """Return the device for this process. name: "cpu" or "cuda"; None takes a GPU where there is one.

    The processes that torchrun starts on one machine take its GPUs in turn. Raises UserError.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UserError("--device cuda: PyTorch finds no GPU here")
    if name == "cpu" or not has_gpu:
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def run(
    paths: Sequence[str],
    options: Options,
    model: Network,
    error: Callable[[str], object],
    progress: Callable[[Sequence], Iterable] = iter,
) -> Report:
    """Segment every image in paths. error: gets a line for each image that fails, and the others are done.

    progress: wraps the list of images, as tqdm does. Raises UserError where nothing can be done at all.
    """
    check_backend(options.backend)
    report = Report()

    def fail(line: str) -> None:
        report.errors.append(line)
        error(line)

    files, errors, skipped = images.search(paths, options.recursive, leave_out=options.out)
    for line in errors:
        fail(line)
    report.skipped = formats.skipped(skipped) if skipped else None
    images.make_folder(options.out)
    work = Work(model, options, report)
    names = images.output_names(files, options.out, endings(options))
    jobs = [(Path(f.path), [options.out / name for name in outputs]) for f, outputs in zip(files, names, strict=True)]
    with using(options.backend):
        for path, outputs in progress(jobs):
            failure = attempt(work, path, outputs)
            if failure is not None:
                fail(failure)
    return report


def endings(options: Options) -> list[str]:
    """Return the endings of the files that are written for an image."""
    return [".png", "_overlay.png"][: 1 + options.overlay]


def using(backend: str | None) -> AbstractContextManager[object]:
    """Use this backend within; None leaves the one in use."""
    return nullcontext() if backend is None else backends.use_backend(backend)


def attempt(work: "Work", path: Path, outputs: list[Path]) -> str | None:
    """Segment one image; return its error in one line, None where there is none."""
    try:
        work.one(path, outputs)
        return None
    except images.ImageError as error:
        return str(error)
    except MemoryError:
        return f"{path}: not enough memory"
    except Exception as error:  # too large for this machine, not for this backend, or a fault of ours
        return f"{path}: {reason(error)}"


class Work:
    """One model that segments one image after the other."""

    def __init__(self, model: Network, options: Options, report: Report) -> None:
        self.segmenter = segmenter(model, options)
        self.segmenter.times = Timings(synchronise=True)
        self.reference = deepcopy(model) if options.verify else None
        self.options = options
        self.report = report
        with as_user_error(str, ValueError):  # LWRN_FAST_MAX_PIXELS is no number
            self.max_pixels = images.max_pixels(options.max_pixels)

    def one(self, path: Path, outputs: list[Path]) -> None:
        """Read an image, segment it and write the results. Raises ImageError and the errors of the model."""
        times = self.segmenter.times
        with times.measure("read"):
            image = images.read(path, self.max_pixels)
            self._check_input(path, image)
        logits = self.segmenter.logits(self.segmenter.input(image))
        label_map = self.segmenter.labels(logits, image.shape[:2])[0]
        with times.measure("write"):
            labels = label_map.cpu().numpy()
            images.write_labels(outputs[0], labels)
            if self.options.overlay:
                images.write_overlay(outputs[1], image, labels)
        for row, stages in ROWS.items():
            self.report.times.add(row, sum(times.last(stage) for stage in stages))
        if outputs[0].stem != path.stem:
            self.report.renamed.append(f"{path} is in {outputs[0]}")
        if self.reference is not None:
            self._verify(self.reference, image, logits, labels)

    def _check_input(self, path: Path, image: np.ndarray) -> None:
        """Raise ImageError where the model would need so much memory that the other images fail too."""
        height, width = self.segmenter.input_size(*image.shape[:2])
        max_input = self.options.max_pixels or images.MAX_INPUT
        if height * width > max_input:
            text = f"the network's input would be {width} x {height}, more than {max_input} pixels"
            raise images.ImageError(f"{path}: {text}; give --scale or --size, or raise --max-pixels")

    def _verify(self, reference: Network, image: np.ndarray, logits: Tensor, labels: np.ndarray) -> None:
        """Compare with plain PyTorch in float32, which begins with the image too."""
        size = self.segmenter.input_size(*image.shape[:2])
        with backends.use_backend("reference"), torch.inference_mode():
            true_logits = reference(normalise(torch.from_numpy(image), size))
            true_labels = upsample_argmax(true_logits, image.shape[:2])[0].numpy()
        difference = (logits.float().cpu() - true_logits).abs().max() / true_logits.abs().max().clamp_min(1e-30)
        # max() would drop a NaN
        larger = float(difference) if difference == difference else float("inf")
        self.report.max_difference = max(self.report.max_difference, larger)
        self.report.other_labels += int((labels != true_labels).sum())
        self.report.pixels += labels.size
