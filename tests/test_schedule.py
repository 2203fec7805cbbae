"""The schedule of lwrn_fast.kernels.crp: what its functions say, and the kernel's protocol on a simulated machine."""

import random
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import NamedTuple

import pytest

from lwrn_fast.kernels import configs, schedule


@dataclass(frozen=True)
class Case:
    """A launch: its sizes, how many programs it has, and how many are resident. The others start as these end."""

    batch: int = 1
    group: int = 1
    stages: int = 2
    tiles_y: int = 1
    tiles_x: int = 1
    blocks: int = 1
    depthwise: bool = False
    programs: int = 2
    resident: int = 99

    def __str__(self):
        kind = "depthwise" if self.depthwise else "dense"
        sizes = f"{self.batch}by{self.group}-{self.stages}x{self.tiles_y}x{self.tiles_x}x{self.blocks}"
        return f"{kind}-{sizes}-{min(self.programs, self.resident)}of{self.programs}"

    @property
    def tiles(self):
        return self.tiles_y * self.tiles_x

    @property
    def counted(self):
        return self.blocks if self.depthwise else 1

    @property
    def readers(self):
        return self.blocks // self.counted

    @property
    def workspace_size(self):
        return schedule.workspace_size(self.stages, self.batch, self.tiles, self.counted)


@cache
def items(case):
    """All that is to be done: (stage, image, tile, block)."""
    return list(product(range(case.stages), range(case.batch), range(case.tiles), range(case.blocks)))


def around(tile, tiles_y, tiles_x):
    """The 3 x 3 tiles around a tile."""
    y, x = divmod(tile, tiles_x)
    return {b * tiles_x + a for b in range(tiles_y) for a in range(tiles_x) if abs(b - y) <= 1 and abs(a - x) <= 1}


def inputs(case, stage, image, tile, block):
    """The items that an item reads: the tiles its windows touch, and where its tile is added up, its earlier stages."""
    if stage == 0:
        return set()
    blocks = [block] if case.depthwise else range(case.blocks)
    read = {(stage - 1, image, near, b) for near in around(tile, case.tiles_y, case.tiles_x) for b in blocks}
    return read | {(s, image, tile, block) for s in range(stage) if stage == case.stages - 1}


GRIDS = [(1, 1), (1, 2), (2, 1), (1, 5), (4, 1), (2, 2), (2, 3), (3, 3), (5, 4)]
SCHEDULES = [
    Case(batch, group, stages, *grid, blocks, depthwise)
    for batch, group in [(1, 1), (2, 1), (2, 2), (5, 2), (7, 3)]
    for stages, grid, blocks, depthwise in product([1, 2, 4], GRIDS, [1, 3], [False, True])
]


def located(case):
    sizes = case.batch, case.group, case.stages, case.tiles, case.blocks
    return [schedule.locate(ticket, *sizes) for ticket in range(len(items(case)))]


def test_every_item_has_one_ticket():
    for case in SCHEDULES:
        assert sorted(located(case)) == items(case), case


def test_every_item_comes_after_all_it_reads():
    for case in SCHEDULES:
        done = set()
        for item in located(case):
            assert inputs(case, *item) <= done, (case, item)
            done.add(item)


def touched(place, side, length):
    """The tiles, along one axis, of what the kernel reads for a tile: outside the map, it reads the border."""
    pixels = [place * side + i + window for i in range(side) for window in range(-2, 3)]
    return {min(max(pixel, 0), length - 1) // side for pixel in pixels}


def test_windows_touch_the_tiles_around():
    """Along each axis, if a tile has at least two pixels; a window is a product of both."""
    for side, length in product([2, 3, 4, 5, 8], range(1, 40)):
        count = -(-length // side)
        for place in range(count):
            assert touched(place, side, length) == around(place, 1, count) == around(place, count, 1), (side, length)
    assert touched(2, 1, 5) > around(2, 1, 5)


def test_configured_tiles_are_not_too_small():
    rows = [row for key in configs.table() for kind in configs.table()[key]["crp"].values() for row in kind]
    assert all(row["block_h"] >= 2 and row["block_w"] >= 2 for row in rows)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_neighbours(grid):
    for tile in range(grid[0] * grid[1]):
        near = [schedule.neighbour(tile, index, *grid) for index in range(16)]
        assert sorted(place for place, inside in near if inside) == sorted(around(tile, *grid))
        assert schedule.neighbours(tile, *grid) == len(around(tile, *grid)) <= schedule.NEIGHBOURS
        assert all(tile in around(place, *grid) for place, inside in near if inside)  # who reads it, it reads


def test_counters():
    assert schedule.COUNTERS > schedule.FINISHED > schedule.TICKETS >= 0
    for case in SCHEDULES:
        sizes = case.batch, case.tiles, case.counted
        waiting = [item for item in items(case) if item[0] > 0 and item[3] < case.counted]
        places = [schedule.counter(*item, *sizes) for item in waiting]
        assert places == list(range(schedule.COUNTERS, case.workspace_size)), case


class Operation(NamedTuple):
    """What a program does next, with a place in the workspace or, to read and write, with items.

    Adding returns what was there. A poll passes once a place has reached a value; until then it changes nothing.
    """

    name: str  # relaxed, release and acq_rel, which add; poll and relaxed poll; store; read and write
    place: object
    value: int = 0


class Kernel:
    """The kernel of crp.py, step by step under its names (_await is `wait`). Programs are generators of operations."""

    locate = staticmethod(schedule.locate)
    neighbour = staticmethod(schedule.neighbour)
    neighbours = staticmethod(schedule.neighbours)

    def __init__(self, **steps):
        vars(self).update(steps)  # planted faults take the place of steps

    @staticmethod
    def altered(operation):
        return operation  # each one; a fault may change it

    @staticmethod
    def draw():
        return (yield Operation("relaxed", schedule.TICKETS, 1))

    @staticmethod
    def wait(counter, arrivals, readers):
        yield Operation("poll", counter, arrivals)
        if (yield Operation("relaxed", counter, 1)) == arrivals + readers - 1:
            yield Operation("store", counter, 0)

    def arrive(self, case, stage, image, tile, block):
        for index in range(16):
            reader, inside = self.neighbour(tile, index, case.tiles_y, case.tiles_x)
            if inside:
                counter = schedule.counter(stage + 1, image, reader, block, case.batch, case.tiles, case.counted)
                yield Operation("release", counter, 1)

    @staticmethod
    def leave(programs):
        if (yield Operation("acq_rel", schedule.FINISHED, 1)) == programs - 1:
            yield Operation("store", schedule.TICKETS, 0)
            yield Operation("store", schedule.FINISHED, 0)

    def finish(self, case, stage, image, tile, block):
        yield Operation("write", (stage, image, tile, block))
        if stage < case.stages - 1:
            yield from self.arrive(case, stage, image, tile, block % case.counted)

    def program(self, case):
        count = len(items(case))
        ticket = yield from self.draw()
        while ticket < count:
            following = yield from self.draw()
            item = self.locate(ticket, case.batch, case.group, case.stages, case.tiles, case.blocks)
            stage, image, tile, block = item
            if stage > 0:
                counted = block % case.counted
                counter = schedule.counter(stage, image, tile, counted, case.batch, case.tiles, case.counted)
                arrivals = self.neighbours(tile, case.tiles_y, case.tiles_x) * case.readers
                yield from self.wait(counter, arrivals, case.readers)
            yield Operation("read", item)
            yield from self.finish(case, *item)
            ticket = following
        yield from self.leave(case.programs)


class Violation(Exception):
    """What must not happen."""


@cache
def bits(case):
    """For each item, itself and its inputs as bits of a number."""
    bit = {item: 1 << i for i, item in enumerate(items(case))}
    return {item: (bit[item], sum(bit[i] for i in inputs(case, *item))) for item in bit}


class Program:
    def __init__(self, kernel, case, results=()):
        self.kernel, self.generator = kernel, kernel.program(case)
        self.operation = kernel.altered(next(self.generator))
        self.results = []  # of its operations so far, which determine where it is
        self.visible = 0  # the items that it may read
        for result in results:
            self.proceed(result)

    def proceed(self, result):
        self.results.append(result)
        self.operation = self.kernel.altered(self.generator.send(result))


class Machine:
    """Runs a launch, one atomic operation at a time.

    Memory is as weak as can be: a program sees what it wrote itself, and what was visible to those whose releases it
    acquired. To read anything else, even if it has been written by then, is a violation. So it does not matter when
    reads and writes happen between two atomic operations, and they follow at once. Nothing of an earlier launch counts.
    """

    def __init__(self, kernel, case, workspace):
        self.kernel, self.case, self.workspace = kernel, case, workspace
        self.bits = bits(case)
        self.released = [0] * len(workspace)  # the items that an acquire of a place makes visible
        self.written = 0
        self.running = [Program(kernel, case) for _ in range(min(case.programs, case.resident))]
        self.unstarted = case.programs - len(self.running)

    def runnable(self):
        """The programs whose next operation is not a poll that fails; none at the end."""
        operations = enumerate(program.operation for program in self.running)
        able = [i for i, (name, place, value) in operations if "poll" not in name or self.workspace[place] >= value]
        if self.running and not able:
            raise Violation("deadlock")
        if not self.running and self.written != (1 << len(self.bits)) - 1:
            raise Violation("never written")
        return able

    def step(self, i):
        program = self.running[i]
        try:
            program.proceed(self.perform(program, *program.operation))
            while program.operation.name in ("read", "write"):
                program.proceed(self.perform(program, *program.operation))
        except StopIteration:
            del self.running[i]
            if self.unstarted:
                self.unstarted -= 1
                self.running.append(Program(self.kernel, self.case))

    def perform(self, program, name, place, value):
        if name == "read":
            if self.bits[place][1] & ~program.visible:
                raise Violation("read too early")
        elif name == "write":
            item = self.bits[place][0]
            if self.written & item:
                raise Violation("written twice")
            self.written |= item
            program.visible |= item
        elif name == "store":
            self.workspace[place] = value
            self.released[place] = 0
        else:
            if name in ("poll", "acq_rel"):
                program.visible |= self.released[place]
            if name in ("release", "acq_rel"):
                self.released[place] |= program.visible
            if "poll" not in name:
                self.workspace[place] += value
                if name != "release":
                    return self.workspace[place] - value
        return 0

    def after(self, i):
        """The machine after a step of one program; this one stays as it is."""
        other = copy(self)
        other.workspace, other.released, other.running = [*self.workspace], [*self.released], [*self.running]
        other.running[i] = Program(self.kernel, self.case, self.running[i].results)
        other.running[i].visible = self.running[i].visible
        other.step(i)
        return other

    def state(self):
        """Equal for machines that behave alike; which program is where makes no difference."""
        programs = sorted((tuple(program.results), program.visible) for program in self.running)
        return tuple(self.workspace), tuple(self.released), self.written, self.unstarted, tuple(programs)


def check_reset(workspace):
    if any(workspace):
        raise Violation("not reset")


def check_interleavings(kernel, case):
    """All there are of one launch. It leaves the workspace as it was, so a second one would be the same again."""
    first = Machine(kernel, case, [0] * case.workspace_size)
    known, machines = {first.state()}, [first]
    while machines:
        machine = machines.pop()
        able = machine.runnable()
        if not able:
            check_reset(machine.workspace)
        for following in map(machine.after, able):
            state = following.state()
            if state not in known:
                known.add(state)
                machines.append(following)


# Which of the programs that can run is next: those that started first come first; `last` ran last.
CHOICES = {
    "earliest_first": lambda able, last, rng: able[0],
    "latest_first": lambda able, last, rng: able[-1],
    "round_robin": lambda able, last, rng: next((i for i in able if i > last), able[0]),
    "one_starves": lambda able, last, rng: rng.choice(able[1:] or able),
    "random": lambda able, last, rng: rng.choice(able),
    "bursts": lambda able, last, rng: last if last in able and rng.random() < 0.95 else rng.choice(able),
}


def launch(kernel, case, workspace, choice, rng):
    machine, last = Machine(kernel, case, workspace), -1
    while able := machine.runnable():
        last = CHOICES[choice](able, last, rng)
        machine.step(last)


def check_launches(kernel, case, choice, between=check_reset):
    """Three launches in a row on one workspace, the second of other sizes."""
    rng, workspace = random.Random(0), [0] * max(case.workspace_size, OTHER.workspace_size)
    for each in (case, OTHER, case):
        launch(kernel, each, workspace, choice, rng)
        between(workspace)


OTHER = Case(batch=2, stages=3, tiles_y=2, tiles_x=2, blocks=2, programs=3)
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
PROGRAMS = [(1, 1), (4, 1), (5, 2), (9, 4), (8, 8)]  # how many, and how many of them are resident
SIMULATED = [replace(case, programs=p, resident=r) for case in LARGER for p, r in PROGRAMS]


@pytest.mark.parametrize("case", TINY, ids=str)
def test_all_interleavings(case):
    check_interleavings(Kernel(), case)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("case", SIMULATED, ids=str)
def test_launches_in_a_row(case, choice):
    check_launches(Kernel(), case, choice)


def without_corners(tile, index, *grid):
    place, inside = schedule.neighbour(tile, index, *grid)
    return place, inside and index not in (0, 2, 6, 8)


def count_without_corners(tile, *grid):
    return sum(without_corners(tile, index, *grid)[1] for index in range(9))


def last_stage_first(ticket, batch, group, stages, tiles, blocks):
    stage, *rest = schedule.locate(ticket, batch, group, stages, tiles, blocks)
    return stages - 1 - stage, *rest


def tile_by_tile(ticket, batch, group, stages, tiles, blocks):
    """All stages of a tile before the next tile."""
    rest, block = divmod(ticket, blocks)
    rest, stage = divmod(rest, stages)
    return stage, *divmod(rest, tiles), block


def draw_in_two_steps():
    ticket = yield Operation("relaxed", schedule.TICKETS, 0)
    yield Operation("store", schedule.TICKETS, ticket + 1)
    return ticket


def where(names, change):
    """Changes all operations of these names."""
    return {"altered": lambda operation: change(operation) if operation.name in names else operation}


def not_reset(first, last):
    """Nothing is stored in these places of the workspace."""
    nothing = Operation("relaxed poll", 0, 0)
    return where(["store"], lambda operation: nothing if first <= operation.place <= last else operation)


NOT_RESET = {
    "counters_not_reset": ("read too early", not_reset(schedule.COUNTERS, 9999)),
    "tickets_not_reset": ("never written", not_reset(schedule.TICKETS, schedule.TICKETS)),
    "finished_not_reset": ("never written|written twice", not_reset(schedule.FINISHED, schedule.FINISHED)),
}
FAULTS = {
    # a missing dependency
    "waits_for_nothing": ("read too early", where(["poll"], lambda poll: poll._replace(value=0))),
    "waits_for_one_less": ("read too early", where(["poll"], lambda poll: poll._replace(value=poll.value - 1))),
    "counts_one_less": ("too early|not reset", {"neighbours": lambda *tile: schedule.neighbours(*tile) - 1}),
    "corners_left_out": ("too early", {"neighbour": without_corners, "neighbours": count_without_corners}),
    "arrives_first": ("too early", {"finish": lambda *item: (o for o in reversed([*Kernel().finish(*item)]))}),
    "arrives_without_release": ("too early", where(["release"], lambda add: add._replace(name="relaxed"))),
    "waits_without_acquire": ("too early", where(["poll"], lambda poll: poll._replace(name="relaxed poll"))),
    # a wrong order
    "last_stage_first": ("deadlock", {"locate": last_stage_first}),
    "tile_by_tile": ("deadlock", {"locate": tile_by_tile}),
    # a workspace that is not reset, or too early
    **{name: ("not reset", fault) for name, (_, fault) in NOT_RESET.items()},
    "first_reader_resets": ("deadlock", {"wait": lambda counter, arrivals, _: Kernel.wait(counter, arrivals, 1)}),
    "first_to_leave_resets": ("written twice", {"leave": lambda _: Kernel.leave(1)}),
    # a tile processed twice
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
def test_what_is_not_reset_spoils_a_later_launch(fault):
    message, step = NOT_RESET[fault]
    with pytest.raises(Violation, match=message):
        all_launches(Kernel(**step), between=lambda workspace: None)
