"""Checkpoints from anywhere: which network is it, how many classes, and if it does not fit, what exactly."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...log import warn_once
from ..networks import NETWORKS, Network
from . import fitting
from .entries import Entry, entries, is_counter
from .errors import CheckpointError, Untrained, few
from .files import read
from .fitting import ENCODER, HEADLESS, WHOLE, Group, Names
from .pickles import StandIn
from .weights import whole

__all__ = ["SHAPES", "CheckpointError", "Loaded", "Untrained", "load"]

LEVELS = ("state_dict", "segmenter", "model", "model_state_dict", "net", "network")
"""Names under which training scripts keep the state dict, in the order of preference."""
SHAPES = Path(__file__).parents[2] / "checkpoints" / "rf_lw_mbv2_shapes.safetensors"
"""Weights that come with the package: rf_lw_mbv2, trained on what `lwrn-fast generate` draws; the data sheet beside."""
AVERAGED = re.compile(r"(^|[._])(ema|swa|avg|average|averaged|averaging|shadow|teacher)($|[._\d])", re.IGNORECASE)
"""How a moving average of the weights is called."""

ADDED = {
    HEADLESS: "all else is there: num_classes (--num-classes) adds an untrained classifier",
    ENCODER: "its encoder is there: num_classes (--num-classes) adds an untrained decoder",
}
"""How to load what is not whole."""


@dataclass(frozen=True)
class Loaded:
    """What `load` took from a file, as `network.loaded`.

    path: the file. weights: the keys and prefix the weights had, "" on top. averaged: True for a moving average.
    ignored: names of tensors beside them that are not the network's. untrained: names of the network's that the file
    does not have, whose numbers are random.
    """

    path: str
    weights: str
    averaged: bool
    ignored: tuple[str, ...]
    untrained: tuple[str, ...]


def load(
    path: str | os.PathLike, network: str | None = None, num_classes: int | None = None, weights: str | None = None
) -> Network:
    """The network of a checkpoint with its weights, on the CPU, in float32 and in eval mode.

    path: a file of torch.save (read with weights_only=True; objects in it that are no tensors are left out, and no code
    of theirs runs), of safetensors, an index of shards, or .npz. The state dict may lie anywhere in it, behind any
    prefix. docs/models.md has a table of what training scripts write.
    network, num_classes: what the checkpoint must hold; None takes what it holds. A checkpoint without a classifier, or
    with an encoder alone, needs num_classes: what it lacks is random, which is said and is in `.loaded.untrained`.
    weights: of several sets of weights which: "ema" for the moving average, "model" for the others, or the key they
    have; None takes the average where there is one. If there are several, it is said which is taken.
    Raises CheckpointError with one line that says what does not fit. What was taken is in the result's `.loaded`.

    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "weights.pth.tar")
    >>> torch.save({"segmenter": NETWORKS["rf_lw_mbv2"](num_classes=7).state_dict()}, path)
    >>> load(path).name, load(path).num_classes
    ('rf_lw_mbv2', 7)
    """
    if network is not None and network not in NETWORKS:
        raise CheckpointError(f"{os.fspath(path)}: network must be one of {', '.join(NETWORKS)}, got {network!r}")
    try:
        content = read(path)
        return _Search(os.fspath(path), content, weights).build(network, num_classes)
    except CheckpointError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error.__cause__


class _Search:
    """The weights in the content of one file."""

    def __init__(self, path: str, content: Any, weights: str | None) -> None:
        self.path, self.weights = path, weights
        self.names = Names(whole(entries(content)))
        self.swapped = _is_swapped(content)
        if not self.names.entries:
            kept = f"a {content.name} and " if isinstance(content, StandIn) else ""
            raise CheckpointError(f"holds {kept}no state dict, neither on top nor under {', '.join(LEVELS)}")

    def build(self, network: str | None, num_classes: int | None) -> Network:
        found = {name: self.names.groups(name) for name in NETWORKS}
        nearest = max(found, key=lambda name: fitting.score(name, found[name][0]) if found[name] else 0)
        if not found[nearest]:
            names = few(_without_prefix([entry.full for entry in self.names.entries]))
            raise CheckpointError(f"is not of a network known here ({', '.join(NETWORKS)}): {names}")
        wanted = network or nearest
        held = {group.prefix: fitting.kind(wanted, group) for group in found[wanted]}
        fit = next((kind for kind in (WHOLE, HEADLESS, ENCODER) if kind in held.values()), None)
        if fit is not None:
            fitting_groups = [each for each in found[wanted] if held[each.prefix] == fit]
            group, others = self._choose(wanted, fitting_groups, found[wanted])
            strangers = self.names.strangers(wanted, group, others)
            if not fitting.inside(wanted, group, strangers, fit):
                if fit != WHOLE and num_classes is None:
                    raise Untrained(f"{self._misfit(network, nearest, found, None)}; {ADDED[fit]}")
                return self._fill(wanted, group, strangers, fit, num_classes)
        raise CheckpointError(self._misfit(network, nearest, found, num_classes))

    def _choose(self, network: str, groups: list[Group], rest: list[Group]) -> tuple[Group, list[Group]]:
        """The weights to take, and the others; it is said which, where they differ."""
        completed = [self._completed(network, each, groups[0]) for each in rest if each not in groups]
        groups = [*groups, *(each for each in completed if each is not None)]
        order = sorted(groups, key=lambda group: (not self._averaged(group), _preference(group.label)))
        chosen = order if self.weights is None else [group for group in order if self._is_asked_for(group)]
        if not chosen:
            there = ", ".join(repr(group.label) for group in order)
            raise CheckpointError(f"has no weights {self.weights!r}, but {there}")
        taken = chosen[0]
        others = [group for group in order if group is not taken]
        if self.weights is None and any(not _equal(taken, other) for other in others):
            average = " (the moving average)" if self._averaged(taken) else ""
            left = ", ".join(repr(group.label) for group in others)
            warn_once(
                f"{self.path}: has several weights; those of {taken.label!r}{average} are taken, and weights= "
                f"(--weights) takes others: {left}"
            )
        return taken, others

    def _completed(self, network: str, group: Group, by: Group) -> Group | None:
        """An average of the parameters alone, with the statistics of batch normalisation that it lacks."""
        if not self._averaged(group) or self._averaged(by):
            return None
        lacking = [name for name in fitting.shapes(network).all if name not in group.own and not is_counter(name)]
        if any(name.rsplit(".", 1)[-1] not in ("running_mean", "running_var") for name in lacking):
            return None
        full = Group(group.prefix, {**by.own, **group.own}, group.layout)
        return full if fitting.kind(network, full) == fitting.kind(network, by) else None

    def _averaged(self, group: Group) -> bool:
        if self.swapped and group.label.split(".")[0] in ("state_dict", *self.swapped):
            return group.label.split(".")[0] == "state_dict"
        counter = any(entry.full == f"{group.prefix}n_averaged" for entry in self.names.entries)
        return counter or AVERAGED.search(group.label) is not None

    def _is_asked_for(self, group: Group) -> bool:
        if self.weights in ("ema", "model") and self._averaged(group) == (self.weights == "ema"):
            return True
        return f".{self.weights}." in f".{group.label}." and self.weights != "model"

    def _fill(
        self, network: str, group: Group, strangers: list[Entry], held: str, num_classes: int | None
    ) -> Network:
        """The network with the group's weights; what it lacks is as in a new one."""
        reason = fitting.unusable(group) or _adapter(strangers)
        if reason is not None:
            raise CheckpointError(reason)
        classes = fitting.classes(network, group.own) if held == WHOLE else None
        if classes is not None and num_classes not in (None, classes):
            raise CheckpointError(f"has {classes} classes, {num_classes} were asked for")
        if classes is None and num_classes is not None:
            classes = num_classes
            if classes < 1:
                raise CheckpointError(f"num_classes must be at least 1, got {classes}")
        state = {name: entry.tensor for name, entry in group.own.items()}
        expected = fitting.shapes(network).all
        # a checkpoint from before PyTorch 0.4.1 has no counters, and inference needs none
        counters = {name: state.pop(name, None) for name in expected if is_counter(name)}
        counters = {name: _counter(value) for name, value in counters.items()}
        with torch.device("cpu" if held != WHOLE else "meta"):
            model = NETWORKS[network](num_classes=classes)
        untrained = tuple(name for name in fitting.shapes(network).needed if name not in state)
        model = model.to_empty(device="cpu").float() if held == WHOLE else model.float()
        model.load_state_dict({**model.state_dict(), **counters, **state})
        averaged = self._averaged(group)
        model.loaded = Loaded(self.path, group.label, averaged, tuple(entry.full for entry in strangers), untrained)
        self._say(model, strangers, held)
        return model.eval()

    def _say(self, model: Network, strangers: list[Entry], held: str) -> None:
        loaded = model.loaded
        assert loaded is not None
        if held != WHOLE:
            part = "classifier" if held == HEADLESS else "decoder"
            warn_once(
                f"{self.path}: has no {part} of {model.name}, so that is untrained: labels mean nothing before training"
            )
        named = [entry.full for entry in strangers if entry.tensor.dim() > 0]
        if named:
            what = f"{len(named)} entries are not {model.name}'s and are left out ({few(named)})"
            warn_once(f"{self.path}: {what}")
        odd = [name for name, value in model.state_dict().items() if not torch.isfinite(value.sum())]
        if odd:
            what = f"{len(odd)} entries hold NaN or infinity ({few(odd)}): labels mean nothing"
            warn_once(f"{self.path}: {what}")

    def _misfit(
        self, network: str | None, nearest: str, found: dict[str, list[Group]], num_classes: int | None
    ) -> str:
        """The one line about what does not fit."""
        wanted = network or nearest
        state = self._state(found[nearest][0], nearest)
        entry = {name: Entry("", name, tensor) for name, tensor in state.items()}
        classes = fitting.classes(wanted, entry) or num_classes or 21
        what = f"does not fit {wanted}" if network else f"fits no network exactly; the nearest is {wanted}"
        if network and nearest != network:
            what += f" and is nearest to {nearest}"
        return f"{what}: {'; '.join(fitting.problems(wanted, state, classes))}"

    def _state(self, group: Group, network: str) -> dict[str, torch.Tensor]:
        """The state dict around a group, by own names where they are known."""
        state = {name: entry.tensor for name, entry in group.own.items()}
        for entry in self.names.strangers(network, group, []):
            state.setdefault(entry.full.removeprefix(group.prefix), entry.tensor)
        return state


def _counter(value: torch.Tensor | None) -> torch.Tensor:
    if value is None or value.numel() != 1:
        return torch.zeros((), dtype=torch.int64, device="cpu")
    return value.reshape(()).to(torch.int64)


def _adapter(strangers: list[Entry]) -> str | None:
    """Why weights with a low-rank adapter beside them are not the trained ones."""
    names = [entry.name for entry in strangers if "lora_" in entry.name]
    return f"holds adapters beside the weights ({few(names)}): merge them before saving" if names else None


def _equal(one: Group, other: Group) -> bool:
    """Whether two groups hold the same numbers; only the first tensors are compared, which training changes too."""
    pairs = [(entry.tensor, other.own[name].tensor) for name, entry in one.own.items() if name in other.own]
    return all(a is b or (a.shape == b.shape and torch.equal(a, b)) for a, b in pairs)


def _preference(label: str) -> int:
    """The rank of the first key among LEVELS."""
    first = label.split(".")[0]
    return LEVELS.index(first) if first in LEVELS else len(LEVELS) - (first == "")


def _is_swapped(content: Any) -> tuple[str, ...]:
    """Keys of the weights as trained, in files whose "state_dict" is the moving average: mmengine's and Lightning's."""
    if isinstance(content, dict):
        if dict.__contains__(content, "message_hub") and dict.__contains__(content, "ema_state_dict"):
            return ("ema_state_dict",)
        if dict.__contains__(content, "current_model_state"):
            return ("current_model_state",)
    return ()


def _without_prefix(names: list[str]) -> list[str]:
    """Without the leading parts that all names share."""
    while names and all("." in name for name in names) and len({name.split(".", 1)[0] for name in names}) == 1:
        names = [name.split(".", 1)[1] for name in names]
    return names
