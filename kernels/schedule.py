"""Who works on what within the one launch of `crp`, in whole numbers: the kernels run this source, and so do its tests.

An item is one stage of one tile of one image, for one block of planes. Programs draw tickets, which name the items in
an order in which every item comes after all that it reads. So any number of programs finishes, even one: the earliest
unfinished item never waits. Finished items are counted at the tiles that read them, which are the 3 x 3 around them.

Workspace: int32, zero before and after each launch.
"""

TICKETS = 0  # how many were drawn
FINISHED = 32  # how many programs found none left
COUNTERS = 64  # one for each item that reads another, of the second stage first
NEIGHBOURS = 9


def locate(ticket, batch, group, stages, tiles, blocks):
    """The item (stage, image, tile, block) of a ticket. Images are worked on `group` at a time: all stages of a group
    come before the next, so that what the stages hand on stays in the cache."""
    per_image = tiles * blocks
    first = ticket // (group * stages * per_image) * group
    images = min(group, batch - first)
    rest = ticket % (group * stages * per_image)
    stage = rest // (images * per_image)
    rest = rest % (images * per_image)
    return stage, first + rest // per_image, rest % per_image // blocks, rest % blocks


def neighbour(tile, index, tiles_y, tiles_x):
    """The index-th of the 3 x 3 tiles around a tile, and whether it is in the image; index may be any number >= 0."""
    y = tile // tiles_x + index // 3 - 1
    x = tile % tiles_x + index % 3 - 1
    return y * tiles_x + x, (index < 9) & (y >= 0) & (y < tiles_y) & (x >= 0) & (x < tiles_x)


def neighbours(tile, tiles_y, tiles_x):
    """How many of the 3 x 3 tiles around a tile are in the image."""
    y = tile // tiles_x
    x = tile % tiles_x
    return (min(y + 2, tiles_y) - max(y - 1, 0)) * (min(x + 2, tiles_x) - max(x - 1, 0))


def counter(stage, image, tile, block, batch, tiles, blocks):
    """Where in the workspace arrivals are counted for an item of a stage after the first. `block` of `blocks` tells
    apart items that read different planes; where all of them read the same, there is one counter, block 0 of 1."""
    return 64 + (((stage - 1) * batch + image) * tiles + tile) * blocks + block


def workspace_size(stages, batch, tiles, blocks):
    """Elements of the workspace."""
    return counter(stages, 0, 0, 0, batch, tiles, blocks)
