"""What the programs of a crp launch do with each other, on a simulated machine, to test the schedule: those of
lwrn_fast.kernels.crp here, thread blocks of CUDA in protocol_cuda.py."""

import random
from copy import copy
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import NamedTuple

from lwrn_fast.kernels import schedule


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


class Operation(NamedTuple):
    """What a program does next, with a place in the workspace or, to read and write, with items.

    Adding returns what was there. A poll passes once a place has reached a value; until then it changes nothing.
    """

    name: str  # relaxed, release and acq_rel, which add; poll and relaxed poll; store; read and write
    place: object
    value: int = 0


class Kernel:
    """The kernel of crp.py, step by step under its names (_await is `wait`). Programs are generators of operations."""

    alike = True  # which program it is makes no difference

    locate = staticmethod(schedule.locate)
    neighbour = staticmethod(schedule.neighbour)
    neighbours = staticmethod(schedule.neighbours)

    def __init__(self, **steps):
        vars(self).update(steps)  # planted faults take the place of steps

    @staticmethod
    def altered(operation):
        return operation  # each one; a fault may change it

    @staticmethod
    def workspace_size(case):
        return schedule.workspace_size(case.stages, case.batch, case.tiles, case.counted)

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

    def program(self, case, index):
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
    def __init__(self, kernel, case, index, results=()):
        self.kernel, self.index, self.generator = kernel, index, kernel.program(case, index)
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
        self.running = [Program(kernel, case, i) for i in range(min(case.programs, case.resident))]
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
                self.running.append(Program(self.kernel, self.case, self.case.programs - self.unstarted))
                self.unstarted -= 1

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
        other.running[i] = Program(self.kernel, self.case, self.running[i].index, self.running[i].results)
        other.running[i].visible = self.running[i].visible
        other.step(i)
        return other

    def state(self):
        """Equal for machines that behave alike."""
        programs = sorted((p.index * (not self.kernel.alike), tuple(p.results), p.visible) for p in self.running)
        return tuple(self.workspace), tuple(self.released), self.written, self.unstarted, tuple(programs)


def check_reset(workspace):
    if any(workspace):
        raise Violation("not reset")


def check_interleavings(kernel, case):
    """All there are of one launch. It leaves the workspace as it was, so a second one would be the same again."""
    first = Machine(kernel, case, [0] * kernel.workspace_size(case))
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


# what runs on a workspace between two launches
OTHER = Case(batch=2, stages=3, tiles_y=2, tiles_x=2, blocks=2, programs=3)


def launch(kernel, case, workspace, choice, rng):
    machine, last = Machine(kernel, case, workspace), -1
    while able := machine.runnable():
        last = CHOICES[choice](able, last, rng)
        machine.step(last)


def check_launches(kernel, case, choice, between=check_reset, other=OTHER):
    """Three launches in a row on one workspace, the second of other sizes."""
    rng, workspace = random.Random(0), [0] * max(map(kernel.workspace_size, (case, other)))
    for each in (case, other, case):
        launch(kernel, each, workspace, choice, rng)
        between(workspace)
