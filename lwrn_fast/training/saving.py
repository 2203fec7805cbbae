"""Save the files of a run; each is written under another name and renamed, so that none is ever partial."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..errors import UserError
from ..io import atomic, images
from ..models.networks import Network

# The file that a run is resumed from.
STATE = "state.pt"


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Write a file with `save`, and give it this name when it is complete and on the disk. Raises UserError.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> write(path, lambda unfinished: unfinished.write_text("whole"))
    >>> path.read_text()
    'whole'
    """
    try:
        atomic.write(path, save)
    except Exception as error:  # torch.save and safetensors have errors of their own
        raise UserError(f"{path}: cannot be written ({images.reason(error)})") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as `write`."""
    write(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def export(path: Path, model: Network, about: Mapping[str, Any], half: bool = False) -> None:
    """Write the weights as safetensors, which `models.load` reads, with `about` in the header.

    half: convolutions, nearly all weights, in float16, which is half the size.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if half:
        state = {name: value.half() if value.dim() == 4 else value for name, value in state.items()}
    header = {"network": model.name, **{name: str(value) for name, value in about.items()}}
    write(path, lambda unfinished: save_file(state, unfinished, header))


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Save tensors, numbers, strings and containers of them."""
    write(folder / STATE, lambda unfinished: torch.save(dict(state), unfinished))


def load_state(folder: Path) -> dict[str, Any] | None:
    """Load the result of `save_state`, None without one; no code in the file is run. Raises UserError."""
    path = folder / STATE
    if not path.is_file():
        return None
    with resuming(folder):
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not isinstance(state.get("about"), dict):
            raise TypeError("holds no state of a run")
        return state


@contextmanager
def resuming(folder: Path) -> Iterator[None]:
    """Turn any exception into a UserError that names the state."""
    try:
        yield
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(f"{folder / STATE}: cannot be resumed from ({images.reason(error)[:200]})") from error
