"""Photographs to label maps: what `lwrn-fast segment` and the demonstration do."""

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import backends, models
from ..errors import UserError
from ..io import formats, images
from ..models.networks import Network
from ..ops.normalise import normalise
from ..ops.upsample_argmax import upsample_argmax
from .segmenter import Segmenter

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
MOST_CLASSES = 256
SEED = 0


@dataclass(frozen=True)
class Options:
    """What to do with every picture."""

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
    recursive: bool = False
    """Also images in folders below."""
    resume: bool = False
    """Skip what is done, as `folders.run` does."""
    device: str | None = None
    """"cpu" or "cuda"; None is the model's."""
    weights: str | None = None
    """Which of several weights in the checkpoint, as for `models.load`."""
    max_pixels: int | None = None
    """Of an image file, and of the network's input; None is `images.max_pixels()`, and images.MAX_INPUT."""


@dataclass
class Report:
    """What was done: milliseconds per picture, differences to the reference backend, and what went wrong."""

    milliseconds: dict[str, list[float]] = field(default_factory=lambda: {"pre": [], "infer": [], "post": []})
    largest_difference: float = 0.0
    """Of a logit in float32 on the reference backend, relative to the largest one."""
    other_labels: int = 0
    pixels: int = 0
    renamed: list[str] = field(default_factory=list)
    """Which result has another name than its picture, because that one was in use, or too long."""
    skipped: str | None = None
    """How many images of the folders were passed over, because Pillow cannot read their kind here."""
    errors: list[str] = field(default_factory=list)
    folder: str | None = None
    """What all processes have done, where there is a manifest."""

    @property
    def done(self) -> int:
        return len(self.milliseconds["post"])

    def table(self, verified: bool = False) -> str:
        """The closing table."""
        if not self.done:
            return "0 images"
        rows = [f"{'ms per image':14}{'median':>10}{'least':>10}{'most':>10}"]
        for step, values in self.milliseconds.items():
            rows.append(f"{step:14}{statistics.median(values):10.1f}{min(values):10.1f}{max(values):10.1f}")
        total = sum(map(sum, self.milliseconds.values())) / 1000
        rows.append(f"{self.done} image{'s' * (self.done != 1)}, {self.done / total:.2f} images/s")
        if verified:
            rows.append(
                f"difference to the reference backend in float32: logits {self.largest_difference:.1e} relative, "
                f"{self.other_labels} of {self.pixels} labels ({100 * self.other_labels / self.pixels:.4f} %)"
            )
        return "\n".join(rows)


def build(options: Options) -> tuple[Network, bool]:
    """The network in eval mode and float32, and whether it is trained; without a checkpoint the weights are random."""
    classes = options.num_classes
    if classes is not None and not 1 <= classes <= MOST_CLASSES:
        raise UserError(f"--num-classes must be 1 to {MOST_CLASSES}, got {classes}")
    if options.checkpoint is not None:
        try:
            model = models.load(options.checkpoint, options.network, classes, options.weights)
        except models.CheckpointError as error:
            raise UserError(str(error)) from error
        if model.num_classes > MOST_CLASSES:
            raise UserError(f"{options.checkpoint}: has {model.num_classes} classes, label maps hold {MOST_CLASSES}")
        return model, model.loaded is None or not model.loaded.untrained
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return models.NETWORKS[options.network or "rf_lw_mbv2"](classes or 21).eval(), False


def check_backend(name: str | None) -> None:
    """UserError where the backend, or the one the environment names, is unknown or cannot run here at all."""
    try:
        name = name or backends.requested()
    except ValueError as error:
        raise UserError(str(error)) from error
    reason = backends.missing(name)
    if reason is not None:
        raise UserError(f"the backend {name!r} cannot run here: {reason}")


def segmenter(model: Network, options: Options) -> Segmenter:
    """The network with what goes before and after it, as the options say."""
    place = device(options.device)
    return Segmenter(model, device=place, dtype=DTYPES[options.dtype], size=options.size, scale=options.scale)


def device(kind: str | None) -> str:
    """The device for this process: of "cuda" a GPU, which torchrun's processes on one machine take in turn. None: a GPU
    where there is one. Raises UserError."""
    there = torch.cuda.is_available()
    if kind == "cuda" and not there:
        raise UserError("--device cuda: PyTorch finds no GPU here")
    if kind == "cpu" or not there:
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def run(
    paths: Sequence[str],
    options: Options,
    model: Network,
    error: Callable[[str], object],
    progress: Callable[[Sequence], Iterable] = iter,
) -> Report:
    """Segment every picture in paths; `error` is told, one line each, what does not work, and the rest is done.

    progress: wraps the list that is walked, as tqdm does. Raises UserError where nothing can be done at all.
    """
    check_backend(options.backend)
    report = Report()

    def fail(line: str) -> None:
        report.errors.append(line)
        error(line)

    found, wrong, skipped = images.search(paths, options.recursive, leave_out=options.out)
    for line in wrong:
        fail(line)
    report.skipped = formats.skipped(skipped) if skipped else None
    try:
        images.make_folder(options.out)
    except images.ImageError as reason:
        raise UserError(str(reason)) from reason
    work = Work(model, options, report)
    names = images.output_names(found, options.out, endings(options))
    jobs = [(Path(f.path), [options.out / name for name in outputs]) for f, outputs in zip(found, names, strict=True)]
    with using(options.backend):
        for path, outputs in progress(jobs):
            trouble = attempt(work, path, outputs)
            if trouble is not None:
                fail(trouble)
    return report


def endings(options: Options) -> list[str]:
    """Of what is written for a photograph."""
    return [".png", "_overlay.png"][: 1 + options.overlay]


def using(backend: str | None) -> AbstractContextManager[object]:
    """This backend within, or None for what is in use anyway."""
    return nullcontext() if backend is None else backends.use_backend(backend)


def attempt(work: "Work", path: Path, outputs: list[Path]) -> str | None:
    """Segment one picture; what went wrong, in one line."""
    try:
        work.one(path, outputs)
        return None
    except images.ImageError as reason:
        return str(reason)
    except MemoryError:
        return f"{path}: not enough memory"
    except Exception as reason:  # too large for this machine, not for this backend, or what nobody thought of
        return f"{path}: {images.reason(reason)}"


class Work:
    """One picture after the other through one network."""

    def __init__(self, model: Network, options: Options, report: Report) -> None:
        self.segmenter = segmenter(model, options)
        self.reference = deepcopy(model) if options.verify else None
        self.options = options
        self.report = report
        try:
            self.max_pixels = images.max_pixels(options.max_pixels)
        except ValueError as error:
            raise UserError(str(error)) from error

    def one(self, path: Path, outputs: list[Path]) -> None:
        start = time.perf_counter()
        image = images.read(path, self.max_pixels)
        self._check_input(path, image)
        x = self.segmenter.input(image)
        read = time.perf_counter()
        logits = self.segmenter.logits(x)
        if logits.is_cuda:
            torch.cuda.synchronize(logits.device)  # or the time would count for what follows
        inferred = time.perf_counter()
        labels = self.segmenter.labels(logits, image.shape[:2])[0].cpu().numpy()
        images.write_labels(outputs[0], labels)
        if self.options.overlay:
            images.write_overlay(outputs[1], image, labels)
        steps = (read - start, inferred - read, time.perf_counter() - inferred)
        for values, seconds in zip(self.report.milliseconds.values(), steps, strict=True):
            values.append(seconds * 1000)
        if outputs[0].stem != path.stem:
            self.report.renamed.append(f"{path} is in {outputs[0]}")
        if self.reference is not None:
            self._verify(self.reference, image, logits, labels)

    def _check_input(self, path: Path, image: np.ndarray) -> None:
        """ImageError where the network would need the memory of all other images too."""
        height, width = self.segmenter.input_size(*image.shape[:2])
        most = self.options.max_pixels or images.MAX_INPUT
        if height * width > most:
            what = f"the network's input would be {width} x {height}, more than {most} pixels"
            raise images.ImageError(f"{path}: {what}; give --scale or --size, or raise --max-pixels")

    def _verify(self, reference: Network, image: np.ndarray, logits: Tensor, labels: np.ndarray) -> None:
        """Against plain PyTorch in float32, from the picture on."""
        size = self.segmenter.input_size(*image.shape[:2])
        with backends.use_backend("reference"), torch.inference_mode():
            true_logits = reference(normalise(torch.from_numpy(image), size))
            true_labels = upsample_argmax(true_logits, image.shape[:2])[0].numpy()
        difference = (logits.float().cpu() - true_logits).abs().max() / true_logits.abs().max().clamp_min(1e-30)
        # a NaN must not hide behind a comparison that it makes false
        worst = float(difference) if difference == difference else float("inf")
        self.report.largest_difference = max(self.report.largest_difference, worst)
        self.report.other_labels += int((labels != true_labels).sum())
        self.report.pixels += labels.size
