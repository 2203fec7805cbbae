"""How large the kernels' tiles are: a small table, looked up by device, kind of arithmetic and size of the problem.

The table is configs.json, written on a GPU by `python bench/gpu/tune.py`. Its kinds are "half" (bfloat16 and float16),
"tf32" and "ieee" (float32, multiplied as PyTorch's convolutions are told to). Of a list, the first row is taken whose
`pixels` the problem reaches. The rows of backward passes are guesses that compile without spills, in no search yet.
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
    """A tile has block_h x block_w pixels. It is multiplied `passes` times, for block_planes planes each, block_depth
    products at a time."""

    block_h: int
    block_w: int
    block_planes: int
    passes: int
    block_depth: int
    pool_planes: int  # pooled together
    pipeline: int  # blocks of products in flight
    warps: int
    programs: int  # per multiprocessor
    pixels: int = 0


@dataclass(frozen=True)
class Fusion:
    """A tile has block_pixels pixels and block_planes planes, multiplied block_depth products deep."""

    block_pixels: int
    block_planes: int
    block_depth: int
    pipeline: int  # blocks of products in flight
    tap_pipeline: int  # the same for inputs that are interpolated
    warps: int
    pixels: int = 0


@dataclass(frozen=True)
class UpsampleArgmax:
    """A tile has block_h x block_w labels. Classes are compared block_classes at a time, or as many as divide them."""

    block_h: int
    block_w: int
    block_classes: int
    warps: int
    pixels: int = 0


@dataclass(frozen=True)
class Tile:
    """Of what backward passes do besides products: block_h x block_w pixels and block_planes planes."""

    block_h: int
    block_w: int
    block_planes: int
    warps: int
    pixels: int = 0


@dataclass(frozen=True)
class Products:
    """Of backward passes. A tile of an input's gradient has block_pixels pixels and block_planes planes, one of a
    weight's gradient block_planes x block_planes, of at least `share` pixels; both are block_depth products deep."""

    block_pixels: int
    block_planes: int
    block_depth: int
    share: int
    pipeline: int  # blocks of products in flight
    warps: int
    pixels: int = 0


KINDS = {
    "crp": Crp,
    "fusion": Fusion,
    "upsample_argmax": UpsampleArgmax,
    "crp_backward": Tile,
    "fusion_backward": Tile,
    "products": Products,
}
Config = TypeVar("Config", Crp, Fusion, UpsampleArgmax, Tile, Products)


def device_key(device: torch.device) -> str:
    """The table's entry for a device: the highest compute capability in it that the device reaches."""
    if device.type != "cuda":
        return "interpreter"
    return key_for(torch.cuda.get_device_capability(device))


def key_for(capability: tuple[int, int]) -> str:
    # These have as little shared memory as the GPUs of capability 8.6, and not the tensor cores of those between.
    if capability[0] == 12 or torch.version.hip is not None:
        capability = (8, 6)
    number = 10 * capability[0] + capability[1]
    known = [int(key) for key in table() if key.isdigit()]
    return str(max([key for key in known if key <= number], default=min(known)))


def look_up(config: type[Config], name: str, device: str, kind: str, pixels: int) -> Config:
    for row in rows(config, name, device, kind):  # type: ignore[arg-type]
        if pixels >= row.pixels:
            return row
    raise LookupError(f"configs.json: {name} of {device} for {kind} has no row for {pixels} pixels")


@cache
def rows(config: type[Config], name: str, device: str, kind: str) -> tuple[Config, ...]:
    return tuple(config(**row) for row in table()[device][name][kind])


@cache
def table() -> dict[str, Any]:
    return json.loads(TABLE.read_text())


def kind_of(x: Tensor, precision: str) -> str:
    return precision if x.dtype == torch.float32 else "half"
