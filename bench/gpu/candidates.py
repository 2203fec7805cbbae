"""Configurations worth timing: tune.py begins with a grid of tiles and goes on from the best of them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from problems import DTYPES, Case, pixels

from lwrn_fast.kernels import configs
from lwrn_fast.profiling.cases import CrpCase, FusionCase, UpsampleArgmaxCase

Config = configs.Crp | configs.Fusion | configs.UpsampleArgmax

# Values of each field.
CHOICES: dict[str, dict[str, tuple[int, ...]]] = {
    "crp": {
        "block_h": (2, 4, 8, 16),
        "block_w": (4, 8, 16),
        "block_n": (32, 64, 128, 256),
        "passes": (1, 2, 4),
        "num_warps": (4, 8),
        "block_k": (16, 32, 64, 128),
        "pool_channels": (32, 64, 128, 256),
        "num_stages": (1, 2, 3, 4),
        "programs_per_sm": (1, 2),
    },
    "fusion": {
        "block_m": (16, 32, 64, 128, 256),
        "block_n": (32, 64, 128, 256),
        "num_warps": (4, 8),
        "block_k": (16, 32, 64, 128),
        "num_stages": (1, 2, 3, 4),
        "interp_num_stages": (1, 2, 3),
    },
    "upsample_argmax": {
        "block_h": (1, 2, 4, 8, 16),
        "block_w": (8, 16, 32, 64),
        "block_classes": (1, 2, 4, 8, 16, 32),
        "num_warps": (2, 4, 8),
    },
}
# The first grid runs over these; the other fields begin with the defaults.
GRID = {
    "crp": ("block_h", "block_w", "block_n", "passes", "num_warps"),
    "fusion": ("block_m", "block_n", "num_warps"),
    "upsample_argmax": ("block_h", "block_w", "block_classes", "num_warps"),
}
DEFAULTS = {"num_stages": 3, "interp_num_stages": 2, "programs_per_sm": 1}
BLOCK_K = {"half": 64, "tf32": 32, "ieee": 16}
# Items for a multiprocessor; smaller ones read the same values too often.
MAX_PER_MULTIPROCESSOR = 16


@dataclass(frozen=True)
class Gpu:
    """Limits of a configuration."""

    multiprocessors: int
    shared_memory: int  # bytes that a program may have


def grid(op: str, kind: str, cases: Sequence[Case], device: Gpu) -> list[Config]:
    """Return configurations of all sizes of tiles that suit all these cases."""
    names = GRID[op]
    rest = {name: value for name, value in DEFAULTS.items() if name in CHOICES[op]}
    if op != "upsample_argmax":
        rest["block_k"] = BLOCK_K[kind]
    grid: list[Config] = []
    for values in itertools.product(*(CHOICES[op][name] for name in names)):
        chosen = dict(zip(names, values, strict=True)) | rest
        if op == "crp":
            chosen["pool_channels"] = _pooled_together(chosen["block_w"], chosen["num_warps"], kind)
        grid.append(configs.CONFIG_CLASSES[op](**chosen))
    return pruned(grid, kind, cases, device)


def neighbours(config: Config, op: str, kind: str, cases: Sequence[Case], device: Gpu) -> list[Config]:
    """Return the configurations that differ in one field and suit all these cases."""
    others = [replace(config, **{name: value}) for name, values in CHOICES[op].items() for value in values]
    return pruned([other for other in others if other != config], kind, cases, device)


def pruned(configurations: Sequence[Config], kind: str, cases: Sequence[Case], device: Gpu) -> list[Config]:
    """Return those that fit and have items for a quarter of the multiprocessors, or a quarter of any one's maximum."""
    fitting = [config for config in configurations if all(fits(config, kind, case, device) for case in cases)]
    for case in cases:
        enough = min(device.multiprocessors, max((items(config, case) for config in fitting), default=0)) / 4
        fitting = [config for config in fitting if items(config, case) >= enough]
    return fitting


def items(config: Any, case: Case) -> int:
    """Return the number of pieces of work that can be done at the same time."""
    if isinstance(case, FusionCase):
        return -(-pixels(case) // config.block_m) * -(-case.out_channels // config.block_n)
    height, width = case.to if isinstance(case, UpsampleArgmaxCase) else (case.height, case.width)
    tiles = -(-height // config.block_h) * -(-width // config.block_w)
    return tiles * -(-case.channels // (config.block_n * config.passes)) if isinstance(case, CrpCase) else tiles


def fits(config: Any, kind: str, case: Case, device: Gpu) -> bool:
    """Tell if registers, shared memory and the number of items are within reason: a guess, the compiler knows."""
    threads = 32 * config.num_warps
    if isinstance(case, UpsampleArgmaxCase):
        labels = config.block_h * config.block_w
        loads = 4 * labels * config.block_classes / threads  # in flight, a register each
        return threads <= labels <= 8 * threads and loads <= 128 and config.block_classes < 2 * case.classes
    itemsize = DTYPES[kind].itemsize
    tile = config.block_m if isinstance(case, FusionCase) else config.block_h * config.block_w
    programs = 1
    if isinstance(case, CrpCase):
        programs = config.programs_per_sm
        if tile < 16 or config.block_n * config.passes > case.channels:
            return False
        if not 8 <= config.block_w * config.pool_channels * itemsize / threads <= 64:  # bytes of a row per thread
            return False
        if items(config, case) > MAX_PER_MULTIPROCESSOR * device.multiprocessors:
            return False
    sums = tile * config.block_n / threads
    min_sums, max_sums = (4, 64) if kind == "ieee" else (8, 128)
    out_channels = case.channels if isinstance(case, CrpCase) else case.out_channels
    if config.block_n > out_channels or not min_sums <= sums <= max_sums:
        return False
    shared = config.num_stages * (tile + config.block_n) * config.block_k * itemsize
    return shared <= device.shared_memory // programs


def described(config: Config) -> str:
    """Return the fields on one line, in their order."""
    return " ".join(f"{f.name}={getattr(config, f.name)}" for f in fields(config) if f.name != "pixels")


def _pooled_together(block_w: int, warps: int, kind: str) -> int:
    """Return the number of channels that gives each thread 32 bytes of a row."""
    channels = 32 * 32 * warps // (block_w * DTYPES[kind].itemsize)
    choices = CHOICES["crp"]["pool_channels"]
    return max(min(channels, choices[-1]), choices[0])
