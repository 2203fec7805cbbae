"""Cases of simulated launches, and faults to plant in a schedule."""

from dataclasses import replace

from lwrn_fast.kernels import schedule
from support.protocol import Case, Operation

# Launches too large to run all their interleavings.
LARGER = [
    Case(batch=3, group=2, stages=4, tiles_y=3, tiles_x=3),
    Case(batch=2, group=2, stages=4, tiles_y=2, tiles_x=3, blocks=2),
    Case(batch=2, group=1, stages=3, tiles_y=3, tiles_x=2, blocks=2, depthwise=True),
    Case(batch=5, group=3, stages=2, tiles_y=1, tiles_x=6),
    Case(batch=1, group=1, stages=4, tiles_y=7, tiles_x=1, blocks=3),
    Case(batch=2, group=2, stages=8, tiles_y=2, tiles_x=2),
    Case(batch=3, group=3, stages=1, tiles_y=2, tiles_x=2),
    Case(batch=7, group=3, stages=4, blocks=3, depthwise=True),
]
# Numbers of programs, and of those that are resident.
PROGRAMS = [(1, 1), (4, 1), (5, 2), (9, 4), (8, 8)]
# The launches that are simulated with each policy.
SIMULATED = [replace(case, programs=p, resident=r) for case in LARGER for p, r in PROGRAMS]


def without_corners(tile, index, *grid):
    """Leave out the corners of a tile's neighbours."""
    near, in_image = schedule.neighbour(tile, index, *grid)
    return near, in_image and index not in (0, 2, 6, 8)


def last_stage_first(ticket, batch, group_size, stages, tiles, blocks):
    """Reverse the order of the stages."""
    stage, *rest = schedule.locate(ticket, batch, group_size, stages, tiles, blocks)
    return stages - 1 - stage, *rest


def tile_by_tile(ticket, batch, group_size, stages, tiles, blocks):
    """Process all stages of a tile before the next tile."""
    rest, block = divmod(ticket, blocks)
    rest, stage = divmod(rest, stages)
    return stage, *divmod(rest, tiles), block


def draw_in_two_steps():
    """Read the ticket and store the next one, instead of one atomic addition."""
    ticket = yield Operation("relaxed", schedule.TICKETS, 0)
    yield Operation("store", schedule.TICKETS, ticket + 1)
    return ticket


def where(names, change):
    """Change all operations of these names."""
    return {"altered": lambda operation: change(operation) if operation.name in names else operation}


def not_reset(first, last):
    """Store nothing at these offsets of the workspace."""
    nothing = Operation("relaxed poll", 0, 0)
    return where(["store"], lambda operation: nothing if first <= operation.target <= last else operation)
