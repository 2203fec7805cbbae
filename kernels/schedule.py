"""The order of work within the one launch of `crp`, in whole numbers: the kernels run this source, and so do its tests.

An item is one stage of one tile of one image, for one block of channels. Programs draw tickets, which number the items
in an order in which every item comes after all that it reads. So any number of programs finishes, even one: the
earliest unfinished item never waits. A finished item is counted at the tiles that read it: the 3 x 3 around it.

Workspace: int32, zero before and after each launch.
"""

# Offset of the number of drawn tickets.
TICKETS = 0
# Offset of the number of programs that found no ticket left.
FINISHED = 32
# Offset of the counters: one per item that reads another, beginning with those of the second stage.
COUNTERS = 64
# Tiles that read a finished tile, at most.
NEIGHBOURS = 9


def locate(ticket, batch, group_size, stages, tiles, blocks):
    """Return the item (stage, image, tile, block) of a ticket.

    Images are processed in groups of group_size: all stages of a group come before the next group, so that what one
    stage writes is in the cache when the next reads it.
    """
    items_per_image = tiles * blocks
    first_image = ticket // (group_size * stages * items_per_image) * group_size
    images = min(group_size, batch - first_image)
    rest = ticket % (group_size * stages * items_per_image)
    stage = rest // (images * items_per_image)
    rest = rest % (images * items_per_image)
    return stage, first_image + rest // items_per_image, rest % items_per_image // blocks, rest % blocks


def neighbour(tile, index, tiles_y, tiles_x):
    """Return the index-th of the 3 x 3 tiles around a tile, and whether it is in the image; index: any number >= 0."""
    y = tile // tiles_x + index // 3 - 1
    x = tile % tiles_x + index % 3 - 1
    return y * tiles_x + x, (index < 9) & (y >= 0) & (y < tiles_y) & (x >= 0) & (x < tiles_x)


def count_neighbours(tile, tiles_y, tiles_x):
    """Return how many of the 3 x 3 tiles around a tile are in the image."""
    y = tile // tiles_x
    x = tile % tiles_x
    return (min(y + 2, tiles_y) - max(y - 1, 0)) * (min(x + 2, tiles_x) - max(x - 1, 0))


def counter_offset(stage, image, tile, block, batch, tiles, blocks):
    """Return the workspace offset at which arrivals for an item of a stage after the first are counted.

    `block` of `blocks` tells apart items that read different channels. Where all blocks of a tile read the same
    channels, they share one counter: block 0 of 1.
    """
    return 64 + (((stage - 1) * batch + image) * tiles + tile) * blocks + block


def workspace_size(stages, batch, tiles, blocks):
    """Return the elements of the workspace."""
    return counter_offset(stages, 0, 0, 0, batch, tiles, blocks)
