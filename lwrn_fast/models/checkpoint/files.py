"""Read weights from every file format in use with PyTorch; nothing in a file is run."""

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import CheckpointError, few, first_line
from .pickles import BLOCKED, NEWEST_PROTOCOL, Uses, stand_ins, uses

# End of the name of the file that lists each weight's shard, written by transformers and accelerate.
INDEX = ".index.json"
# First bytes of torch.save's format from before the archive.
LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
# Names of the weights in a folder of transformers.
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", f"model.safetensors{INDEX}", f"pytorch_model.bin{INDEX}")


def read(path: str | os.PathLike) -> Any:
    """Return the content of a file, tensors on the CPU, other objects as stand-ins. Raises CheckpointError."""
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}{_in_folder(path)}") from error
    if not start:
        raise CheckpointError("is empty")
    # safetensors: eight bytes of length, then a JSON object
    if os.fspath(path).endswith(".safetensors") or start[8:9] == b"{":
        return _read_safetensors(path)
    if os.fspath(path).endswith(INDEX):
        return _read_shards(Path(path))
    if start.startswith(b"PK"):
        return _read_archive(path)
    if start.startswith(b"\x80"):
        if LEGACY_MAGIC not in start[:32]:
            raise CheckpointError(
                "is a plain pickle and no file of torch.save, so nothing in it is loaded for safety: torch.save its "
                "arrays as tensors"
            )
        return _read_torch(path, _uses_of_legacy)
    if start[257:262] == b"ustar":
        raise CheckpointError(
            "is a tar archive, which PyTorch does not read for safety: unpack it, or load it with the PyTorch of its "
            "time and torch.save it anew"
        )
    raise CheckpointError("is neither a PyTorch nor a safetensors checkpoint")


def _in_folder(path: str | os.PathLike) -> str:
    """Return a hint for a folder that has weights in it, for the end of an error."""
    there = [name for name in FOLDER_FILES if os.path.isfile(os.path.join(path, name))]
    return f"; its weights are in {there[0]}" if there else ""


def _read_archive(path: str | os.PathLike) -> Any:
    """Read a zip archive of torch.save or NumPy; raise CheckpointError for any other."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"is damaged or not a checkpoint ({first_line(error)})") from error
    members = {name.split("/", 1)[-1] for name in names}
    if "constants.pkl" in members:
        raise CheckpointError(
            "is a TorchScript archive, a program with its weights: torch.save the state_dict() of torch.jit.load(...)"
        )
    if "data.pkl" in members:
        return _read_torch(path, _uses_of_archive)
    if names and all(name.endswith(".npy") for name in names):
        return _read_npz(path)
    if "archive_format" in members or "archive_version" in members:
        raise CheckpointError("is a package of torch.export, a program with its weights: torch.save its state_dict")
    raise CheckpointError(f"is a zip archive without a checkpoint in it ({few(sorted(names))})")


def _read_torch(path: str | os.PathLike, scan: Callable[[str | os.PathLike], Uses]) -> Any:
    """Read a file of torch.save. scan: lists its objects other than tensors, for a file that torch refuses."""
    try:
        return _load(path)
    except pickle.UnpicklingError as error:
        refused = error
    except Exception as error:  # an untrusted file can fail in any way, and the caller needs the one reason
        raise CheckpointError(f"is damaged or not a checkpoint ({first_line(error)})") from error
    try:
        objects = scan(path)
    except Exception as error:  # as above
        raise CheckpointError(f"is damaged or not a checkpoint ({first_line(error)})") from refused
    if objects.protocol > NEWEST_PROTOCOL:
        raise CheckpointError(
            f"was written with pickle protocol {objects.protocol}, of which tensors alone cannot be read: torch.save "
            "it without pickle_protocol"
        ) from refused
    blocked = [name for name in sorted(objects.names) if name.split(".")[0] in BLOCKED]
    if blocked:
        raise CheckpointError(
            f"holds Python objects besides tensors that are not loaded from files for safety ({few(blocked)}): "
            "save its state dict alone"
        ) from refused
    try:
        with stand_ins(objects):
            return _load(path)
    except Exception as error:  # as above
        raise CheckpointError(
            "is damaged, or holds Python objects besides tensors, which are not loaded from files for safety "
            f"({few(sorted(objects.names - TENSORS)) or _reason(error)}): save its state dict alone"
        ) from error


# Names that every checkpoint may hold; a message leaves them out.
TENSORS = {"collections.OrderedDict", "torch.FloatStorage", "torch.LongStorage", "torch._utils._rebuild_tensor_v2"}


def _load(path: str | os.PathLike) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error has torch's opinion of an odd file
        # strings of Python 2, frequent in the published files of 2018, may hold bytes that are not UTF-8
        return torch.load(path, map_location="cpu", weights_only=True, encoding="latin1")


def _reason(error: BaseException) -> str:
    """Return the message of torch's unpickler without the advice around it."""
    text = str(error)
    return first_line(ValueError(text.split("WeightsUnpickler error:")[-1]))


def _uses_of_archive(path: str | os.PathLike) -> Uses:
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.split("/", 1)[-1] == "data.pkl")
        with archive.open(name) as file:
            return uses(file)


def _uses_of_legacy(path: str | os.PathLike) -> Uses:
    """Scan the format before the archive: consecutive pickles, the fourth of which is the content."""
    with open(path, "rb") as file:
        return [uses(file) for _ in range(4)][-1]


def _read_npz(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except Exception as error:  # as above
        raise CheckpointError(f"is damaged or holds what is no array ({first_line(error)})") from error


def _read_safetensors(path: str | os.PathLike) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError("is a safetensors file; pip install safetensors to read it") from error
    try:
        return load_file(path, device="cpu")
    except Exception as error:  # as above
        raise CheckpointError(f"is damaged or not a safetensors file ({first_line(error)})") from error


def _read_shards(path: Path) -> dict[str, Any]:
    """Read all weights of an index's shards, which lie in its folder."""
    try:
        shards = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
        if not all(isinstance(name, str) and name == os.path.basename(name) for name in shards):
            raise ValueError("its shards must lie beside it")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"is not an index of shards ({first_line(error)})") from error
    weights: dict[str, Any] = {}
    for name in shards:
        with _named(name):
            content = read(path.with_name(name))
            if not isinstance(content, dict):
                raise CheckpointError("is not a shard of weights")
            weights |= content
    return weights


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the name of a shard before the error."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"its shard {name} {error}") from error
