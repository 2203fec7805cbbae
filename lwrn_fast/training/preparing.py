"""Prepare a run: the options, the classes, the model, its parameters in two groups."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import backends, models
from ..errors import UserError
from ..inference.segment import MAX_CLASSES
from ..models.networks import Network
from . import advice, augment, data, processes, survey
from .label_map import LabelMap, parse


@dataclass(frozen=True)
class Options:
    """The options of training. The defaults suit a model that starts from a checkpoint.

    batch: images per step, over all processes. crop: pixels of a side. warmup: steps in which the rates rise.
    clip: the maximum norm of all gradients together, 0 for no maximum. save_every: steps between states to resume from.
    half: export weights in float16. num_classes: 1 is one logit, above 0 for class 1, below for class 0.
    map_labels: the classes of values or colours in label maps, as `label_map.parse` reads it. weights: those to take
    from several in the checkpoint, as for `models.load`.
    """

    data: Path
    out: Path
    val: Path | None = None
    network: str | None = None
    checkpoint: str | None = None
    num_classes: int | None = None
    epochs: int = 50
    batch: int = 8
    crop: int = 256
    scales: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    encoder_lr: float = 5e-4
    decoder_lr: float = 5e-3
    momentum: float = 0.9
    weight_decay: float = 1e-5
    power: float = 0.9
    warmup: int = 0
    clip: float = 0.0
    amp: str = "off"
    freeze_bn: bool = False
    seed: int = 0
    workers: int = 0
    device: str | None = None
    backend: str | None = None
    save_every: int = 100
    half: bool = False
    tensorboard: bool = False
    resume: bool = False
    weights: str | None = None
    map_labels: str | None = None

    def decisive(self) -> dict[str, Any]:
        """Return the options that a resumed run must share with its beginning, in plain types."""
        free = ("data", "out", "val", "workers", "device", "backend", "save_every", "half", "tensorboard", "resume")
        decisive = {name: value for name, value in asdict(self).items() if name not in free}
        if self.weights is None:
            del decisive["weights"]  # older runs do not have it
        return decisive


@dataclass(frozen=True)
class Data:
    """The pairs to train on and to validate with, the names of the classes, and the number of the model's logits.

    val: may be empty. logits: as many as classes, or one for two classes.
    """

    train: list[data.Pair]
    val: list[data.Pair]
    names: list[str]
    logits: int


def find_data(options: Options, held: int | None) -> Data:
    """Return the data that the options name. held: the number of classes of the starting checkpoint, if any."""
    label_map = label_map_of(options.map_labels)
    train = data.find(options.data, "train", label_map)
    val = []
    if options.val is not None or data.has_split(options.data, "val"):
        val = data.find(options.val or options.data, "val", label_map)
    if len(train) < options.batch:
        raise UserError(f"{options.data}: has {len(train)} images to train on, fewer than a batch of {options.batch}")
    return Data(train, val, *classes(options.data, options.num_classes, held))


def classes(folder: Path, asked: int | None, held: int | None) -> tuple[list[str], int]:
    """Return the names of the classes and the number of logits: as asked, else the data's, else the checkpoint's.

    One logit stands for two classes.
    """
    names = data.class_names(folder)
    number = asked or (len(names) if names is not None else held)
    if number is None:
        raise UserError(f"{folder}: has no {data.CLASSES_FILE} that says which classes there are; give --num-classes")
    if number >= MAX_CLASSES:
        raise UserError(f"--num-classes must be 1 to {MAX_CLASSES - 1}, got {number}")
    count = max(2, number)
    if names is not None and len(names) == 1 and count == 2:
        names = ["background", *names]
    return names if names is not None and len(names) == count else [str(i) for i in range(count)], number


def label_map_of(text: str | None) -> LabelMap | None:
    """Return the map of --map-labels. Raises UserError."""
    return None if text is None else parse(text)


def look(
    pairs: Data, label_map: LabelMap | None, progress: survey.Progress = iter, tick: Callable[[], object] = lambda: None
) -> list[str]:
    """Survey all label maps; return lines of text: a table of their classes, and warnings.

    Raises UserError for label maps that cannot be learnt from.
    """
    lines, tallies = [], {}
    for use, split in ((advice.TRAIN, pairs.train), (advice.VALIDATE, pairs.val)):
        if split:
            surveyed = survey.look(split, progress, tick)
            judged = advice.judge(surveyed, label_map, pairs.names, use)
            if judged.error is not None:
                raise UserError(judged.error)
            tallies[f"to {use}"] = survey.tally(surveyed, label_map, len(pairs.names))
            lines += [f"warning: {line}" for line in judged.warnings]
    return [advice.table(tallies, pairs.names), *lines]


def unused_names(options: Options, used: Sequence[str]) -> str | None:
    """Return a warning where the data names another number of classes than --num-classes."""
    names = data.class_names(options.data)
    if names is None or options.num_classes is None or set(names) <= set(used):
        return None
    return f"warning: {options.data} names {len(names)} classes, --num-classes asks for {options.num_classes}"


def load(options: Options) -> Network | None:
    """Return the model of the starting checkpoint, None without one."""
    if options.checkpoint is None:
        return None
    try:
        return _load(options.checkpoint, options)
    except models.CheckpointError as error:
        raise UserError(str(error)) from error


def _load(checkpoint: str, options: Options) -> Network:
    """Return the checkpoint's model. A missing classifier or decoder gets as many classes as the data has."""
    try:
        return models.load(checkpoint, options.network, weights=options.weights)
    except models.Untrained:
        names = data.class_names(options.data)
        asked = options.num_classes or (len(names) if names is not None else None)
        return models.load(checkpoint, options.network, asked, options.weights)


def network(options: Options, loaded: Network | None, num_classes: int) -> Network:
    """Return the model to train: the loaded one, with a new classifier where the classes differ; or a new one. Tensors
    that the checkpoint lacks are those of a new model."""
    untrained = loaded.loaded.untrained if loaded is not None and loaded.loaded is not None else ()
    if loaded is not None and loaded.num_classes == num_classes and not untrained:
        return loaded
    with torch.random.fork_rng(devices=[]), _float32():
        torch.manual_seed(options.seed)
        model = models.NETWORKS[loaded.name if loaded else options.network or "rf_lw_mbv2"](num_classes)
        initialise(model)
    if loaded is not None:
        new = {*untrained} if loaded.num_classes == num_classes else {*untrained, *_head_names(model)}
        kept = {name: value for name, value in loaded.state_dict().items() if name not in new}
        model.load_state_dict(model.state_dict() | kept)
    return model


@contextmanager
def _float32() -> Iterator[None]:
    """Make new parameters float32, with the same values for a seed, whatever PyTorch's default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _head_names(model: Network) -> list[str]:
    return [name for name in model.state_dict() if name.startswith(f"{model.head}.")]


def initialise(model: Network) -> None:
    """Set random weights for training from scratch: the encoder's by He et al., since batch normalisation follows."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and not _in_decoder(model, name):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    head = model.get_submodule(model.head)
    nn.init.normal_(cast(Tensor, head.weight), std=0.01)  # so that the first probabilities are nearly equal
    nn.init.zeros_(cast(Tensor, head.bias))


def parameter_groups(model: Network, encoder_lr: float, decoder_lr: float) -> list[dict[str, Any]]:
    """Return the encoder's parameters and the decoder's, each with its rate under "base", for an optimiser.

    >>> groups = parameter_groups(models.rf_lw_mbv2(num_classes=3), 0.1, 1.0)
    >>> [sum(p.numel() for p in group["params"]) for group in groups], [group["base"] for group in groups]
    ([1812800, 1430275], [0.1, 1.0])
    """
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        groups[_in_decoder(model, name)].append(parameter)
    rates = {False: encoder_lr, True: decoder_lr}
    return [{"params": groups[part], "base": rates[part], "lr": rates[part]} for part in (False, True)]


def _in_decoder(model: Network, name: str) -> bool:
    """Return True if the name begins like one of the modules of the decoder's levels or of the head."""
    return name.startswith((model.head, *(string for string in _strings(model.levels))))


def _strings(nested: Sequence | None) -> Iterator[str]:
    """Yield every string in nested tuples."""
    if isinstance(nested, str):
        yield nested
    elif isinstance(nested, (tuple, list)):
        for inner in nested:
            yield from _strings(inner)


def check(options: Options) -> None:
    """Raise UserError for options that exclude each other, before anything is read or written."""
    label_map_of(options.map_labels)
    if options.batch % processes.count():
        raise UserError(f"--batch {options.batch} cannot be shared among {processes.count()} processes")
    if options.scales[0] > options.scales[1]:
        raise UserError(f"--scales: {options.scales[0]:g} is more than {options.scales[1]:g}")


def begin_training(model: nn.Module, freeze_bn: bool) -> None:
    """Set train mode; with freeze_bn the statistics of batch normalisation stay unchanged."""
    model.train()
    if freeze_bn:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def check_batch(model: Network, options: Options) -> None:
    """Raise UserError where a step would leave batch normalisation one value per channel, which has no variance.

    Several processes share their statistics, over at least two values.
    """
    if processes.count() > 1:
        return
    with torch.device("meta"):  # shapes without values
        shadow = models.NETWORKS[model.name](model.num_classes)
    begin_training(shadow, options.freeze_bn)
    try:
        with backends.use_backend("reference"), torch.no_grad():
            shadow(torch.empty(options.batch, 3, options.crop, options.crop, device="meta"))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"--batch {options.batch} with --crop {options.crop} leaves batch normalisation one value per channel to "
            f"train with: give --batch {options.batch + 1}, a larger --crop, or --freeze-bn"
        ) from error


def augmentation(options: Options) -> augment.Options:
    return augment.Options(options.crop, options.scales, options.flip)
