"""Test the schedule of lwrn_fast.kernels.crp: its functions, and the kernel's protocol on a simulated machine."""

from itertools import product

import pytest

from lwrn_fast.kernels import configs, schedule
from support.protocol import (
    CHOICES,
    Case,
    Kernel,
    Violation,
    around,
    check_interleavings,
    check_launches,
    check_reset,
    inputs,
    items,
)
from support.schedule_faults import (
    SIMULATED,
    draw_in_two_steps,
    last_stage_first,
    not_reset,
    tile_by_tile,
    where,
    without_corners,
)

# Tiles of an image: rows, columns.
GRIDS = [(1, 1), (1, 2), (2, 1), (1, 5), (4, 1), (2, 2), (2, 3), (3, 3), (5, 4)]
# Launches whose tickets are all located.
SCHEDULES = [
    Case(batch, group, stages, *grid, blocks, depthwise)
    for batch, group in [(1, 1), (2, 1), (2, 2), (5, 2), (7, 3)]
    for stages, grid, blocks, depthwise in product([1, 2, 4], GRIDS, [1, 3], [False, True])
]


def all_located(case):
    """Return the items of all tickets, in their order."""
    sizes = case.batch, case.group, case.stages, case.tiles, case.blocks
    return [schedule.locate(ticket, *sizes) for ticket in range(len(items(case)))]


def test_every_item_has_one_ticket():
    for case in SCHEDULES:
        assert sorted(all_located(case)) == items(case), case


def test_every_item_comes_after_all_it_reads():
    for case in SCHEDULES:
        done = set()
        for item in all_located(case):
            assert inputs(case, *item) <= done, (case, item)
            done.add(item)


def tiles_read(tile, side, length):
    """Return the tiles that the kernel reads for a tile along one axis: outside the map, it reads the border."""
    pixels = [tile * side + i + window for i in range(side) for window in range(-2, 3)]
    return {min(max(pixel, 0), length - 1) // side for pixel in pixels}


def test_windows_read_the_tiles_around():
    """Test each axis alone, for tiles of at least two pixels: a window is a product of both axes."""
    for side, length in product([2, 3, 4, 5, 8], range(1, 40)):
        count = -(-length // side)
        for tile in range(count):
            assert tiles_read(tile, side, length) == around(tile, 1, count) == around(tile, count, 1), (side, length)
    assert tiles_read(2, 1, 5) > around(2, 1, 5)


def test_configured_tiles_are_not_too_small():
    rows = [row for ops in configs.table().values() for rows in ops["crp"].values() for row in rows]
    assert all(row["block_h"] >= 2 and row["block_w"] >= 2 for row in rows)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_neighbours(grid):
    for tile in range(grid[0] * grid[1]):
        near = [schedule.neighbour(tile, index, *grid) for index in range(16)]
        assert sorted(other for other, in_image in near if in_image) == sorted(around(tile, *grid))
        assert schedule.count_neighbours(tile, *grid) == len(around(tile, *grid)) <= schedule.NEIGHBOURS
        assert all(tile in around(other, *grid) for other, in_image in near if in_image)  # reading is mutual


def test_counters():
    assert schedule.COUNTERS > schedule.FINISHED > schedule.TICKETS >= 0
    for case in SCHEDULES:
        sizes = case.batch, case.tiles, case.counters
        waiting = [item for item in items(case) if item[0] > 0 and item[3] < case.counters]
        offsets = [schedule.counter_offset(*item, *sizes) for item in waiting]
        assert offsets == list(range(schedule.COUNTERS, Kernel.workspace_size(case))), case


# Launches small enough to run all their interleavings.
TINY = [
    Case(tiles_y=2, tiles_x=2),
    Case(stages=1, programs=3),
    Case(tiles_x=2, resident=1),
    Case(tiles_x=2),
    Case(tiles_y=2, stages=3),
    Case(tiles_x=2, programs=3),
    Case(tiles_x=3),
    Case(blocks=2, stages=3, programs=3, resident=2),
    Case(blocks=2, tiles_x=2),
    Case(blocks=2, programs=3),
    Case(blocks=2, programs=3, depthwise=True),
    Case(batch=3, group=2),
]


@pytest.mark.parametrize("case", TINY, ids=str)
def test_all_interleavings(case):
    check_interleavings(Kernel(), case)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("case", SIMULATED, ids=str)
def test_launches_in_a_row(case, choice):
    check_launches(Kernel(), case, choice)


def count_without_corners(tile, *grid):
    return sum(without_corners(tile, index, *grid)[1] for index in range(9))


# Faults that leave part of the workspace as it is: how a later launch fails, and the fault.
NOT_RESET = {
    "counters_not_reset": ("read too early", not_reset(schedule.COUNTERS, 9999)),
    "tickets_not_reset": ("never written", not_reset(schedule.TICKETS, schedule.TICKETS)),
    "finished_not_reset": ("never written|written twice", not_reset(schedule.FINISHED, schedule.FINISHED)),
}
# Faults to plant: how the launch fails, and the fault.
FAULTS = {
    # A dependency is missing.
    "waits_for_nothing": ("read too early", where(["poll"], lambda poll: poll._replace(value=0))),
    "waits_for_one_less": ("read too early", where(["poll"], lambda poll: poll._replace(value=poll.value - 1))),
    "counts_one_less": (
        "too early|not reset",
        {"count_neighbours": lambda *tile: schedule.count_neighbours(*tile) - 1},
    ),
    "corners_left_out": ("too early", {"neighbour": without_corners, "count_neighbours": count_without_corners}),
    "arrives_first": ("too early", {"finish": lambda *item: (o for o in reversed([*Kernel().finish(*item)]))}),
    "arrives_without_release": ("too early", where(["release"], lambda add: add._replace(name="relaxed"))),
    "waits_without_acquire": ("too early", where(["poll"], lambda poll: poll._replace(name="relaxed poll"))),
    # The order is wrong.
    "last_stage_first": ("deadlock", {"locate": last_stage_first}),
    "tile_by_tile": ("deadlock", {"locate": tile_by_tile}),
    # The workspace is not reset, or too early.
    **{name: ("not reset", fault) for name, (_, fault) in NOT_RESET.items()},
    "first_reader_resets": ("deadlock", {"wait": lambda counter, arrivals, _: Kernel.wait(counter, arrivals, 1)}),
    "first_to_leave_resets": ("written twice", {"leave": lambda _: Kernel.leave(1)}),
    # A tile is processed twice.
    "two_tickets": ("written twice", {"locate": lambda ticket, *sizes: schedule.locate(max(ticket, 1), *sizes)}),
    "draws_in_two_steps": ("written twice", {"draw": draw_in_two_steps}),
}


def all_interleavings(kernel):
    for case in TINY:
        check_interleavings(kernel, case)


def all_launches(kernel, between=check_reset):
    for case, choice in product(SIMULATED, CHOICES):
        check_launches(kernel, case, choice, between)


@pytest.mark.parametrize("check", [all_interleavings, all_launches])
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_show(fault, check):
    message, step = FAULTS[fault]
    with pytest.raises(Violation, match=message):
        check(Kernel(**step))


@pytest.mark.parametrize("fault", NOT_RESET)
def test_a_missing_reset_breaks_a_later_launch(fault):
    message, step = NOT_RESET[fault]
    with pytest.raises(Violation, match=message):
        all_launches(Kernel(**step), between=lambda workspace: None)
