"""A network and the names of a file: which network it is, under which prefix its entries lie, what is missing."""

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

WHOLE, HEADLESS, ENCODER = "whole", "headless", "encoder"
"""What a group can hold: all of a network, all but the classifier, or the encoder alone."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Group:
    """The entries of a file that have one network's names behind one prefix."""

    prefix: str
    own: dict[str, Entry] = field(default_factory=dict)
    """By the network's own names."""
    layout: int = 0

    @property
    def label(self) -> str:
        return self.prefix.rstrip(".")


@dataclass(frozen=True)
class Shapes:
    """A network's names and shapes, by what its modules are for."""

    all: dict[str, tuple[int, ...]]
    head: tuple[str, str]
    decoder: frozenset[str]
    """Names of the decoder, the classifier included."""

    @property
    def needed(self) -> list[str]:
        return [name for name in self.all if not is_counter(name)]

    def with_classes(self, classes: int) -> dict[str, tuple[int, ...]]:
        weight, bias = self.head
        return {**self.all, weight: (classes, *self.all[weight][1:]), bias: (classes,)}


@lru_cache
def shapes(network: str) -> Shapes:
    """The network's, for one class."""
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
    """Every string in tuples of tuples."""
    if isinstance(nested, tuple):
        return [string for inner in nested for string in _strings(inner)]
    return [nested] if isinstance(nested, str) else []


def classes(network: str, own: dict[str, Entry]) -> int | None:
    """The classes that a group has, None where it has no classifier or one that nothing can be read from."""
    entry = own.get(shapes(network).head[0])
    if entry is None or entry.tensor.dim() != 4 or entry.tensor.shape[0] == 0:
        return None
    return entry.tensor.shape[0]


def kind(network: str, group: Group) -> str | None:
    """What the group holds of the network, None where something is missing or of another shape."""
    of = shapes(network)
    expected = of.with_classes(classes(network, group.own) or 1)
    wrong = {name for name in of.needed if not _fits(group.own, name, expected[name])}
    if not wrong:
        return WHOLE
    if any(name in group.own for name in wrong):
        return None
    if wrong == set(of.head):
        return HEADLESS
    return ENCODER if wrong == {name for name in of.decoder if not is_counter(name)} else None


def _fits(own: dict[str, Entry], name: str, shape: tuple[int, ...]) -> bool:
    return name in own and tuple(own[name].tensor.shape) == shape


class Names:
    """The entries of a file with every way to cut a name in two."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.cuts = [(entry, _cuts(entry.full)) for entry in entries]

    def groups(self, network: str) -> list[Group]:
        """The groups for a network, those with most of its entries first. Entries of several groups are put together
        where no group has all: an encoder and a decoder that were saved apart."""
        of = shapes(network)
        best: list[Group] = []
        for index, layout in enumerate(layouts(network)):
            found = [group for group in self._split(of, layout, index) if score(network, group)]
            found.sort(key=lambda group: -score(network, group))
            if found and not any(kind(network, group) in (WHOLE, HEADLESS) for group in found):
                found = _joined(network, found)
            if found and (not best or score(network, found[0]) > score(network, best[0])):
                best = found
        return best

    def _split(self, of: Shapes, layout: dict[str, str], index: int) -> list[Group]:
        groups: dict[str, Group] = {}
        for entry, cuts in self.cuts:
            for prefix, name in cuts:
                own = layout.get(name, name)
                if own in of.all:
                    group = groups.setdefault(prefix, Group(prefix, {}, index))
                    group.own.setdefault(own, entry)
                    break  # the longest name counts: "conv1.weight" is the end of many
        for group in groups.values():
            # the encoders that have no expansion in their first block
            if index and EXPANSION + "0.weight" not in group.own and EXPANSION[:-2] + "1.0.weight" in group.own:
                group.own.update({name: Entry("", name, value) for name, value in identity().items()})
        return list(groups.values())

    def strangers(self, network: str, group: Group, others: Iterable[Group]) -> list[Entry]:
        """Entries of the same state dicts that neither this group nor the others have, nor count anything."""
        taken = {entry.full for each in (group, *others) for entry in each.own.values()}
        places = {entry.place for entry in group.own.values() if entry.full in taken}
        return [
            entry
            for entry in self.entries
            if entry.place in places and entry.full not in taken and not is_counter(entry.name)
        ]


def _cuts(name: str) -> list[tuple[str, str]]:
    """Prefix and rest at every point, the longest rest first."""
    starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
    return [(name[:start], name[start:]) for start in starts]


@lru_cache
def _needed(network: str) -> frozenset[str]:
    return frozenset(shapes(network).needed)


def score(network: str, group: Group) -> int:
    """How many entries the group has in the network's shape."""
    expected = shapes(network).with_classes(classes(network, group.own) or 1)
    needed = _needed(network)
    return sum(name in needed and _fits(group.own, name, expected[name]) for name in group.own)


def _joined(network: str, groups: list[Group]) -> list[Group]:
    """The groups with the first one completed by others that have whole modules it lacks, where that gives a whole."""
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
    return [joined, *groups] if kind(network, joined) in (WHOLE, HEADLESS) else groups


def inside(network: str, group: Group, strangers: Iterable[Entry], held: str) -> list[str]:
    """Names of strangers that lie within the network's modules or beside them in a row ("layer5" after "layer4"): a
    network with these is another one. For an encoder alone, only what lies within it counts."""
    of = shapes(network)
    own = [name for name in of.all if held != ENCODER or name not in of.decoder]
    tops = {name.split(".")[0] for name in own}
    rows = set() if held == ENCODER else {_row(top) for top in tops}
    blocks = {_block(entry.full.removeprefix(group.prefix)) for entry in group.own.values()} if group.layout else set()
    found = []
    for entry in strangers:
        if not entry.full.startswith(group.prefix):
            continue
        name = entry.full.removeprefix(group.prefix)
        top = name.split(".")[0]
        if (not group.layout and (top in tops or _row(top) in rows)) or _block(name) in blocks:
            found.append(name)
    return found


def _row(top: str) -> str:
    return re.split(r"\d", top)[0]


def _block(name: str) -> str:
    return ".".join(name.split(".")[:2])


def problems(network: str, state: dict[str, Tensor], head_classes: int) -> list[str]:
    """What a state dict with these names lacks for the network, has beyond it, and has in another shape."""
    expected = shapes(network).with_classes(head_classes)
    missing = [name for name in expected if name not in state and not is_counter(name)]
    unexpected = [name for name in state if name not in expected]
    reshaped = [
        f"{name} is {tuple(state[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    return [f"{len(names)} {which} ({few(names)})" for which, names in kinds if names]


def unusable(group: Group) -> str | None:
    """Why the numbers of a group are none to compute with, for example a quantised network's."""
    for name, entry in group.own.items():
        if entry.tensor.dtype not in FLOATS and not is_counter(name):
            dtype = str(entry.tensor.dtype).removeprefix("torch.")
            return f"{name} is {dtype}, not floating point: a quantised network's weights are not loaded"
    return None
