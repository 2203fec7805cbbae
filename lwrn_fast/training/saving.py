"""What a run leaves on disk, each file written beside its place and moved there, so that none is ever half there."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..errors import UserError
from ..io import atomic, images
from ..models.networks import Network

STATE = "state.pt"
"""Where a run can be resumed from."""


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file and give it this name when it is complete and on the disk. Raises UserError.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> write(path, lambda beside: beside.write_text("whole"))
    >>> path.read_text()
    'whole'
    """
    try:
        atomic.write(path, save)
    except Exception as error:  # torch.save and safetensors have errors of their own
        raise UserError(f"{path}: cannot be written ({images.reason(error)})") from error


def write_text(path: Path, text: str) -> None:
    """A text file in UTF-8, as `write`."""
    write(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def export(path: Path, model: Network, about: Mapping[str, Any], half: bool = False) -> None:
    """The weights as safetensors, which `models.load` reads; what `about` says goes into its header.

    half: those of convolutions, nearly all, in float16, which is half the size.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if half:
        state = {name: value.half() if value.dim() == 4 else value for name, value in state.items()}
    header = {"network": model.name, **{name: str(value) for name, value in about.items()}}
    write(path, lambda beside: save_file(state, beside, header))


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Tensors, numbers, strings and containers of them."""
    write(folder / STATE, lambda beside: torch.save(dict(state), beside))


def load_state(folder: Path) -> dict[str, Any] | None:
    """What `save_state` saved, None where nothing is; no code in the file is run. Raises UserError."""
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
    """Within it, whatever fails is a UserError that names the state."""
    try:
        yield
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(f"{folder / STATE}: cannot be resumed from ({images.reason(error)[:200]})") from error
