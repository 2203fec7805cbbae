"""The protocol of the thread blocks of csrc/cuda/schedule.cuh, for the simulated machine of protocol.py."""

from lwrn_fast.kernels import schedule
from support.protocol import Kernel, Operation


class Streaming(Kernel):
    """Blocks draw tickets. A finished item increments its counter; its readers poll the counter."""

    @staticmethod
    def counter(case, stage, image, tile, block):
        index = (stage * case.batch + image) * case.tiles + tile
        return schedule.COUNTERS + (index * case.blocks + block if case.depthwise else index)

    @staticmethod
    def workspace_size(case):
        return Streaming.counter(case, case.stages - 1, 0, 0, 0)

    def wait(self, case, stage, image, tile, block):
        """Poll the neighbours in turn. On a GPU nine threads poll one each: the same, for counters only grow."""
        for index in range(9 if stage > 0 else 0):
            near, inside = self.neighbour(tile, index, case.tiles_y, case.tiles_x)
            if inside:
                yield Operation("poll", self.counter(case, stage - 1, image, near, block), case.readers)

    def arrive(self, case, stage, image, tile, block):
        if stage < case.stages - 1:  # nobody reads the last stage
            yield Operation("release", self.counter(case, stage, image, tile, block), 1)

    def leave(self, case):
        if (yield Operation("acq_rel", schedule.FINISHED, 1)) == case.programs - 1:
            for offset in (schedule.TICKETS, schedule.FINISHED, *range(schedule.COUNTERS, self.workspace_size(case))):
                yield Operation("store", offset, 0)

    def finish(self, case, *item):
        yield Operation("write", item)
        yield from self.arrive(case, *item)

    def work(self, case, item):
        yield from self.wait(case, *item)
        yield Operation("read", item)
        yield from self.finish(case, *item)

    def program(self, case, index):
        ticket = yield from self.draw()
        while ticket < case.batch * case.stages * case.tiles * case.blocks:
            following = yield from self.draw()
            item = self.locate(ticket, case.batch, case.group, case.stages, case.tiles, case.blocks)
            yield from self.work(case, item)
            ticket = following
        yield from self.leave(case)


class Resident(Streaming):
    """All blocks run at once, and each has a tile of its own, with all channels."""

    alike = False

    def program(self, case, index):
        assert case.programs == case.batch * case.tiles <= case.resident
        assert case.blocks == 1
        for stage in range(case.stages):
            yield from self.work(case, (stage, *divmod(index, case.tiles), 0))
        yield from self.leave(case)
