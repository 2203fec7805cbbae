"""The tensors in what a file holds, wherever a training script has put them, as one flat list of names."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .pickles import StandIn

MAX_DEPTH = 16
"""Containers inside one another that are looked into."""
# Numbers of a sparse tensor that is made dense; a file may claim any size. rf152 has 0.13e9 in all.
MAX_DENSE = 2**27
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Names that DataParallel, torch.compile, FSDP and activation checkpointing put anywhere among a network's names."""
COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
"""Entries that play no part in a result: of batch normalisation, torch's averaged models and thop."""


class Entry(NamedTuple):
    """One tensor of a file."""

    place: str
    """The keys under which its state dict lies, each followed by a point."""
    name: str
    """Its name in the state dict, without wrappers."""
    tensor: Tensor

    @property
    def full(self) -> str:
        return self.place + self.name


def entries(content: Any) -> list[Entry]:
    """Every named tensor, in the order of the file; sparse ones are made dense, none has an attribute or a gradient."""
    found: dict[str, Entry] = {}
    for place, name, tensor in _walk(content):
        plain = Entry(_unwrapped(place), _unwrapped(name), tensor)
        if plain.full in found:  # two that differ in a wrapper alone: the second keeps it
            plain = Entry(place, name, tensor)
        found.setdefault(plain.full, plain)
    return list(found.values())


def is_counter(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in COUNTERS


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _walk(content: Any) -> Iterator[tuple[str, str, Tensor]]:
    """Containers and pickled modules from the outside in, each once, for they may hold one another."""
    pending: list[tuple[str, str, Any, int]] = [("", "", content, 0)]
    seen: set[int] = set()
    while pending:
        place, name, value, depth = pending.pop()
        if isinstance(value, Tensor):
            plain = _plain(value)
            if plain is not None and name:
                yield place, name, plain
            continue
        if id(value) in seen or depth > MAX_DEPTH:
            continue
        inner = _items(value)
        if inner:
            seen.add(id(value))
        for key, item in reversed(inner):
            if isinstance(item, Tensor):
                pending.append((place, f"{name}{key}", item, depth + 1))
            elif isinstance(value, StandIn):  # a child of a module: its name goes on
                pending.append((place, f"{name}{key}.", item, depth + 1))
            else:
                pending.append((f"{place}{name}{key}.", "", item, depth + 1))


def _items(value: Any) -> list[tuple[str, Any]]:
    """What a container has in it, by name. A pickled nn.Module has its parameters, buffers and children."""
    if isinstance(value, StandIn):
        state = value.state if isinstance(value.state, dict) else {}
        parts = (dict.get(state, part) for part in ("_parameters", "_buffers", "_modules"))
        return [item for part in parts if isinstance(part, dict) for item in _items(part)]
    if isinstance(value, dict):
        # dict's own, for a file may give an OrderedDict an attribute of that name
        return [(key if isinstance(key, str) else _index(key), item) for key, item in dict.items(value)]
    if isinstance(value, (list, tuple)):
        return [(str(index), item) for index, item in enumerate(value) if not isinstance(item, (int, float, str))]
    return []


def _index(key: Any) -> str:
    return str(key) if isinstance(key, int) else f"<{type(key).__name__}>"


def _plain(value: Tensor) -> Tensor | None:
    """The tensor without what a file may have hung on it; None for one that has no plain numbers."""
    try:
        tensor = Tensor.detach(value)
        if type(tensor) is not Tensor:
            tensor = tensor.as_subclass(Tensor)
        if tensor.is_nested or tensor.is_meta:
            return None
        if tensor.layout == torch.strided:
            return tensor
        return tensor.to_dense() if tensor.numel() <= MAX_DENSE else None
    except (RuntimeError, TypeError, NotImplementedError, MemoryError):
        return None
