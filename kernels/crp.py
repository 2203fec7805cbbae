"""Chained residual pooling in one launch: t_0 = x, t_i = W_i * maxpool5x5(t_{i-1}) + b_i, result x + sum t_i.

A program draws items (schedule.py) until none is left. For each, it waits for the tiles around its own in the stage
before, pools its tile into a panel of its own, which stays in the caches, and multiplies the panel by the weights. The
outputs of stages before the last are kept in memory, rounded as PyTorch rounds them. The last stage adds all of them up
in float32 and rounds once.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import MAX_STAGES, configs, schedule
from .launch import (
    OPTIONS,
    Launch,
    block_size,
    cdiv,
    channels_last,
    empty_channels_last,
    input_precision,
    memoized,
    num_sms,
    workspace,
)
from .numerics import as_operand, inline, load, round_to, to_float32

_locate = inline(schedule.locate)
_neighbour = inline(schedule.neighbour)
_count_neighbours = inline(schedule.count_neighbours)
_counter_offset = inline(schedule.counter_offset)
_TICKETS = tl.constexpr(schedule.TICKETS)
_FINISHED = tl.constexpr(schedule.FINISHED)


@inline
def _draw(workspace):
    """Draw the next ticket."""
    return tl.atomic_add(workspace + _TICKETS, 1, sem="relaxed", scope="gpu")


@inline
def _wait(counter, arrivals, readers):
    """Wait until all that an item reads has arrived. The last of the readers resets the counter."""
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < arrivals:
        pass
    if tl.atomic_add(counter, 1, sem="relaxed", scope="gpu") == arrivals + readers - 1:
        tl.atomic_xchg(counter, 0, sem="relaxed", scope="gpu")
    tl.debug_barrier()  # no thread reads before the one that waited


@inline
def _arrive(workspace, stage, image, tile, block, batch, tiles, blocks, tiles_y, tiles_x):
    """Count a finished item at all that read it. Every thread has written its part."""
    index = tl.arange(0, 16)
    reader, mask = _neighbour(tile, index, tiles_y, tiles_x)
    offsets = _counter_offset(stage + 1, image, reader, block, batch, tiles, blocks)
    tl.atomic_add(workspace + offsets, 1, mask=mask, sem="release", scope="gpu")


@inline
def _leave(workspace):
    """Count this program as finished. The last one resets the workspace."""
    num_programs = tl.num_programs(0)
    if tl.atomic_add(workspace + _FINISHED, 1, sem="acq_rel", scope="gpu") == num_programs - 1:
        tl.store(workspace + _TICKETS, 0)
        tl.store(workspace + _FINISHED, 0)


@inline
def _max(a, b):
    """Return the larger of a and b, NaN where either is NaN."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@inline
def _row_max(image, y, height, row_stride, c0, c1, c2, c3, c4, mask, MASKED: tl.constexpr):
    """Return the maxima over the window's five columns, at offsets c0, ..., c4, in row y of an image."""
    row = image + tl.minimum(tl.maximum(y, 0), height - 1).to(tl.int64) * row_stride
    outer = _max(as_operand(load(row + c0, mask, MASKED)), as_operand(load(row + c4, mask, MASKED)))
    inner = _max(as_operand(load(row + c1, mask, MASKED)), as_operand(load(row + c3, mask, MASKED)))
    return _max(_max(outer, inner), as_operand(load(row + c2, mask, MASKED)))


@inline
def _maxpool(
    image,
    panel,
    y0,
    x0,
    height,
    width,
    first_channel,
    CHANNELS: tl.constexpr,
    PANEL_CHANNELS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    POOL_CHANNELS: tl.constexpr,
):
    """Write a pooled tile to the panel: PANEL_CHANNELS channels of each pixel, from first_channel on, 0 for those that
    the image does not have."""
    MASKED: tl.constexpr = CHANNELS % PANEL_CHANNELS != 0  # the last item, or the last block of products, is not full
    column = x0 + tl.arange(0, BLOCK_W)
    for first in tl.range(0, PANEL_CHANNELS, POOL_CHANNELS, num_stages=1):
        panel_channels = first + tl.arange(0, POOL_CHANNELS)
        channels = (first_channel + panel_channels)[None, :]
        mask = channels < CHANNELS
        # The window's columns, clamped to the image: for a stride-1 5x5 maximum this equals padding with -inf.
        c0 = (tl.minimum(tl.maximum(column - 2, 0), width - 1) * CHANNELS)[:, None] + channels
        c1 = (tl.minimum(tl.maximum(column - 1, 0), width - 1) * CHANNELS)[:, None] + channels
        c2 = (tl.minimum(column, width - 1) * CHANNELS)[:, None] + channels
        c3 = (tl.minimum(column + 1, width - 1) * CHANNELS)[:, None] + channels
        c4 = (tl.minimum(column + 2, width - 1) * CHANNELS)[:, None] + channels
        panel_ptrs = panel + (tl.arange(0, BLOCK_W) * PANEL_CHANNELS)[:, None] + panel_channels[None, :]
        row_stride = width * CHANNELS
        # Two rows of maxima in a step: no store comes between their loads, so that these are in flight together.
        r0 = _row_max(image, y0 - 2, height, row_stride, c0, c1, c2, c3, c4, mask, MASKED)
        r1 = _row_max(image, y0 - 1, height, row_stride, c0, c1, c2, c3, c4, mask, MASKED)
        r2 = _row_max(image, y0, height, row_stride, c0, c1, c2, c3, c4, mask, MASKED)
        r3 = _row_max(image, y0 + 1, height, row_stride, c0, c1, c2, c3, c4, mask, MASKED)
        for i in tl.range(0, BLOCK_H, 2, num_stages=1):
            r4 = _row_max(image, y0 + i + 2, height, row_stride, c0, c1, c2, c3, c4, mask, MASKED)
            r5 = _row_max(image, y0 + i + 3, height, row_stride, c0, c1, c2, c3, c4, mask, MASKED)
            shared = _max(_max(r1, r2), _max(r3, r4))
            tl.store(panel_ptrs + i * (BLOCK_W * PANEL_CHANNELS), round_to(_max(r0, shared), panel.dtype.element_ty))
            next_ptrs = panel_ptrs + (i + 1) * (BLOCK_W * PANEL_CHANNELS)
            tl.store(next_ptrs, round_to(_max(shared, r5), panel.dtype.element_ty))
            r0 = r2
            r1 = r3
            r2 = r4
            r3 = r5


@inline
def _select_stage(stage, p0, p1, p2, p3, p4, p5, p6, p7, CRP_STAGES: tl.constexpr):
    """Select the weights or biases of a stage from those of all stages."""
    selected = p0
    if CRP_STAGES > 1:
        if stage == 1:
            selected = p1
    if CRP_STAGES > 2:
        if stage == 2:
            selected = p2
    if CRP_STAGES > 3:
        if stage == 3:
            selected = p3
    if CRP_STAGES > 4:
        if stage == 4:
            selected = p4
    if CRP_STAGES > 5:
        if stage == 5:
            selected = p5
    if CRP_STAGES > 6:
        if stage == 6:
            selected = p6
    if CRP_STAGES > 7:
        if stage == 7:
            selected = p7
    return selected


@inline
def _matmul(
    panel,
    weight,
    offs_n,
    BLOCK_M: tl.constexpr,
    CHANNELS: tl.constexpr,
    PANEL_CHANNELS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PASSES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """Multiply the panel by the weights of output channels offs_n: (BLOCK_M, BLOCK_N) in float32."""
    offs_m = tl.arange(0, BLOCK_M)
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for k in tl.range(0, PANEL_CHANNELS, BLOCK_K, num_stages=NUM_STAGES):
        offs_k = k + tl.arange(0, BLOCK_K)
        a = tl.load(panel + (offs_m * PANEL_CHANNELS)[:, None] + offs_k[None, :])
        b_ptrs = weight + (offs_n * CHANNELS)[None, :] + offs_k[:, None]
        if CHANNELS % (PASSES * BLOCK_N) == 0 and CHANNELS % BLOCK_K == 0:  # every item is full
            b = tl.load(b_ptrs)
        else:
            b = tl.load(b_ptrs, mask=(offs_n < CHANNELS)[None, :] & (offs_k < CHANNELS)[:, None], other=0.0)
        acc = tl.dot(as_operand(a), as_operand(b), acc, input_precision=PRECISION)
    return acc


@triton.jit
def crp_kernel(
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
    stage_outputs,
    panels,
    workspace,
    batch,
    height,
    width,
    group_size,
    tiles_y,
    tiles_x,
    CRP_STAGES: tl.constexpr,
    CHANNELS: tl.constexpr,
    PANEL_CHANNELS: tl.constexpr,
    DEPTHWISE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PASSES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    POOL_CHANNELS: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """Compute CRP. x, out: (batch, height, width, CHANNELS). w0, ...: (CHANNELS, CHANNELS), or (CHANNELS,) if
    DEPTHWISE. b0, ...: (CHANNELS,) or None. stage_outputs: (CRP_STAGES - 1, *x.shape). panels: (programs, BLOCK_H *
    BLOCK_W, PANEL_CHANNELS). PANEL_CHANNELS: CHANNELS rounded up to whole blocks, or if DEPTHWISE the channels of an
    item, PASSES * BLOCK_N. NUM_STAGES: of the pipelined loop, not of the CRP."""
    BLOCK_M: tl.constexpr = BLOCK_H * BLOCK_W
    BLOCKS: tl.constexpr = (CHANNELS + PASSES * BLOCK_N - 1) // (PASSES * BLOCK_N)
    # Dense: every block of channels reads all channels, so a tile has one counter, for BLOCKS readers.
    COUNTERS: tl.constexpr = BLOCKS if DEPTHWISE else 1
    READERS: tl.constexpr = 1 if DEPTHWISE else BLOCKS
    tiles = tiles_y * tiles_x
    items = batch * CRP_STAGES * tiles * BLOCKS
    image_stride = tl.cast(height * width, tl.int64) * CHANNELS  # tl.cast: sizes of 1 are no tensors
    panel = panels + tl.program_id(0).to(tl.int64) * (BLOCK_M * PANEL_CHANNELS)
    offs_m = tl.arange(0, BLOCK_M)

    ticket = _draw(workspace)
    while ticket < items:
        next_ticket = _draw(workspace)
        stage, image, tile, block = _locate(ticket, batch, group_size, CRP_STAGES, tiles, BLOCKS)
        counter_block = block % COUNTERS
        source = x + image * image_stride
        if CRP_STAGES > 1:
            if stage > 0:
                offset = _counter_offset(stage, image, tile, counter_block, batch, tiles, COUNTERS)
                _wait(workspace + offset, _count_neighbours(tile, tiles_y, tiles_x) * READERS, READERS)
                source = stage_outputs + ((stage - 1) * batch + image) * image_stride
        weight = _select_stage(stage, w0, w1, w2, w3, w4, w5, w6, w7, CRP_STAGES)
        y0 = tile // tiles_x * BLOCK_H
        x0 = tile % tiles_x * BLOCK_W
        first_channel = block * (PASSES * BLOCK_N)
        pool_from = first_channel if DEPTHWISE else 0
        # fmt: off
        _maxpool(source, panel, y0, x0, height, width, pool_from, CHANNELS, PANEL_CHANNELS, BLOCK_H, BLOCK_W,
                 POOL_CHANNELS)
        # fmt: on
        tl.debug_barrier()  # the panel is whole

        y = y0 + offs_m // BLOCK_W
        column = x0 + offs_m % BLOCK_W
        in_image = ((y < height) & (column < width))[:, None]
        pixel_offsets = image * image_stride + (y * width + column).to(tl.int64)[:, None] * CHANNELS
        for i in tl.range(0, PASSES, num_stages=1):
            offs_n = first_channel + i * BLOCK_N + tl.arange(0, BLOCK_N)
            if DEPTHWISE:
                pooled = tl.load(panel + (offs_m * PANEL_CHANNELS)[:, None] + (offs_n - first_channel)[None, :])
                acc = to_float32(pooled)
                acc *= to_float32(tl.load(weight + offs_n, mask=offs_n < CHANNELS, other=0.0))[None, :]
            else:
                # fmt: off
                acc = _matmul(panel, weight, offs_n, BLOCK_M, CHANNELS, PANEL_CHANNELS, BLOCK_N, PASSES, BLOCK_K,
                              PRECISION, NUM_STAGES)
                # fmt: on
            if b0 is not None:
                bias = _select_stage(stage, b0, b1, b2, b3, b4, b5, b6, b7, CRP_STAGES)
                acc += to_float32(tl.load(bias + offs_n, mask=offs_n < CHANNELS, other=0.0))[None, :]
            offsets = pixel_offsets + offs_n[None, :]
            mask = in_image & (offs_n < CHANNELS)[None, :]
            if stage == CRP_STAGES - 1:
                total = to_float32(tl.load(x + offsets, mask=mask, other=0.0))
                for earlier in tl.range(0, CRP_STAGES - 1, num_stages=1):
                    ptrs = stage_outputs + earlier * (batch * image_stride) + offsets
                    total += to_float32(tl.load(ptrs, mask=mask, other=0.0))
                tl.store(out + offsets, round_to(total + acc, out.dtype.element_ty), mask=mask)  # in PyTorch's order
            else:
                ptrs = stage_outputs + stage * (batch * image_stride) + offsets
                tl.store(ptrs, round_to(acc, stage_outputs.dtype.element_ty), mask=mask)
        tl.debug_barrier()  # all threads have read the panel and written their part
        if stage < CRP_STAGES - 1:
            _arrive(workspace, stage, image, tile, counter_block, batch, tiles, COUNTERS, tiles_y, tiles_x)
        ticket = next_ticket
    _leave(workspace)


def prepare(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    groups: int,
    config: configs.Crp | None = None,
    traced: bool = False,
) -> Launch:
    """Prepare the launch of `lwrn_fast.crp`, whose arguments these are. It keeps t_1, t_2, ..., in one tensor."""
    stages = len(weights)
    x = channels_last(x)
    out = empty_channels_last(x, x.shape)
    if x.numel() == 0:
        return Launch(crp_kernel, (0,), {}, out, traced, [torch.empty_like(x) for _ in weights[1:]])
    dot_precision = input_precision(x)
    precision = configs.precision_of(x, dot_precision)
    plan = memoized(_plan, traced)(*x.shape, stages, groups, precision, x.device, config)
    batch, channels, height, width = x.shape
    stage_outputs = torch.empty((stages - 1, batch, height, width, channels), dtype=x.dtype, device=x.device)
    arguments = {
        "x": x,
        **{f"w{i}": weights[i].contiguous() if i < stages else None for i in range(MAX_STAGES)},
        **{f"b{i}": biases[i].contiguous() if i < len(biases) else None for i in range(MAX_STAGES)},
        "out": out,
        "stage_outputs": stage_outputs,
        "panels": torch.empty(plan.panel_elements, dtype=x.dtype, device=x.device),
        "workspace": workspace(plan.workspace_elements, x.device, traced),
        "PRECISION": dot_precision,
        **plan.arguments,
    }
    return Launch(crp_kernel, plan.grid, arguments, out, traced, stage_outputs.permute(0, 1, 4, 2, 3))


@dataclass(frozen=True)
class _Plan:
    grid: tuple[int]
    panel_elements: int  # of all programs
    workspace_elements: int
    arguments: dict[str, Any]


def _plan(
    batch: int,
    channels: int,
    height: int,
    width: int,
    stages: int,
    groups: int,
    precision: str,
    device: torch.device,
    config: configs.Crp | None,
) -> _Plan:
    """Compute all that does not depend on the tensors' addresses."""
    depthwise = groups == channels  # with one channel, both are the same
    if config is None:
        config = configs.look_up(configs.Crp, "crp", configs.device_key(device), precision, batch * height * width)
    # A tile is no larger than the map, but has at least 16 pixels, the minimum of tl.dot.
    block_w = block_size(max(2, width), config.block_w)
    block_h = max(block_size(max(2, height), config.block_h), 16 // block_w)
    block_n = block_size(max(16, channels), config.block_n)
    block_k = block_size(max(16, channels), config.block_k)
    blocks_n = cdiv(channels, block_n)
    passes = cdiv(blocks_n, cdiv(blocks_n, config.passes))  # shared out evenly: 5 blocks are 3 and 2, not 4 and 1
    panel_channels = passes * block_n if depthwise else cdiv(channels, block_k) * block_k
    blocks = cdiv(channels, passes * block_n)
    tiles_y, tiles_x = cdiv(height, block_h), cdiv(width, block_w)
    tiles = tiles_y * tiles_x
    num_programs = min(batch * tiles * blocks, config.programs_per_sm * num_sms(device))
    arguments = {
        "batch": batch,
        "height": height,
        "width": width,
        "group_size": min(batch, cdiv(2 * num_programs, tiles * blocks)),
        "tiles_y": tiles_y,
        "tiles_x": tiles_x,
        "CRP_STAGES": stages,
        "CHANNELS": channels,
        "PANEL_CHANNELS": panel_channels,
        "DEPTHWISE": depthwise,
        "BLOCK_H": block_h,
        "BLOCK_W": block_w,
        "BLOCK_N": block_n,
        "PASSES": passes,
        "BLOCK_K": block_k,
        "POOL_CHANNELS": min(config.pool_channels, panel_channels & -panel_channels),
        "NUM_STAGES": config.num_stages,
        "num_warps": config.num_warps,
        **OPTIONS,
    }
    workspace_elements = schedule.workspace_size(stages, batch, tiles, blocks if depthwise else 1)
    panel_elements = num_programs * block_h * block_w * panel_channels
    return _Plan((num_programs,), panel_elements, workspace_elements, arguments)
