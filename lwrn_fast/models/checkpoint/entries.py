"""All tensors of a checkpoint file as one flat list of names, wherever a training script has put them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .pickles import StandIn

# Nested containers that are searched.
MAX_DEPTH = 16
# Elements of a sparse tensor that is made dense; a file may claim any size. rf152 has 0.13e9 in all.
MAX_DENSE = 2**27
# Names that DataParallel, torch.compile, FSDP and activation checkpointing put anywhere among a model's names.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Entries without influence on a result, from batch normalisation, torch's averaged models and thop.
COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")


class Entry(NamedTuple):
    """One tensor of a file."""

    # The keys to its state dict, each followed by a point.
    location: str
    # Its name in the state dict, without wrappers.
    name: str
    tensor: Tensor

    @property
    def full(self) -> str:
        return self.location + self.name


def entries(content: Any) -> list[Entry]:
    """Return every named tensor in the file's order, dense, without attributes or gradient."""
    result: dict[str, Entry] = {}
    for location, name, tensor in _walk(content):
        plain = Entry(_unwrapped(location), _unwrapped(name), tensor)
        if plain.full in result:  # if two differ only in a wrapper, the second keeps it
            plain = Entry(location, name, tensor)
        result.setdefault(plain.full, plain)
    return list(result.values())


def is_counter(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in COUNTERS


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _walk(content: Any) -> Iterator[tuple[str, str, Tensor]]:
    """Walk containers and pickled modules from the outside in, each once, since they may hold one another."""
    pending: list[tuple[str, str, Any, int]] = [("", "", content, 0)]
    seen: set[int] = set()
    while pending:
        location, name, value, depth = pending.pop()
        if isinstance(value, Tensor):
            plain = _plain(value)
            if plain is not None and name:
                yield location, name, plain
            continue
        if id(value) in seen or depth > MAX_DEPTH:
            continue
        inner = _items(value)
        if inner:
            seen.add(id(value))
        for key, item in reversed(inner):
            if isinstance(item, Tensor):
                pending.append((location, f"{name}{key}", item, depth + 1))
            elif isinstance(value, StandIn):  # a child of a module: its name goes on
                pending.append((location, f"{name}{key}.", item, depth + 1))
            else:
                pending.append((f"{location}{name}{key}.", "", item, depth + 1))


def _items(value: Any) -> list[tuple[str, Any]]:
    """Return the items of a container by name; for a pickled nn.Module its parameters, buffers and children."""
    if isinstance(value, StandIn):
        state = value.state if isinstance(value.state, dict) else {}
        parts = (dict.get(state, part) for part in ("_parameters", "_buffers", "_modules"))
        return [item for part in parts if isinstance(part, dict) for item in _items(part)]
    if isinstance(value, dict):
        # dict.items, since a file may give an OrderedDict an attribute "items"
        return [(key if isinstance(key, str) else _index(key), item) for key, item in dict.items(value)]
    if isinstance(value, (list, tuple)):
        return [(str(index), item) for index, item in enumerate(value) if not isinstance(item, (int, float, str))]
    return []


def _index(key: Any) -> str:
    return str(key) if isinstance(key, int) else f"<{type(key).__name__}>"


def _plain(value: Tensor) -> Tensor | None:
    """Return the tensor without attributes that a file may have added; None for one without plain numbers."""
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
