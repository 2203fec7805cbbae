"""Chained residual pooling in one launch: t_0 = x, t_i = W_i * maxpool5x5(t_{i-1}) + b_i, result x + sum t_i.

A program draws items (schedule.py) until none is left: it waits for the tiles around its own in the stage before, pools
its tile into a panel of its own, which stays in the caches, and multiplies the panel by the weights. Stages before the
last are kept in memory, rounded as PyTorch rounds them; the last adds them all up in float32 and rounds once.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import MOST_STAGES, configs, schedule
from .launch import (
    OPTIONS,
    Launch,
    cdiv,
    channels_last,
    empty_channels_last,
    multiprocessors,
    no_larger_than,
    planned,
    precision,
    workspace,
)
from .numerics import comparable, float32, inline, load, rounded

_locate = inline(schedule.locate)
_neighbour = inline(schedule.neighbour)
_neighbours = inline(schedule.neighbours)
_counter = inline(schedule.counter)
_TICKETS = tl.constexpr(schedule.TICKETS)
_FINISHED = tl.constexpr(schedule.FINISHED)


@inline
def _draw(workspace):
    """The next ticket."""
    return tl.atomic_add(workspace + _TICKETS, 1, sem="relaxed", scope="gpu")


@inline
def _await(counter, arrivals, readers):
    """Returns when all that an item reads has arrived. The last of its readers leaves the counter at zero."""
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < arrivals:
        pass
    if tl.atomic_add(counter, 1, sem="relaxed", scope="gpu") == arrivals + readers - 1:
        tl.atomic_xchg(counter, 0, sem="relaxed", scope="gpu")
    tl.debug_barrier()  # no thread reads before the one that waited


@inline
def _arrive(workspace, stage, image, tile, block, batch, tiles, blocks, tiles_y, tiles_x):
    """Counts a finished item at all that read it; every thread has written its part."""
    index = tl.arange(0, 16)
    reader, inside = _neighbour(tile, index, tiles_y, tiles_x)
    counter = _counter(stage + 1, image, reader, block, batch, tiles, blocks)
    tl.atomic_add(workspace + counter, 1, mask=inside, sem="release", scope="gpu")


@inline
def _leave(workspace):
    """The last program leaves the workspace as it was found."""
    programs = tl.num_programs(0)
    if tl.atomic_add(workspace + _FINISHED, 1, sem="acq_rel", scope="gpu") == programs - 1:
        tl.store(workspace + _TICKETS, 0)
        tl.store(workspace + _FINISHED, 0)


@inline
def _largest(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@inline
def _row_maximum(image, y, height, values, c0, c1, c2, c3, c4, inside, MASKED: tl.constexpr):
    """The largest of the window's five columns, in row y of an image whose rows have `values` values."""
    row = image + tl.minimum(tl.maximum(y, 0), height - 1).to(tl.int64) * values
    outer = _largest(comparable(load(row + c0, inside, MASKED)), comparable(load(row + c4, inside, MASKED)))
    inner = _largest(comparable(load(row + c1, inside, MASKED)), comparable(load(row + c3, inside, MASKED)))
    return _largest(_largest(outer, inner), comparable(load(row + c2, inside, MASKED)))


@inline
def _pool(
    image,
    panel,
    y0,
    x0,
    height,
    width,
    first_plane,
    PLANES: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    POOL_PLANES: tl.constexpr,
):
    """Write a pooled tile to the panel: DEPTH planes of each pixel, from first_plane on, zeros for those beyond."""
    MASKED: tl.constexpr = PLANES % DEPTH != 0  # the last item, or the last block of products, is not full
    column = x0 + tl.arange(0, BLOCK_W)
    for first in tl.range(0, DEPTH, POOL_PLANES, num_stages=1):
        channels = first + tl.arange(0, POOL_PLANES)
        planes = (first_plane + channels)[None, :]
        inside = planes < PLANES
        # The window's columns. What lies outside repeats the border, which is in every window that reaches out.
        c0 = (tl.minimum(tl.maximum(column - 2, 0), width - 1) * PLANES)[:, None] + planes
        c1 = (tl.minimum(tl.maximum(column - 1, 0), width - 1) * PLANES)[:, None] + planes
        c2 = (tl.minimum(column, width - 1) * PLANES)[:, None] + planes
        c3 = (tl.minimum(column + 1, width - 1) * PLANES)[:, None] + planes
        c4 = (tl.minimum(column + 2, width - 1) * PLANES)[:, None] + planes
        to = panel + (tl.arange(0, BLOCK_W) * DEPTH)[:, None] + channels[None, :]
        values = width * PLANES
        # The maxima of each row. Two rows at a time: their loads, which no store comes between, are in flight together.
        r0 = _row_maximum(image, y0 - 2, height, values, c0, c1, c2, c3, c4, inside, MASKED)
        r1 = _row_maximum(image, y0 - 1, height, values, c0, c1, c2, c3, c4, inside, MASKED)
        r2 = _row_maximum(image, y0, height, values, c0, c1, c2, c3, c4, inside, MASKED)
        r3 = _row_maximum(image, y0 + 1, height, values, c0, c1, c2, c3, c4, inside, MASKED)
        for i in tl.range(0, BLOCK_H, 2, num_stages=1):
            r4 = _row_maximum(image, y0 + i + 2, height, values, c0, c1, c2, c3, c4, inside, MASKED)
            r5 = _row_maximum(image, y0 + i + 3, height, values, c0, c1, c2, c3, c4, inside, MASKED)
            shared = _largest(_largest(r1, r2), _largest(r3, r4))
            tl.store(to + i * (BLOCK_W * DEPTH), rounded(_largest(r0, shared), panel.dtype.element_ty))
            tl.store(to + (i + 1) * (BLOCK_W * DEPTH), rounded(_largest(shared, r5), panel.dtype.element_ty))
            r0 = r2
            r1 = r3
            r2 = r4
            r3 = r5


@inline
def _of_stage(stage, p0, p1, p2, p3, p4, p5, p6, p7, STAGES: tl.constexpr):
    """The weights or biases of a stage, of those of all stages."""
    chosen = p0
    if STAGES > 1:
        if stage == 1:
            chosen = p1
    if STAGES > 2:
        if stage == 2:
            chosen = p2
    if STAGES > 3:
        if stage == 3:
            chosen = p3
    if STAGES > 4:
        if stage == 4:
            chosen = p4
    if STAGES > 5:
        if stage == 5:
            chosen = p5
    if STAGES > 6:
        if stage == 6:
            chosen = p6
    if STAGES > 7:
        if stage == 7:
            chosen = p7
    return chosen


@inline
def _multiply(
    panel,
    weight,
    planes,
    TILE: tl.constexpr,
    PLANES: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_PLANES: tl.constexpr,
    PASSES: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    PIPELINE: tl.constexpr,
):
    """The panel times the weights of these planes, (TILE, planes) in float32."""
    pixels = tl.arange(0, TILE)
    sums = tl.zeros([TILE, BLOCK_PLANES], dtype=tl.float32)
    for first in tl.range(0, DEPTH, BLOCK_DEPTH, num_stages=PIPELINE):
        channels = first + tl.arange(0, BLOCK_DEPTH)
        pooled = tl.load(panel + (pixels * DEPTH)[:, None] + channels[None, :])
        places = weight + (planes * PLANES)[None, :] + channels[:, None]
        if PLANES % (PASSES * BLOCK_PLANES) == 0 and PLANES % BLOCK_DEPTH == 0:  # every item is full
            factors = tl.load(places)
        else:
            factors = tl.load(places, mask=(planes < PLANES)[None, :] & (channels < PLANES)[:, None], other=0.0)
        sums = tl.dot(comparable(pooled), comparable(factors), sums, input_precision=PRECISION)
    return sums


@triton.jit
def _crp(
    x,
    w0,
    w1,
    w2,
    w3,
    w4,
    w5,
    w6,
    w7,
    b0,
    b1,
    b2,
    b3,
    b4,
    b5,
    b6,
    b7,
    out,
    kept,
    panels,
    workspace,
    batch,
    height,
    width,
    group,
    tiles_y,
    tiles_x,
    STAGES: tl.constexpr,
    PLANES: tl.constexpr,
    DEPTH: tl.constexpr,
    DEPTHWISE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_PLANES: tl.constexpr,
    PASSES: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    POOL_PLANES: tl.constexpr,
    PIPELINE: tl.constexpr,
):
    """x, out: (batch, height, width, PLANES). w0, ...: (PLANES, PLANES), or (PLANES,) if DEPTHWISE. b0, ...: (PLANES,)
    or None. kept: (STAGES - 1, *x.shape). panels: (programs, BLOCK_H * BLOCK_W, DEPTH), where DEPTH is PLANES
    rounded up to whole blocks, or those of an item, PASSES * BLOCK_PLANES, if DEPTHWISE."""
    TILE: tl.constexpr = BLOCK_H * BLOCK_W
    BLOCKS: tl.constexpr = (PLANES + PASSES * BLOCK_PLANES - 1) // (PASSES * BLOCK_PLANES)
    # Dense: every block of planes reads all planes, so arrivals are counted once per tile, for BLOCKS readers.
    COUNTED: tl.constexpr = BLOCKS if DEPTHWISE else 1
    READERS: tl.constexpr = 1 if DEPTHWISE else BLOCKS
    tiles = tiles_y * tiles_x
    items = batch * STAGES * tiles * BLOCKS
    values = tl.cast(height * width, tl.int64) * PLANES  # of an image; sizes of 1 are no tensors
    panel = panels + tl.program_id(0).to(tl.int64) * (TILE * DEPTH)
    pixels = tl.arange(0, TILE)

    ticket = _draw(workspace)
    while ticket < items:
        following = _draw(workspace)
        stage, image, tile, block = _locate(ticket, batch, group, STAGES, tiles, BLOCKS)
        counted = block % COUNTED
        source = x + image * values
        if STAGES > 1:
            if stage > 0:
                counter = _counter(stage, image, tile, counted, batch, tiles, COUNTED)
                _await(workspace + counter, _neighbours(tile, tiles_y, tiles_x) * READERS, READERS)
                source = kept + ((stage - 1) * batch + image) * values
        weight = _of_stage(stage, w0, w1, w2, w3, w4, w5, w6, w7, STAGES)
        y0 = tile // tiles_x * BLOCK_H
        x0 = tile % tiles_x * BLOCK_W
        first_plane = block * (PASSES * BLOCK_PLANES)
        pool_from = first_plane if DEPTHWISE else 0
        _pool(source, panel, y0, x0, height, width, pool_from, PLANES, DEPTH, BLOCK_H, BLOCK_W, POOL_PLANES)
        tl.debug_barrier()  # the panel is whole

        y = y0 + pixels // BLOCK_W
        column = x0 + pixels % BLOCK_W
        in_image = ((y < height) & (column < width))[:, None]
        pixel = image * values + (y * width + column).to(tl.int64)[:, None] * PLANES
        for i in tl.range(0, PASSES, num_stages=1):
            planes = first_plane + i * BLOCK_PLANES + tl.arange(0, BLOCK_PLANES)
            if DEPTHWISE:
                pooled = tl.load(panel + (pixels * DEPTH)[:, None] + (planes - first_plane)[None, :])
                sums = float32(pooled) * float32(tl.load(weight + planes, mask=planes < PLANES, other=0.0))[None, :]
            else:
                # fmt: off
                sums = _multiply(panel, weight, planes, TILE, PLANES, DEPTH, BLOCK_PLANES, PASSES, BLOCK_DEPTH,
                                 PRECISION, PIPELINE)
                # fmt: on
            if b0 is not None:
                bias = _of_stage(stage, b0, b1, b2, b3, b4, b5, b6, b7, STAGES)
                sums += float32(tl.load(bias + planes, mask=planes < PLANES, other=0.0))[None, :]
            places = pixel + planes[None, :]
            mask = in_image & (planes < PLANES)[None, :]
            if stage == STAGES - 1:
                total = float32(tl.load(x + places, mask=mask, other=0.0))
                for earlier in tl.range(0, STAGES - 1, num_stages=1):
                    total += float32(tl.load(kept + earlier * (batch * values) + places, mask=mask, other=0.0))
                tl.store(out + places, rounded(total + sums, out.dtype.element_ty), mask=mask)  # in PyTorch's order
            else:
                tl.store(kept + stage * (batch * values) + places, rounded(sums, out.dtype.element_ty), mask=mask)
        tl.debug_barrier()  # all threads have read the panel and written their part
        if stage < STAGES - 1:
            _arrive(workspace, stage, image, tile, counted, batch, tiles, COUNTED, tiles_y, tiles_x)
        ticket = following
    _leave(workspace)


def prepare(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    groups: int,
    config: configs.Crp | None = None,
    traced: bool = False,
) -> Launch:
    """The launch that computes `lwrn_fast.crp`, whose arguments these are. It keeps t_1, t_2, ..., in one memory."""
    stages = len(weights)
    x = channels_last(x)
    out = empty_channels_last(x, x.shape)
    if x.numel() == 0:
        return Launch(_crp, 0, {}, out, traced, [torch.empty_like(x) for _ in weights[1:]])
    how = precision(x)
    kind = configs.kind_of(x, how)
    plan = planned(_plan, traced)(*x.shape, stages, groups, kind, x.device, config)
    batch, planes, height, width = x.shape
    kept = torch.empty((stages - 1, batch, height, width, planes), dtype=x.dtype, device=x.device)
    arguments = {
        "x": x,
        **{f"w{i}": weights[i].contiguous() if i < stages else None for i in range(MOST_STAGES)},
        **{f"b{i}": biases[i].contiguous() if i < len(biases) else None for i in range(MOST_STAGES)},
        "out": out,
        "kept": kept,
        "panels": torch.empty(plan.panels, dtype=x.dtype, device=x.device),
        "workspace": workspace(plan.workspace, x.device, traced),
        "PRECISION": how,
        **plan.arguments,
    }
    return Launch(_crp, plan.programs, arguments, out, traced, kept.permute(0, 1, 4, 2, 3))


@dataclass(frozen=True)
class _Plan:
    programs: int
    panels: int  # elements
    workspace: int  # elements
    arguments: dict[str, Any]


def _plan(
    batch: int,
    planes: int,
    height: int,
    width: int,
    stages: int,
    groups: int,
    kind: str,
    device: torch.device,
    config: configs.Crp | None,
) -> _Plan:
    """All that does not depend on where the tensors lie."""
    depthwise = groups == planes  # with one plane, both are the same
    if config is None:
        config = configs.look_up(configs.Crp, "crp", configs.device_key(device), kind, batch * height * width)
    # no tile larger than the map, but 16 pixels, which is the least that can be multiplied
    block_w = no_larger_than(max(2, width), config.block_w)
    block_h = max(no_larger_than(max(2, height), config.block_h), 16 // block_w)
    block_planes = no_larger_than(max(16, planes), config.block_planes)
    block_depth = no_larger_than(max(16, planes), config.block_depth)
    of_planes = cdiv(planes, block_planes)
    passes = cdiv(of_planes, cdiv(of_planes, config.passes))  # shared out evenly: 5 blocks are 3 and 2, not 4 and 1
    depth = passes * block_planes if depthwise else cdiv(planes, block_depth) * block_depth
    blocks = cdiv(planes, passes * block_planes)
    tiles_y, tiles_x = cdiv(height, block_h), cdiv(width, block_w)
    tiles = tiles_y * tiles_x
    programs = min(batch * tiles * blocks, config.programs * multiprocessors(device))
    arguments = {
        "batch": batch,
        "height": height,
        "width": width,
        "group": min(batch, cdiv(2 * programs, tiles * blocks)),
        "tiles_y": tiles_y,
        "tiles_x": tiles_x,
        "STAGES": stages,
        "PLANES": planes,
        "DEPTH": depth,
        "DEPTHWISE": depthwise,
        "BLOCK_H": block_h,
        "BLOCK_W": block_w,
        "BLOCK_PLANES": block_planes,
        "PASSES": passes,
        "BLOCK_DEPTH": block_depth,
        "POOL_PLANES": min(config.pool_planes, depth & -depth),
        "PIPELINE": config.pipeline,
        "num_warps": config.warps,
        **OPTIONS,
    }
    size = schedule.workspace_size(stages, batch, tiles, blocks if depthwise else 1)
    return _Plan(programs, programs * block_h * block_w * depth, size, arguments)
