"""Load checkpoints of any training script: find the model, its classes and weights, and name each misfit."""

import os
import re
from pathlib import Path
from typing import Any

import torch

from ...log import warn_once
from ..loaded import Loaded
from ..networks import NETWORKS, Network
from . import fitting
from .entries import Entry, entries, is_counter
from .errors import CheckpointError, Untrained, few
from .files import read
from .fitting import ENCODER, HEADLESS, WHOLE, Group, Names
from .pickles import StandIn
from .weights import whole

__all__ = ["SHAPES", "CheckpointError", "Loaded", "Untrained", "load"]

# Names under which training scripts keep the state dict, in the order of preference.
LEVELS = ("state_dict", "segmenter", "model", "model_state_dict", "net", "network")
# Weights that come with the package: rf_lw_mbv2, trained on images of `lwrn-fast generate`; with their data sheet.
SHAPES = Path(__file__).parents[2] / "checkpoints" / "rf_lw_mbv2_shapes.safetensors"
# Names of a moving average of the weights.
AVERAGED = re.compile(r"(^|[._])(ema|swa|avg|average|averaged|averaging|shadow|teacher)($|[._\d])", re.IGNORECASE)

# How to load a checkpoint that is not whole, by what it holds.
ADDED = {
    HEADLESS: "all else is there: num_classes (--num-classes) adds an untrained classifier",
    ENCODER: "its encoder is there: num_classes (--num-classes) adds an untrained decoder",
}


def load(
    path: str | os.PathLike, network: str | None = None, num_classes: int | None = None, weights: str | None = None
) -> Network:
    """Return the model of a checkpoint with its weights, on the CPU, in float32 and in eval mode.

    path: a file of torch.save (read with weights_only=True; objects in it that are no tensors are left out, and no code
    of theirs runs), of safetensors, an index of shards, or .npz. The state dict may lie anywhere in it, after any
    prefix. docs/models.md has a table of the layouts that training scripts write.
    network, num_classes: the name and classes that the checkpoint must have; None accepts any. A checkpoint without a
    classifier, or with an encoder only, needs num_classes: the missing tensors are random, which a warning says, and
    are listed in `.loaded.untrained`.
    weights: the set of weights to take from several: "ema" for the moving average, "model" for the others, or their
    key; None takes the average where there is one. A warning says which of several is taken.
    Raises CheckpointError with one line that names the misfit. The result's `.loaded` records what was taken.

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
        self.swapped = _swapped(content)
        if not self.names.entries:
            kept = f"a {content.name} and " if isinstance(content, StandIn) else ""
            raise CheckpointError(f"holds {kept}no state dict, neither on top nor under {', '.join(LEVELS)}")

    def build(self, network: str | None, num_classes: int | None) -> Network:
        groups = {name: self.names.groups(name) for name in NETWORKS}
        nearest = max(groups, key=lambda name: fitting.score(name, groups[name][0]) if groups[name] else 0)
        if not groups[nearest]:
            names = few(_without_prefix([entry.full for entry in self.names.entries]))
            raise CheckpointError(f"is not of a network known here ({', '.join(NETWORKS)}): {names}")
        wanted = network or nearest
        extents = {group.prefix: fitting.extent(wanted, group) for group in groups[wanted]}
        fit = next((extent for extent in (WHOLE, HEADLESS, ENCODER) if extent in extents.values()), None)
        if fit is not None:
            fitting_groups = [each for each in groups[wanted] if extents[each.prefix] == fit]
            group, others = self._choose(wanted, fitting_groups, groups[wanted])
            strangers = self.names.strangers(wanted, group, others)
            if not fitting.conflicts(wanted, group, strangers, fit):
                if fit != WHOLE and num_classes is None:
                    raise Untrained(f"{self._misfit(network, nearest, groups, None)}; {ADDED[fit]}")
                return self._fill(wanted, group, strangers, fit, num_classes)
        raise CheckpointError(self._misfit(network, nearest, groups, num_classes))

    def _choose(self, network: str, groups: list[Group], rest: list[Group]) -> tuple[Group, list[Group]]:
        """Return the weights to take, and the others; warn where they differ."""
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
        """Return an average of the parameters only, with the statistics of batch normalisation that it lacks."""
        if not self._averaged(group) or self._averaged(by):
            return None
        lacking = [name for name in fitting.shapes(network).all if name not in group.own and not is_counter(name)]
        if any(name.rsplit(".", 1)[-1] not in ("running_mean", "running_var") for name in lacking):
            return None
        full = Group(group.prefix, {**by.own, **group.own}, group.layout)
        return full if fitting.extent(network, full) == fitting.extent(network, by) else None

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
        self, network: str, group: Group, strangers: list[Entry], extent: str, num_classes: int | None
    ) -> Network:
        """Return the model with the group's weights; missing tensors are those of a new model."""
        reason = fitting.unusable(group) or _adapter(strangers)
        if reason is not None:
            raise CheckpointError(reason)
        classes = fitting.classes(network, group.own) if extent == WHOLE else None
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
        with torch.device("cpu" if extent != WHOLE else "meta"):
            model = NETWORKS[network](num_classes=classes)
        untrained = tuple(name for name in fitting.shapes(network).needed if name not in state)
        model = model.to_empty(device="cpu").float() if extent == WHOLE else model.float()
        model.load_state_dict({**model.state_dict(), **counters, **state})
        averaged = self._averaged(group)
        model.loaded = Loaded(self.path, group.label, averaged, tuple(entry.full for entry in strangers), untrained)
        self._warn(model, strangers, extent)
        return model.eval()

    def _warn(self, model: Network, strangers: list[Entry], extent: str) -> None:
        """Warn of missing and foreign tensors, and of NaN and infinity."""
        loaded = model.loaded
        assert loaded is not None
        if extent != WHOLE:
            part = "classifier" if extent == HEADLESS else "decoder"
            warn_once(
                f"{self.path}: has no {part} of {model.name}, so that is untrained: labels mean nothing before training"
            )
        named = [entry.full for entry in strangers if entry.tensor.dim() > 0]
        if named:
            warn_once(f"{self.path}: {len(named)} entries are not {model.name}'s and are left out ({few(named)})")
        odd = [name for name, value in model.state_dict().items() if not torch.isfinite(value.sum())]
        if odd:
            warn_once(f"{self.path}: {len(odd)} entries hold NaN or infinity ({few(odd)}): labels mean nothing")

    def _misfit(
        self, network: str | None, nearest: str, groups: dict[str, list[Group]], num_classes: int | None
    ) -> str:
        """Return one line that names what does not fit."""
        wanted = network or nearest
        state = self._state(groups[nearest][0], nearest)
        entry = {name: Entry("", name, tensor) for name, tensor in state.items()}
        classes = fitting.classes(wanted, entry) or num_classes or 21
        line = f"does not fit {wanted}" if network else f"fits no network exactly; the nearest is {wanted}"
        if network and nearest != network:
            line += f" and is nearest to {nearest}"
        return f"{line}: {'; '.join(fitting.problems(wanted, state, classes))}"

    def _state(self, group: Group, network: str) -> dict[str, torch.Tensor]:
        """Return the state dict around a group, under the model's names where they are known."""
        state = {name: entry.tensor for name, entry in group.own.items()}
        for entry in self.names.strangers(network, group, []):
            state.setdefault(entry.full.removeprefix(group.prefix), entry.tensor)
        return state


def _counter(value: torch.Tensor | None) -> torch.Tensor:
    if value is None or value.numel() != 1:
        return torch.zeros((), dtype=torch.int64, device="cpu")
    return value.reshape(()).to(torch.int64)


def _adapter(strangers: list[Entry]) -> str | None:
    """Return the reason why weights with a separate low-rank adapter are not the trained ones, None without one."""
    names = [entry.name for entry in strangers if "lora_" in entry.name]
    return f"holds adapters beside the weights ({few(names)}): merge them before saving" if names else None


def _equal(one: Group, other: Group) -> bool:
    """Return True if two groups hold the same numbers in the tensors that both have."""
    pairs = [(entry.tensor, other.own[name].tensor) for name, entry in one.own.items() if name in other.own]
    return all(a is b or (a.shape == b.shape and torch.equal(a, b)) for a, b in pairs)


def _preference(label: str) -> int:
    """Return the rank of the first key among LEVELS."""
    first = label.split(".")[0]
    return LEVELS.index(first) if first in LEVELS else len(LEVELS) - (first == "")


def _swapped(content: Any) -> tuple[str, ...]:
    """Return keys of the trained weights in files whose "state_dict" is the moving average (mmengine, Lightning)."""
    if isinstance(content, dict):
        if dict.__contains__(content, "message_hub") and dict.__contains__(content, "ema_state_dict"):
            return ("ema_state_dict",)
        if dict.__contains__(content, "current_model_state"):
            return ("current_model_state",)
    return ()


def _without_prefix(names: list[str]) -> list[str]:
    """Remove the leading parts that all names share."""
    while names and all("." in name for name in names) and len({name.split(".", 1)[0] for name in names}) == 1:
        names = [name.split(".", 1)[1] for name in names]
    return names
