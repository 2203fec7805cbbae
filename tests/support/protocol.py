"""Simulate how the programs of a crp launch synchronise, to test the schedule: the programs of lwrn_fast.kernels.crp
here, the thread blocks of CUDA in protocol_cuda.py."""

import random
from copy import copy
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import NamedTuple

from lwrn_fast.kernels import schedule


@dataclass(frozen=True)
class Case:
    """A launch: its sizes, its number of programs, and how many of them are resident. The others start as these end."""

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
        weights = "depthwise" if self.depthwise else "dense"
        sizes = f"{self.batch}by{self.group}-{self.stages}x{self.tiles_y}x{self.tiles_x}x{self.blocks}"
        return f"{weights}-{sizes}-{min(self.programs, self.resident)}of{self.programs}"

    @property
    def tiles(self):
        return self.tiles_y * self.tiles_x

    @property
    def counters(self):
        """Counters of a tile."""
        return self.blocks if self.depthwise else 1

    @property
    def readers(self):
        """Items that wait for a counter."""
        return self.blocks // self.counters


@cache
def items(case):
    """Return all items: (stage, image, tile, block)."""
    return list(product(range(case.stages), range(case.batch), range(case.tiles), range(case.blocks)))


def around(tile, tiles_y, tiles_x):
    """Return the 3 x 3 tiles around a tile."""
    y, x = divmod(tile, tiles_x)
    return {b * tiles_x + a for b in range(tiles_y) for a in range(tiles_x) if abs(b - y) <= 1 and abs(a - x) <= 1}


def inputs(case, stage, image, tile, block):
    """Return the items that an item reads: the tiles that its windows touch and, in the last stage, its tile's earlier
    stages."""
    if stage == 0:
        return set()
    blocks = [block] if case.depthwise else range(case.blocks)
    read = {(stage - 1, image, near, b) for near in around(tile, case.tiles_y, case.tiles_x) for b in blocks}
    return read | {(s, image, tile, block) for s in range(stage) if stage == case.stages - 1}


class Operation(NamedTuple):
    """The next operation of a program, on an offset in the workspace or, for a read or write, on an item.

    An addition returns the value before it. A poll passes once the value at the offset has reached `value`; until then
    it changes nothing.
    """

    name: str  # relaxed, release and acq_rel, which add; poll and relaxed poll; store; read and write
    target: object
    value: int = 0


class Kernel:
    """The kernel of crp.py, step by step under its names. Programs are generators of operations."""

    alike = True  # a program's index makes no difference

    locate = staticmethod(schedule.locate)
    neighbour = staticmethod(schedule.neighbour)
    count_neighbours = staticmethod(schedule.count_neighbours)

    def __init__(self, **steps):
        vars(self).update(steps)  # planted faults replace steps

    @staticmethod
    def altered(operation):
        """Return the operation unchanged. A planted fault changes some."""
        return operation

    @staticmethod
    def workspace_size(case):
        return schedule.workspace_size(case.stages, case.batch, case.tiles, case.counters)

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
            reader, in_image = self.neighbour(tile, index, case.tiles_y, case.tiles_x)
            if in_image:
                counter = schedule.counter_offset(
                    stage + 1, image, reader, block, case.batch, case.tiles, case.counters
                )
                yield Operation("release", counter, 1)

    @staticmethod
    def leave(programs):
        if (yield Operation("acq_rel", schedule.FINISHED, 1)) == programs - 1:
            yield Operation("store", schedule.TICKETS, 0)
            yield Operation("store", schedule.FINISHED, 0)

    def finish(self, case, stage, image, tile, block):
        yield Operation("write", (stage, image, tile, block))
        if stage < case.stages - 1:
            yield from self.arrive(case, stage, image, tile, block % case.counters)

    def program(self, case, index):
        count = len(items(case))
        ticket = yield from self.draw()
        while ticket < count:
            next_ticket = yield from self.draw()
            item = self.locate(ticket, case.batch, case.group, case.stages, case.tiles, case.blocks)
            stage, image, tile, block = item
            if stage > 0:
                counter_block = block % case.counters
                counter = schedule.counter_offset(
                    stage, image, tile, counter_block, case.batch, case.tiles, case.counters
                )
                arrivals = self.count_neighbours(tile, case.tiles_y, case.tiles_x) * case.readers
                yield from self.wait(counter, arrivals, case.readers)
            yield Operation("read", item)
            yield from self.finish(case, *item)
            ticket = next_ticket
        yield from self.leave(case.programs)


class Violation(Exception):
    """A fault of the protocol, which the message names."""


@cache
def bits(case):
    """Return a bit set of each item alone, and one of its inputs."""
    bit = {item: 1 << i for i, item in enumerate(items(case))}
    return {item: (bit[item], sum(bit[i] for i in inputs(case, *item))) for item in bit}


class Program:
    def __init__(self, kernel, case, index, results=()):
        self.kernel, self.index, self.generator = kernel, index, kernel.program(case, index)
        self.operation = kernel.altered(next(self.generator))
        self.results = []  # of its operations so far, which determine its state
        self.visible = 0  # bit set of the items that it may read
        for result in results:
            self.proceed(result)

    def proceed(self, result):
        self.results.append(result)
        self.operation = self.kernel.altered(self.generator.send(result))


class Machine:
    """Run a launch, one atomic operation at a time.

    Memory is as weak as the model permits: a program sees its own writes, and what was visible to the programs whose
    releases it acquired. A read of anything else, even if it has been written by then, is a violation. So the time of
    reads and writes between two atomic operations does not matter, and they follow at once. Nothing of an earlier
    launch counts.
    """

    def __init__(self, kernel, case, workspace):
        self.kernel, self.case, self.workspace = kernel, case, workspace
        self.bits = bits(case)
        self.released = [0] * len(workspace)  # bit sets of the items that an acquire of each offset makes visible
        self.written = 0
        self.running = [Program(kernel, case, i) for i in range(min(case.programs, case.resident))]
        self.unstarted = case.programs - len(self.running)

    def runnable(self):
        """Return the programs whose next operation is not a poll that fails; none at the end."""
        operations = enumerate(program.operation for program in self.running)
        ready = [i for i, (name, target, value) in operations if "poll" not in name or self.workspace[target] >= value]
        if self.running and not ready:
            raise Violation("deadlock")
        if not self.running and self.written != (1 << len(self.bits)) - 1:
            raise Violation("never written")
        return ready

    def step(self, i):
        """Run program i up to its next atomic operation."""
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

    def perform(self, program, name, target, value):
        """Carry out an operation, and return its result."""
        if name == "read":
            if self.bits[target][1] & ~program.visible:
                raise Violation("read too early")
        elif name == "write":
            item = self.bits[target][0]
            if self.written & item:
                raise Violation("written twice")
            self.written |= item
            program.visible |= item
        elif name == "store":
            self.workspace[target] = value
            self.released[target] = 0
        else:
            if name in ("poll", "acq_rel"):
                program.visible |= self.released[target]
            if name in ("release", "acq_rel"):
                self.released[target] |= program.visible
            if "poll" not in name:
                self.workspace[target] += value
                if name != "release":
                    return self.workspace[target] - value
        return 0

    def after(self, i):
        """Return a copy of the machine after a step of one program."""
        other = copy(self)
        other.workspace, other.released, other.running = [*self.workspace], [*self.released], [*self.running]
        other.running[i] = Program(self.kernel, self.case, self.running[i].index, self.running[i].results)
        other.running[i].visible = self.running[i].visible
        other.step(i)
        return other

    def state(self):
        """Return a key that is equal for machines that behave alike."""
        programs = sorted((p.index * (not self.kernel.alike), tuple(p.results), p.visible) for p in self.running)
        return tuple(self.workspace), tuple(self.released), self.written, self.unstarted, tuple(programs)


def check_reset(workspace):
    if any(workspace):
        raise Violation("not reset")


def check_interleavings(kernel, case):
    """Run all interleavings of one launch. It resets the workspace, so a second launch would run the same ones."""
    first = Machine(kernel, case, [0] * kernel.workspace_size(case))
    known, machines = {first.state()}, [first]
    while machines:
        machine = machines.pop()
        ready = machine.runnable()
        if not ready:
            check_reset(machine.workspace)
        for successor in map(machine.after, ready):
            state = successor.state()
            if state not in known:
                known.add(state)
                machines.append(successor)


# Policies that choose the next program from those that are ready, in the order in which they started; `last` ran last.
CHOICES = {
    "earliest_first": lambda ready, last, rng: ready[0],
    "latest_first": lambda ready, last, rng: ready[-1],
    "round_robin": lambda ready, last, rng: next((i for i in ready if i > last), ready[0]),
    "one_starves": lambda ready, last, rng: rng.choice(ready[1:] or ready),
    "random": lambda ready, last, rng: rng.choice(ready),
    "bursts": lambda ready, last, rng: last if last in ready and rng.random() < 0.95 else rng.choice(ready),
}


# The launch that runs on a workspace between two others.
OTHER = Case(batch=2, stages=3, tiles_y=2, tiles_x=2, blocks=2, programs=3)


def launch(kernel, case, workspace, choice, rng):
    machine, last = Machine(kernel, case, workspace), -1
    while ready := machine.runnable():
        last = CHOICES[choice](ready, last, rng)
        machine.step(last)


def check_launches(kernel, case, choice, between=check_reset, other=OTHER):
    """Run three launches in a row on one workspace, the second of other sizes."""
    rng, workspace = random.Random(0), [0] * max(map(kernel.workspace_size, (case, other)))
    for each in (case, other, case):
        launch(kernel, each, workspace, choice, rng)
        between(workspace)
