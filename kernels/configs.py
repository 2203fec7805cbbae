"""Tile sizes and launch parameters of the kernels: a small table, looked up by device, precision and problem size.

The table is configs.json, written on a GPU by `python bench/gpu/tune.py`. A precision is "half" (bfloat16 and float16),
"tf32" or "ieee" (float32, multiplied as PyTorch's convolutions are told to). A list of rows is searched from its
beginning for the first whose `pixels` the problem reaches. The rows of backward passes are guesses that compile without
spills; no search has tuned them yet.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

TABLE = Path(__file__).with_name("configs.json")


@dataclass(frozen=True)
class Crp:
    """A tile has block_h x block_w pixels. It is multiplied in `passes` passes of block_n output channels each, with
    block_k input channels in a step."""

    block_h: int
    block_w: int
    block_n: int
    passes: int
    block_k: int
    pool_channels: int  # pooled in a step
    num_stages: int  # of the pipelined loop over input channels
    num_warps: int
    programs_per_sm: int
    pixels: int = 0


@dataclass(frozen=True)
class Fusion:
    """A tile has block_m pixels and block_n output channels, and is multiplied block_k input channels in a step."""

    block_m: int
    block_n: int
    block_k: int
    num_stages: int  # of the pipelined loop over the channels of an input
    interp_num_stages: int  # the same for inputs that are interpolated
    num_warps: int
    pixels: int = 0


@dataclass(frozen=True)
class UpsampleArgmax:
    """A tile has block_h x block_w labels. block_classes classes are compared in a step, or as many as divide them."""

    block_h: int
    block_w: int
    block_classes: int
    num_warps: int
    pixels: int = 0


@dataclass(frozen=True)
class Tile:
    """Tiles of block_h x block_w pixels and block_c channels, for kernels of backward passes without a product."""

    block_h: int
    block_w: int
    block_c: int
    num_warps: int
    pixels: int = 0


@dataclass(frozen=True)
class Products:
    """Matrix products of backward passes. A tile of an input's gradient has block_m pixels and block_n channels. One of
    a weight's gradient has block_n x block_n channels and sums at least split_pixels pixels. Both multiply block_k
    values in a step."""

    block_m: int
    block_n: int
    block_k: int
    split_pixels: int
    num_stages: int  # of the pipelined loop over the summed dimension
    num_warps: int
    pixels: int = 0


# The configuration class of each op in the table.
CONFIG_CLASSES = {
    "crp": Crp,
    "fusion": Fusion,
    "upsample_argmax": UpsampleArgmax,
    "crp_backward": Tile,
    "fusion_backward": Tile,
    "products": Products,
}
Config = TypeVar("Config", Crp, Fusion, UpsampleArgmax, Tile, Products)


def device_key(device: torch.device) -> str:
    """Return the table's key for a device: the highest compute capability in it that the device reaches."""
    if device.type != "cuda":
        return "interpreter"
    return key_for(torch.cuda.get_device_capability(device))


def key_for(capability: tuple[int, int]) -> str:
    """Return the table's key for a compute capability."""
    # Capability 12 has as little shared memory as 8.6, and lacks the tensor cores of those between.
    if capability[0] == 12 or torch.version.hip is not None:
        capability = (8, 6)
    number = 10 * capability[0] + capability[1]
    known = [int(key) for key in table() if key.isdigit()]
    return str(max([key for key in known if key <= number], default=min(known)))


def look_up(config_class: type[Config], op: str, key: str, precision: str, pixels: int) -> Config:
    """Return the first row of the op that a problem of so many pixels reaches. LookupError where there is none."""
    for row in rows(config_class, op, key, precision):  # type: ignore[arg-type]
        if pixels >= row.pixels:
            return row
    raise LookupError(f"configs.json: {op} of {key} for {precision} has no row for {pixels} pixels")


@cache
def rows(config_class: type[Config], op: str, key: str, precision: str) -> tuple[Config, ...]:
    """Return the rows of an op on a device of this key, those for the most pixels first."""
    return tuple(config_class(**row) for row in table()[key][op][precision])


@cache
def table() -> dict[str, Any]:
    """Return configs.json: its rows by device key, op and precision."""
    return json.loads(TABLE.read_text())


def precision_of(x: Tensor, input_precision: str) -> str:
    """Return the table's precision of a problem: input_precision ("tf32", "ieee") for float32, else "half"."""
    return input_precision if x.dtype == torch.float32 else "half"
