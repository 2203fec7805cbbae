"""Match the names of a file to a model: find the model, the prefix of its entries, and what is missing."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from ..networks import NETWORKS
from .aliases import EXPANSION, identity, layouts
from .entries import Entry, is_counter
from .errors import few

# Extents of a group: all of a model, all but the classifier, or the encoder only.
WHOLE, HEADLESS, ENCODER = "whole", "headless", "encoder"
# Dtypes of weights that are loaded.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Group:
    """The entries of a file with the names of one model after one prefix."""

    prefix: str
    # Entries by the model's own names.
    own: dict[str, Entry] = field(default_factory=dict)
    layout: int = 0

    @property
    def label(self) -> str:
        return self.prefix.rstrip(".")


@dataclass(frozen=True)
class Shapes:
    """The names and shapes of a model, and which are of its head and decoder."""

    all: dict[str, tuple[int, ...]]
    head: tuple[str, str]
    # Names in the decoder, with the classifier.
    decoder: frozenset[str]

    @property
    def needed(self) -> list[str]:
        return [name for name in self.all if not is_counter(name)]

    def with_classes(self, classes: int) -> dict[str, tuple[int, ...]]:
        weight, bias = self.head
        return {**self.all, weight: (classes, *self.all[weight][1:]), bias: (classes,)}


@lru_cache
def shapes(network: str) -> Shapes:
    """Return the names and shapes of a model with one class."""
    with torch.device("meta"):
        model = NETWORKS[network](1)
    names = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    decoder = tuple(f"{part}." for part in (model.head, *_strings(model.levels)))
    return Shapes(
        names,
        (f"{model.head}.weight", f"{model.head}.bias"),
        frozenset(name for name in names if name.startswith(decoder)),
    )


def _strings(nested: object) -> list[str]:
    """Return every string in nested tuples."""
    if isinstance(nested, tuple):
        return [string for inner in nested for string in _strings(inner)]
    return [nested] if isinstance(nested, str) else []


def classes(network: str, own: dict[str, Entry]) -> int | None:
    """Return the number of classes of a group, None where it has no classifier or an unreadable one."""
    entry = own.get(shapes(network).head[0])
    if entry is None or entry.tensor.dim() != 4 or entry.tensor.shape[0] == 0:
        return None
    return entry.tensor.shape[0]


def extent(network: str, group: Group) -> str | None:
    """Return WHOLE, HEADLESS or ENCODER, None where something else is missing or of another shape."""
    model = shapes(network)
    expected = model.with_classes(classes(network, group.own) or 1)
    misfits = {name for name in model.needed if not _fits(group.own, name, expected[name])}
    if not misfits:
        return WHOLE
    if any(name in group.own for name in misfits):
        return None
    if misfits == set(model.head):
        return HEADLESS
    return ENCODER if misfits == {name for name in model.decoder if not is_counter(name)} else None


def _fits(own: dict[str, Entry], name: str, shape: tuple[int, ...]) -> bool:
    return name in own and tuple(own[name].tensor.shape) == shape


class Names:
    """The entries of a file with every split of their names into prefix and rest."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.cuts = [(entry, _cuts(entry.full)) for entry in entries]

    def groups(self, network: str) -> list[Group]:
        """Return the groups for a model, those with more of its entries first. Where no group has all, groups are
        joined: an encoder and a decoder that were saved separately."""
        model = shapes(network)
        best: list[Group] = []
        for index, layout in enumerate(layouts(network)):
            groups = [group for group in self._split(model, layout, index) if score(network, group)]
            groups.sort(key=lambda group: -score(network, group))
            if groups and not any(extent(network, group) in (WHOLE, HEADLESS) for group in groups):
                groups = _joined(network, groups)
            if groups and (not best or score(network, groups[0]) > score(network, best[0])):
                best = groups
        return best

    def _split(self, model: Shapes, layout: dict[str, str], index: int) -> list[Group]:
        groups: dict[str, Group] = {}
        for entry, cuts in self.cuts:
            for prefix, name in cuts:
                own = layout.get(name, name)
                if own in model.all:
                    group = groups.setdefault(prefix, Group(prefix, {}, index))
                    group.own.setdefault(own, entry)
                    break  # the longest name counts: many end in "conv1.weight"
        for group in groups.values():
            # encoders without an expansion in their first block
            if index and EXPANSION + "0.weight" not in group.own and EXPANSION[:-2] + "1.0.weight" in group.own:
                group.own.update({name: Entry("", name, value) for name, value in identity().items()})
        return list(groups.values())

    def strangers(self, network: str, group: Group, others: Iterable[Group]) -> list[Entry]:
        """Return the entries of the same state dicts that are in no group and are no counters."""
        taken = {entry.full for each in (group, *others) for entry in each.own.values()}
        locations = {entry.location for entry in group.own.values() if entry.full in taken}
        return [
            entry
            for entry in self.entries
            if entry.location in locations and entry.full not in taken and not is_counter(entry.name)
        ]


def _cuts(name: str) -> list[tuple[str, str]]:
    """Return prefix and rest at every point, the longest rest first."""
    starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
    return [(name[:start], name[start:]) for start in starts]


@lru_cache
def _needed(network: str) -> frozenset[str]:
    return frozenset(shapes(network).needed)


def score(network: str, group: Group) -> int:
    """Return how many entries of the group have the model's shape."""
    expected = shapes(network).with_classes(classes(network, group.own) or 1)
    needed = _needed(network)
    return sum(name in needed and _fits(group.own, name, expected[name]) for name in group.own)


def _joined(network: str, groups: list[Group]) -> list[Group]:
    """Return the groups, the first one completed by others with whole modules it lacks, where that gives a whole."""
    own = dict(groups[0].own)
    tops = {name.split(".")[0] for name in own}
    prefixes = [groups[0].prefix]
    for group in groups[1:]:
        theirs = {name.split(".")[0] for name in group.own}
        if not theirs & tops and group.layout == groups[0].layout:
            own |= group.own
            tops |= theirs
            prefixes.append(group.prefix)
    joined = Group(" and ".join(prefix.rstrip(".") for prefix in prefixes), own, groups[0].layout)
    return [joined, *groups] if extent(network, joined) in (WHOLE, HEADLESS) else groups


def conflicts(network: str, group: Group, strangers: Iterable[Entry], extent: str) -> list[str]:
    """Return names of strangers that lie in the model's modules or continue their numbers ("layer5" after "layer4"): a
    model with these is another one. For an encoder only, names in the encoder count."""
    model = shapes(network)
    own = [name for name in model.all if extent != ENCODER or name not in model.decoder]
    tops = {name.split(".")[0] for name in own}
    rows = set() if extent == ENCODER else {_row(top) for top in tops}
    blocks = {_block(entry.full.removeprefix(group.prefix)) for entry in group.own.values()} if group.layout else set()
    names = []
    for entry in strangers:
        if not entry.full.startswith(group.prefix):
            continue
        name = entry.full.removeprefix(group.prefix)
        top = name.split(".")[0]
        if (not group.layout and (top in tops or _row(top) in rows)) or _block(name) in blocks:
            names.append(name)
    return names


def _row(top: str) -> str:
    return re.split(r"\d", top)[0]


def _block(name: str) -> str:
    return ".".join(name.split(".")[:2])


def problems(network: str, state: dict[str, Tensor], head_classes: int) -> list[str]:
    """Return what a state dict lacks for the model, has beyond it, and has in another shape."""
    expected = shapes(network).with_classes(head_classes)
    missing = [name for name in expected if name not in state and not is_counter(name)]
    unexpected = [name for name in state if name not in expected]
    reshaped = [
        f"{name} is {tuple(state[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    lists = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    return [f"{len(names)} {problem} ({few(names)})" for problem, names in lists if names]


def unusable(group: Group) -> str | None:
    """Return why the tensors of a group cannot be used, such as a quantised model's; None where they can."""
    for name, entry in group.own.items():
        if entry.tensor.dtype not in FLOATS and not is_counter(name):
            dtype = str(entry.tensor.dtype).removeprefix("torch.")
            return f"{name} is {dtype}, not floating point: a quantised network's weights are not loaded"
    return None
