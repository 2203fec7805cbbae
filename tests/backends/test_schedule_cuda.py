"""The schedule of csrc/cuda/schedule.cuh: its protocol on a simulated machine, and the source against this protocol."""

import random
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from lwrn_fast.kernels import schedule
from support import compiling
from support.protocol import (
    CHOICES,
    OTHER,
    Case,
    Operation,
    Violation,
    check_interleavings,
    check_launches,
    check_reset,
    items,
)
from support.protocol_cuda import Resident, Streaming
from support.schedule_faults import (
    SIMULATED,
    draw_in_two_steps,
    last_stage_first,
    not_reset,
    tile_by_tile,
    where,
    without_corners,
)

ROOT = Path(__file__).parents[2]
TINY = [
    Case(tiles_x=2),
    Case(batch=3, group=2),
    Case(blocks=2, programs=3),
    Case(blocks=2, programs=3, depthwise=True),
    Case(blocks=2, stages=3, programs=3, resident=2),
    Case(stages=1, programs=3),
    Case(tiles_x=2, resident=1),
    Case(tiles_y=2, stages=3),
    Case(tiles_x=2, programs=3),
    Case(tiles_x=3),
    Case(blocks=2, tiles_x=2),
    Case(tiles_y=2, tiles_x=2),
]


def with_a_tile_each(case):
    count = case.batch * case.tiles
    return replace(case, blocks=1, group=case.batch, programs=count, resident=count)


RESIDENT_TINY = [Case(tiles_x=2, stages=3), Case(tiles_x=3), Case(tiles_y=2, tiles_x=2), Case(batch=2, tiles_x=2)]
RESIDENT_TINY = [with_a_tile_each(case) for case in RESIDENT_TINY]
RESIDENT = list(dict.fromkeys(map(with_a_tile_each, SIMULATED)))
RUNS = {"streaming": (Streaming, TINY, SIMULATED, OTHER)}
RUNS["resident"] = Resident, RESIDENT_TINY, RESIDENT, with_a_tile_each(OTHER)


def all_interleavings(kernel, tiny):
    for case in tiny:
        check_interleavings(kernel, case)


def all_launches(kernel, cases, other, between=check_reset):
    for case, choice in product(cases, CHOICES):
        check_launches(kernel, case, choice, between, other)


@pytest.mark.parametrize("run", RUNS)
def test_all_interleavings(run):
    kernel, tiny, _, _ = RUNS[run]
    all_interleavings(kernel(), tiny)


@pytest.mark.parametrize("run", RUNS)
def test_launches_in_a_row(run):
    kernel, _, cases, other = RUNS[run]
    all_launches(kernel(), cases, other)


def waits_for_its_own_tile(case, stage, image, tile, block):
    if stage > 0:
        yield Operation("poll", Streaming.counter(case, stage - 1, image, tile, block), case.readers)


def arrives_first(*item):
    return (operation for operation in reversed([*Streaming().finish(*item)]))


def resets_first(case):
    """Reset the counters in the first block that leaves."""
    return Streaming().leave(replace(case, programs=1))


COMMON = {
    # a missing dependency
    "waits_for_nothing": ("too early", where(["poll"], lambda poll: poll._replace(value=0))),
    "corners_left_out": ("too early", {"neighbour": without_corners}),
    "waits_for_its_own_tile": ("too early", {"wait": waits_for_its_own_tile}),
    "arrives_first": ("too early", {"finish": arrives_first}),
    "arrives_without_release": ("too early", where(["release"], lambda add: add._replace(name="relaxed"))),
    "waits_without_acquire": ("too early", where(["poll"], lambda poll: poll._replace(name="relaxed poll"))),
    "never_arrives": ("deadlock", {"arrive": lambda *_: iter(())}),
    "stages_share_counters": ("too early", {"counter": lambda case, _, *item: Streaming.counter(case, 0, *item)}),
    "images_share_counters": ("too early", {"counter": lambda case, s, _, *item: Streaming.counter(case, s, 0, *item)}),
    # a workspace that is not reset, or too early
    "counters_not_reset": ("not reset", not_reset(schedule.COUNTERS, 9999)),
    "finished_not_reset": ("not reset", not_reset(schedule.FINISHED, schedule.FINISHED)),
    "first_to_leave_resets": ("written twice|deadlock", {"leave": resets_first}),
}
STREAMING = {
    "one_block_of_channels_is_enough": ("too early", where(["poll"], lambda poll: poll._replace(value=1))),
    "tickets_not_reset": ("not reset", not_reset(schedule.TICKETS, schedule.TICKETS)),
    "last_stage_first": ("deadlock", {"locate": last_stage_first}),
    "tile_by_tile": ("deadlock", {"locate": tile_by_tile}),
    "two_tickets": ("written twice", {"locate": lambda ticket, *sizes: schedule.locate(max(ticket, 1), *sizes)}),
    "draws_in_two_steps": ("written twice", {"draw": draw_in_two_steps}),
}
FAULTS = {f"streaming_{name}": ("streaming", *fault) for name, fault in {**COMMON, **STREAMING}.items()}
FAULTS |= {f"resident_{name}": ("resident", *fault) for name, fault in COMMON.items()}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_show(fault):
    run, message, step = FAULTS[fault]
    kernel, tiny, cases, other = RUNS[run]
    with pytest.raises(Violation, match=message):
        all_interleavings(kernel(**step), tiny)
    with pytest.raises(Violation, match=message):
        all_launches(kernel(**step), cases, other)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Build the program that prints the accesses of csrc/cuda/schedule.cuh to its counters."""
    program = tmp_path_factory.mktemp("schedule") / "schedule"
    native = ROOT / "tests" / "native"
    include = (f"-I{native / 'recorded'}", f"-I{ROOT / 'csrc' / 'cuda'}")
    compiling.run("g++", "-std=c++17", "-Wall", "-Wextra", *include, native / "schedule.cpp", "-o", program)
    return program


def expected(case):
    """Yield the accesses that the program must print, from the functions that the simulated machine runs."""
    kernel = Streaming()
    for ticket in range(len(items(case))):
        item = kernel.locate(ticket, case.batch, case.group, case.stages, case.tiles, case.blocks)
        yield ("item", *item)
        yield from sorted(kernel.wait(case, *item))
        yield from kernel.arrive(case, *item)
    yield next(kernel.draw())
    leaving = kernel.leave(replace(case, programs=1))
    yield next(leaving)
    yield leaving.send(0)
    yield from leaving


def unused(line):
    """Return True for a store to a gap of the workspace, which is zeroed too."""
    return line[0] == "store" and int(line[1]) < schedule.COUNTERS and int(line[1]) not in (0, schedule.FINISHED)


@pytest.mark.skipif(compiling.missing("g++") is not None, reason="not installed: g++")
def test_the_source_does_what_the_machine_runs(source):
    rng = random.Random(0)
    for _ in range(60):
        batch, blocks = rng.randint(1, 5), rng.randint(1, 4)
        stages, tiles_y, tiles_x = rng.randint(1, 5), rng.randint(1, 4), rng.randint(1, 5)
        case = Case(batch, rng.randint(1, batch), stages, tiles_y, tiles_x, blocks, rng.random() < 0.5)
        sizes = (case.batch, case.group, case.stages, case.tiles_y, case.tiles_x, case.blocks, int(case.depthwise))
        printed = [tuple(line.split()) for line in compiling.run(source, *sizes).splitlines()]
        expected_lines = [tuple(map(str, line)) for line in expected(case)]
        last = expected_lines.index(("store", "0", "0"))  # the threads store in any order
        assert [line for line in printed if line[0] != "store"] == expected_lines[:last], case
        assert sorted(line for line in printed[last:] if not unused(line)) == sorted(expected_lines[last:]), case
