"""Checkpoints from anywhere: which network is it, how many classes, and if it does not fit, what exactly."""

import os
import pickle
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .networks import NETWORKS, Network

LEVELS = ("state_dict", "segmenter", "model", "model_state_dict", "net", "network")
"""Names under which training scripts keep the state dict, in the order they are looked for."""
COUNTER = "num_batches_tracked"
SHAPES = Path(__file__).parents[1] / "checkpoints" / "rf_lw_mbv2_shapes.safetensors"
"""Weights that come with the package: rf_lw_mbv2, trained on what `lwrn-fast generate` draws; the data sheet beside."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message is one line."""


def load(path: str | os.PathLike, network: str | None = None, num_classes: int | None = None) -> Network:
    """The network of a checkpoint with its weights, on the CPU, in float32 and in eval mode.

    path: a file of torch.save (read with weights_only=True) or of safetensors; the state dict on top or under
    "state_dict", "segmenter" or "model"; a prefix that all names share ("module.") is dropped.
    network, num_classes: what the checkpoint must hold; None takes what it holds.
    Raises CheckpointError with one line that says what does not fit.

    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "weights.pth.tar")
    >>> torch.save({"segmenter": NETWORKS["rf_lw_mbv2"](num_classes=7).state_dict()}, path)
    >>> load(path).name, load(path).num_classes
    ('rf_lw_mbv2', 7)
    """
    try:
        state = _without_prefix(_state_dict(_read(path)))
        return _build(state, network, num_classes)
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error.__cause__


def _read(path: str | os.PathLike) -> Any:
    """What the file holds. Nothing in it is run: only tensors and plain containers are let through."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}") from error
    if not start:
        raise CheckpointError("is empty")
    # safetensors: eight bytes of length, then a JSON object
    if os.fspath(path).endswith(".safetensors") or start[8:] == b"{":
        return _read_safetensors(path)
    if not start.startswith((b"PK", b"\x80")):  # the two formats of torch.save: an archive, and before it a pickle
        raise CheckpointError("is neither a PyTorch nor a safetensors checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of an odd file is in the message below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "is damaged, or holds Python objects besides tensors, which are not loaded from files for safety: "
            "save its state dict alone"
        ) from error
    except Exception as error:  # an untrusted file can fail in any way, and the caller needs the one reason
        raise CheckpointError(f"is damaged or not a checkpoint ({_first_line(error)})") from error


def _read_safetensors(path: str | os.PathLike) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError("is a safetensors file; pip install safetensors to read it") from error
    try:
        return load_file(path, device="cpu")
    except Exception as error:  # as above
        raise CheckpointError(f"is damaged or not a safetensors file ({_first_line(error)})") from error


def _state_dict(content: Any, depth: int = 4) -> dict[str, Tensor]:
    """The state dict in what a file holds, wherever a training script puts it."""
    if isinstance(content, Mapping) and depth:
        tensors = {name: value for name, value in content.items() if isinstance(name, str) and _is_tensor(value)}
        inner = [content[name] for name in LEVELS if isinstance(content.get(name), Mapping)]
        if not inner and not tensors:
            inner = [value for value in content.values() if isinstance(value, Mapping)]
        for candidate in inner:
            try:
                return _state_dict(candidate, depth - 1)
            except CheckpointError:
                continue
        if tensors:
            return tensors
    raise CheckpointError(f"holds no state dict, neither on top nor under {', '.join(LEVELS)}")


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_complex()


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the leading parts that all names share, such as "module." of a parallel model."""
    names = list(state)
    while names and all("." in name for name in names) and len({name.split(".", 1)[0] for name in names}) == 1:
        names = [name.split(".", 1)[1] for name in names]
    return dict(zip(names, state.values(), strict=True))


def _build(state: dict[str, Tensor], network: str | None, num_classes: int | None) -> Network:
    if network is not None and network not in NETWORKS:
        raise CheckpointError(f"network must be one of {', '.join(NETWORKS)}, got {network!r}")
    nearest = max(NETWORKS, key=lambda name: _matches(name, state))
    if _matches(nearest, state) == 0:
        raise CheckpointError(f"is not of a network known here ({', '.join(NETWORKS)}): {_few(list(state))}")
    wanted = network or nearest
    classes = _classes(wanted, state)
    if classes is not None and num_classes not in (None, classes):
        raise CheckpointError(f"has {classes} classes, {num_classes} were asked for")
    expected = _shapes(wanted, classes or num_classes or 21)
    problems = _problems(expected, state)
    if problems:
        what = f"does not fit {wanted}" if network else f"fits no network exactly; the nearest is {wanted}"
        if network and nearest != network:
            what += f" and is nearest to {nearest}"
        raise CheckpointError(f"{what}: {'; '.join(problems)}")
    # a checkpoint from before PyTorch 0.4.1 has no counters, and inference needs none
    counters = {name: torch.zeros(shape) for name, shape in expected.items() if name.endswith(COUNTER)}
    with torch.device("meta"):
        model = NETWORKS[wanted](num_classes=classes)
    model.to_empty(device="cpu").load_state_dict({**counters, **state})
    return model.eval()


@lru_cache(maxsize=32)
def _shapes(network: str, num_classes: int) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in NETWORKS[network](num_classes).state_dict().items()}


def _matches(network: str, state: dict[str, Tensor]) -> int:
    """How many entries of the state dict the network has under that name and in that shape."""
    return sum(
        name in state and tuple(state[name].shape) == shape
        for name, shape in _shapes(network, 1).items()
        if not name.endswith(COUNTER)
    )


def _classes(network: str, state: dict[str, Tensor]) -> int | None:
    """The classes the checkpoint has, None where it has no classifier or one that nothing can be read from."""
    weight = state.get(list(_shapes(network, 1))[-2])  # the classifier's weight and bias come last
    return weight.shape[0] if weight is not None and weight.dim() == 4 and weight.shape[0] > 0 else None


def _problems(expected: dict[str, tuple[int, ...]], state: dict[str, Tensor]) -> list[str]:
    missing = [name for name in expected if name not in state and not name.endswith(COUNTER)]
    unexpected = [name for name in state if name not in expected]
    reshaped = [
        f"{name} is {tuple(state[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    return [f"{len(names)} {kind} ({_few(names)})" for kind, names in kinds if names]


def _few(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
