"""What a run begins with: the options, the classes, the network, its parameters in two groups."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import backends, models
from ..errors import UserError
from ..inference.segment import MOST_CLASSES
from ..models.networks import Network
from . import advice, augment, data, processes, survey
from .label_map import LabelMap, parse


@dataclass(frozen=True)
class Options:
    """What to train on, and how. The defaults are for a network that starts from a checkpoint.

    batch: images of a step, over all processes. crop: pixels of a side. warmup: steps in which the rates rise.
    clip: the largest norm of all gradients together, 0 for any. save_every: steps between states to resume from.
    half: export weights in float16. num_classes: 1 is one logit, above 0 for class 1, below for class 0.
    map_labels: the classes of values or colours in label maps, as `label_map.parse` reads it. weights: of several in
    the checkpoint which, as for `models.load`.
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
        """Those that a resumed run must have in common with its beginning, in plain types."""
        free = ("data", "out", "val", "workers", "device", "backend", "save_every", "half", "tensorboard", "resume")
        found = {name: value for name, value in asdict(self).items() if name not in free}
        if self.weights is None:
            del found["weights"]  # older runs do not have it
        return found


@dataclass(frozen=True)
class Data:
    """The pairs to train on, those to validate with, which may be none, the classes' names, and the network's logits.

    logits: as many as classes, or one for two classes.
    """

    train: list[data.Pair]
    val: list[data.Pair]
    names: list[str]
    logits: int


def find_data(options: Options, held: int | None) -> Data:
    """What the options name. held: how many classes the starting checkpoint has, if there is one."""
    label_map = label_map_of(options.map_labels)
    train = data.find(options.data, "train", label_map)
    val = []
    if options.val is not None or data.has_split(options.data, "val"):
        val = data.find(options.val or options.data, "val", label_map)
    if len(train) < options.batch:
        raise UserError(f"{options.data}: has {len(train)} images to train on, fewer than a batch of {options.batch}")
    return Data(train, val, *classes(options.data, options.num_classes, held))


def classes(folder: Path, asked: int | None, held: int | None) -> tuple[list[str], int]:
    """The names of the classes, and the number of logits: asked for, else as the data names, else of the checkpoint.

    One logit is for two classes.
    """
    names = data.class_names(folder)
    number = asked or (len(names) if names is not None else held)
    if number is None:
        raise UserError(f"{folder}: has no {data.CLASSES_FILE} that says which classes there are; give --num-classes")
    if number >= MOST_CLASSES:
        raise UserError(f"--num-classes must be 1 to {MOST_CLASSES - 1}, got {number}")
    count = max(2, number)
    if names is not None and len(names) == 1 and count == 2:
        names = ["background", *names]
    return names if names is not None and len(names) == count else [str(i) for i in range(count)], number


def label_map_of(text: str | None) -> LabelMap | None:
    """The map that --map-labels says. Raises UserError."""
    return None if text is None else parse(text)


def look(
    pairs: Data, label_map: LabelMap | None, progress: survey.Progress = iter, tick: Callable[[], object] = lambda: None
) -> list[str]:
    """Look through all label maps; lines for people: a table of their classes, and what may be wrong.

    Raises UserError where nothing can be learnt from them.
    """
    lines, tallies = [], {}
    for use, split in ((advice.TRAIN, pairs.train), (advice.VALIDATE, pairs.val)):
        if split:
            seen = survey.look(split, progress, tick)
            judged = advice.judge(seen, label_map, pairs.names, use)
            if judged.error is not None:
                raise UserError(judged.error)
            tallies[f"to {use}"] = survey.tally(seen, label_map, len(pairs.names))
            lines += [f"warning: {line}" for line in judged.warnings]
    return [advice.table(tallies, pairs.names), *lines]


def unused_names(options: Options, used: Sequence[str]) -> str | None:
    """A line where the data names another number of classes than are asked for."""
    names = data.class_names(options.data)
    if names is None or options.num_classes is None or set(names) <= set(used):
        return None
    return f"warning: {options.data} names {len(names)} classes, --num-classes asks for {options.num_classes}"


def load(options: Options) -> Network | None:
    """The network of the starting checkpoint, None where there is none to start from."""
    if options.checkpoint is None:
        return None
    try:
        return _load(options.checkpoint, options)
    except models.CheckpointError as error:
        raise UserError(str(error)) from error


def _load(checkpoint: str, options: Options) -> Network:
    """The checkpoint's network. What it lacks, a classifier or the decoder, gets as many classes as the data has."""
    try:
        return models.load(checkpoint, options.network, weights=options.weights)
    except models.Untrained:
        names = data.class_names(options.data)
        asked = options.num_classes or (len(names) if names is not None else None)
        return models.load(checkpoint, options.network, asked, options.weights)


def network(options: Options, loaded: Network | None, num_classes: int) -> Network:
    """The network to train: the loaded one, with a new classifier where the classes are others; or a new one. What the
    checkpoint lacks is as in a new one."""
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
    """New parameters are float32, and the seed draws the same for them, whatever dtype is PyTorch's default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _head_names(model: Network) -> list[str]:
    return [name for name in model.state_dict() if name.startswith(f"{model.head}.")]


def initialise(model: Network) -> None:
    """Random weights for a network that starts from nothing: the encoder's as batch normalisation wants them."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and not _in_decoder(model, name):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    head = model.get_submodule(model.head)
    nn.init.normal_(cast(Tensor, head.weight), std=0.01)  # so that the first probabilities are alike
    nn.init.zeros_(cast(Tensor, head.bias))


def parameter_groups(model: Network, encoder_lr: float, decoder_lr: float) -> list[dict[str, Any]]:
    """The encoder's parameters and the decoder's, each with its rate under "base", for an optimiser.

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
    """Whether a module or parameter of this name is the decoder's, by how the names of its levels' modules begin."""
    return name.startswith((model.head, *(string for string in _strings(model.levels))))


def _strings(nested: Sequence | None) -> Iterator[str]:
    """Every string in tuples of tuples."""
    if isinstance(nested, str):
        yield nested
    elif isinstance(nested, (tuple, list)):
        for inner in nested:
            yield from _strings(inner)


def check(options: Options) -> None:
    """UserError for options that cannot go together, before anything is read or written."""
    label_map_of(options.map_labels)
    if options.batch % processes.count():
        raise UserError(f"--batch {options.batch} cannot be shared among {processes.count()} processes")
    if options.scales[0] > options.scales[1]:
        raise UserError(f"--scales: {options.scales[0]:g} is more than {options.scales[1]:g}")


def begin_training(model: nn.Module, freeze_bn: bool) -> None:
    """Train mode, but for the batch normalisations whose statistics stay as they are."""
    model.train()
    if freeze_bn:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def check_batch(model: Network, options: Options) -> None:
    """UserError where a step would leave batch normalisation one value per channel, which has no variance.

    Several processes take the statistics of all of them together, at least two values.
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
