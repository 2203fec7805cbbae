"""Options that several commands share, each declared once, and how arguments become a dataclass of options."""

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from .. import backends, models
from .numbers import natural, positive, whole

T = TypeVar("T")

MAP = "classes of the values or colours of label maps: 255:1 or 0:255,1-150:0-149 or ff0000:1,000000:0 or cityscapes"

# Arguments of `add_argument` by the option's name; a command overrides those that differ.
SHARED: dict[str, dict[str, Any]] = {
    "--backend": {"choices": backends.BACKENDS, "help": "default: LWRN_FAST_BACKEND, or auto"},
    "--checkpoint": {"metavar": "FILE", "help": "weights, .pth.tar or .safetensors; without: untrained"},
    "--device": {"choices": ("cpu", "cuda"), "help": "default: a GPU where there is one"},
    "--dtype": {"choices": ("f32", "bf16", "f16"), "default": "f32"},
    "--map-labels": {"metavar": "MAP", "help": MAP},
    "--model": {
        "dest": "network",
        "choices": models.NETWORKS,
        "help": "network; default: the checkpoint's, or rf_lw_mbv2",
    },
    "--num-classes": {"type": whole, "metavar": "N", "help": "default: the checkpoint's, or 21"},
    "--scale": {"type": positive, "default": 1.0, "metavar": "S"},
    "--seed": {"type": natural, "default": 0, "metavar": "S", "help": "default: %(default)s"},
    "--size": {"nargs": 2, "type": whole, "metavar": ("H", "W"), "help": "of the input; default: 512 512"},
    "--threads": {"type": whole, "metavar": "N", "help": "default: PyTorch's"},
    "--weights": {"metavar": "WHICH", "help": "of several in it: ema, model or their key; default: ema"},
}


def adder(parser: argparse.ArgumentParser) -> Callable[..., argparse.Action]:
    """Return `add_argument` of this parser, which knows the shared options by their name.

    >>> adder(parser := argparse.ArgumentParser())("--size", default=(512, 512)).nargs
    2
    """
    return partial(_add, parser)


def add_input_size(parser: argparse.ArgumentParser, of: str) -> None:
    """Add --size and --scale, of which one may be given. of: what the network's input is scaled from."""
    add = adder(parser.add_mutually_exclusive_group())  # type: ignore[arg-type]  # a group adds as a parser does
    add("--size", help="of the network's input")
    add("--scale", help=f"of the network's input to the {of}")


def fill(options: Callable[..., T], arguments: argparse.Namespace, **more: Any) -> T:
    """Make a dataclass of options from the arguments that have its fields' names, and from `more`.

    Lists become tuples.
    """
    given = {**vars(arguments), **more}
    names = [field.name for field in dataclasses.fields(options) if field.name in given]  # type: ignore[arg-type]
    values = (given[name] for name in names)
    return options(**{n: tuple(v) if isinstance(v, list) else v for n, v in zip(names, values, strict=True)})


def _add(parser: argparse._ActionsContainer, name: str, **own: Any) -> argparse.Action:
    return parser.add_argument(name, **{**SHARED.get(name, {}), **own})
