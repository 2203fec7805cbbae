"""Evaluate a model on a split of the data, at one scale or several, with or without the mirrored image."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import backends, models
from ..errors import UserError
from ..inference.segment import DTYPES, check_backend
from ..inference.segmenter import averaged_labels
from ..io import images
from ..models.networks import Network
from ..models.outputs import classes, one_per_class
from ..ops.normalise import normalise
from ..ops.upsample_argmax import upsample_argmax
from . import advice, data, preparing, processes, saving, survey
from .augment import IGNORE
from .label_map import LabelMap
from .scores import Counter, Scores


@dataclass(frozen=True)
class Options:
    """scales: sizes of the input over the image's, whose probabilities are averaged. flip: also the mirrored image."""

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False


@dataclass(frozen=True)
class Job:
    """The options of `lwrn-fast eval`. out: a .json or .csv file for the scores."""

    data: Path
    checkpoint: str
    split: str = "val"
    network: str | None = None
    predict: Options = field(default_factory=Options)
    dtype: str = "f32"
    device: str | None = None
    backend: str | None = None
    confusion: bool = False
    out: Path | None = None
    weights: str | None = None
    # The classes of values or colours in label maps, as `label_map.parse` reads it.
    map_labels: str | None = None


def run(
    job: Job,
    say: Callable[[str], object] = print,
    error: Callable[[str], object] = print,
    progress: Callable[[Sequence], Iterable] = iter,
) -> int:
    """Evaluate, print the tables, write the file; return the number of images that failed. Raises UserError."""
    check_backend(job.backend)
    label_map = preparing.label_map_of(job.map_labels)
    try:
        model = models.load(job.checkpoint, job.network, weights=job.weights)
    except models.CheckpointError as reason:
        raise UserError(str(reason)) from reason
    names, warnings = _names(job, model)
    pairs = data.find(job.data, job.split, label_map)
    with processes.joined(job.device) as device:
        first = processes.rank() == 0
        surveyed = processes.by_first(lambda tick: _look(pairs, label_map, names, progress, tick))
        if surveyed is not None:
            say(f"{model.name}, {job.dtype}, {len(pairs)} images of {job.split}")
            for line in (*warnings, *surveyed[1]):
                say(f"warning: {line}")
        model = model.to(device, DTYPES[job.dtype])
        with nullcontext() if job.backend is None else backends.use_backend(job.backend):
            scores, failed = evaluate(model, pairs, job.predict, error, progress if first else iter)
    if surveyed is None:
        return failed
    counts = surveyed[0]
    say(scores.table(names, counts.images))
    if job.confusion:
        say(scores.confusion_table(names))
    if failed:
        say(f"{failed} of {len(pairs)} images could not be used and do not count")
    if job.out is not None:
        about = {
            **{"network": model.name, "checkpoint": job.checkpoint, "data": str(job.data), "split": job.split},
            **{"images": len(pairs) - failed, "failed": failed, "dtype": job.dtype, "backend": job.backend},
            **{"scales": job.predict.scales, "flip": job.predict.flip, "map_labels": job.map_labels},
            "labels": {"ignored": counts.pixels[IGNORE], "classes": advice.rows(counts, names)},
        }
        text = scores.to_csv(names) if job.out.suffix == ".csv" else scores.to_json(names, **about)
        saving.write_text(job.out, text)
    return failed


def _names(job: Job, model: Network) -> tuple[list[str], list[str]]:
    """Return the names of the model's classes, and a warning where --map-labels is to convert the data's other classes.

    Raises UserError where the data has another number of classes and nothing maps them.
    """
    number = model.num_classes
    known = data.class_names(job.data)
    # one logit stands for two classes; data may name only the second
    fitting = {number, 2} if number == 1 else {number, 1} if number == 2 else {number}
    names = preparing.classes(job.data, number, None)[0]
    if known is None or len(known) in fitting:
        return names, []
    if job.map_labels is not None:
        return names, [f"{job.data} names {len(known)} classes, {job.checkpoint} has {classes(number)}"]
    raise UserError(f"{job.checkpoint}: has {classes(number)}, {job.data} has {len(known)}")


def _look(
    pairs: Sequence[data.Pair],
    label_map: LabelMap | None,
    names: Sequence[str],
    progress: Callable[[Sequence], Iterable],
    tick: Callable[[], object],
) -> tuple[survey.Tally, list[str]]:
    """Survey all label maps; return their counts and warnings. Raises UserError."""
    surveyed = survey.look(pairs, progress, tick)
    judged = advice.judge(surveyed, label_map, names, advice.EVALUATE, each=False)
    if judged.error is not None:
        raise UserError(judged.error)
    return survey.tally(surveyed, label_map, len(names)), judged.warnings


def evaluate(
    model: Network,
    pairs: Sequence[data.Pair],
    options: Options = Options(),  # noqa: B008  # frozen
    error: Callable[[str], object] | None = None,
    progress: Callable[[Sequence], Iterable] = iter,
) -> tuple[Scores, int]:
    """Return a model's scores over all pairs and the number of pairs that failed; each process does its share.

    model: in eval mode. error: gets one line for each pair that cannot be used, and the others are evaluated; without
    it the first one raises.
    """
    device = next(model.parameters()).device
    num_classes = max(2, model.num_classes)  # one logit stands for two
    counter = Counter(num_classes, device)
    failed = 0
    for pair in progress(pairs[processes.rank() :: processes.count()]):
        try:
            image, labels = data.read(pair, num_classes)
            predicted = predict(model, image, options)
        except (UserError, RuntimeError, MemoryError) as reason:  # unusable, or too large for this machine
            if error is None:
                raise
            failed += 1
            line = images.reason(reason)
            error(line if isinstance(reason, UserError) else f"{pair.image}: {line}")
        else:
            counter.add(predicted, torch.from_numpy(labels).to(device))
    return counter.scores(), int(processes.total(torch.tensor(failed, device=device)))


def predict(model: Network, image: np.ndarray, options: Options = Options()) -> Tensor:  # noqa: B008  # frozen
    """Return the labels, uint8 (H, W), of an image, uint8 (H, W, 3), on the model's device and in its dtype."""
    height, width = image.shape[:2]
    like = next(model.parameters())
    pixels = torch.from_numpy(image).to(like.device)
    with torch.inference_mode():
        sizes = [(max(1, round(height * scale)), max(1, round(width * scale))) for scale in options.scales]
        inputs = [normalise(pixels, size, like.dtype) for size in sizes]
        if len(inputs) == 1 and not options.flip:
            return upsample_argmax(one_per_class(model(inputs[0])), (height, width))[0]
        return averaged_labels(lambda x: one_per_class(model(x)), inputs, options.flip, (height, width))[0]
