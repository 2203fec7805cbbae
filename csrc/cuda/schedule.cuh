// The schedule of one launch of crp: the items of the thread blocks, and the counters that they wait for.
//
// An item is one stage of one tile of one image, for one block of channels. A finished item increments a counter; an
// item of the next stage waits until all blocks of the 3 x 3 tiles around its own are counted. Thread blocks either
// draw tickets, which number the items so that each comes after all that it waits for, and any number of thread blocks
// finishes; or all of them run at once, and each has a tile of its own.
#pragma once
#include <device/flags.cuh>

namespace lwrn_fast::cuda {

// Offsets in the counters, 128 bytes apart: the next ticket, the thread blocks that have left, the items of each stage.
constexpr int kTickets = 0, kFinished = 32, kCounters = 64;

struct Schedule {
  int* counters;  // zero before and after the launch
  int batch, group, stages, tiles_y, tiles_x;
  int blocks;        // blocks of channels
  bool independent;  // a block of channels reads only the same block of the stage before

  LWRN_BOTH int tiles() const { return tiles_y * tiles_x; }
  LWRN_BOTH int items() const { return batch * stages * tiles() * blocks; }
};

struct Item {
  int stage, image, tile, block;
};

// Return the item of a ticket. All stages of a group of images come before the next group, so that the maps between the
// stages stay in the L2 cache.
LWRN_BOTH Item locate(const Schedule& s, int ticket) {
  const int per_image = s.tiles() * s.blocks, per_group = s.group * s.stages * per_image;
  const int first = ticket / per_group * s.group;
  const int images = s.batch - first < s.group ? s.batch - first : s.group;
  const int rest = ticket % per_group, in_stage = rest % (images * per_image);
  return {rest / (images * per_image), first + in_stage / per_image, in_stage % per_image / s.blocks,
          in_stage % s.blocks};
}

// Return the counter of the finished items of a tile in a stage before the last.
LWRN_DEVICE int* counter(const Schedule& s, int stage, int image, int tile, int block) {
  const int index = (stage * s.batch + image) * s.tiles() + tile;
  return s.counters + kCounters + (s.independent ? index * s.blocks + block : index);
}

LWRN_BOTH int counters_used(const Schedule& s) {
  return kCounters + (s.stages - 1) * s.batch * s.tiles() * (s.independent ? s.blocks : 1);
}

LWRN_DEVICE int next_ticket(const Schedule& s) { return add_relaxed(s.counters + kTickets, 1); }

// Wait until the 3 x 3 tiles that the item reads are finished. Each of nine threads polls one counter.
LWRN_DEVICE void await(const Schedule& s, const Item& item) {
  if (item.stage == 0) return;
  const int neighbour = opaque(thread());
  if (neighbour < 9) {
    const int y = item.tile / s.tiles_x + neighbour / 3 - 1, x = item.tile % s.tiles_x + neighbour % 3 - 1;
    if (y >= 0 && y < s.tiles_y && x >= 0 && x < s.tiles_x) {
      const int* finished = counter(s, item.stage - 1, item.image, y * s.tiles_x + x, item.block);
      const int all = s.independent ? 1 : s.blocks;
      while (load_acquire(finished) < all) {
      }
    }
  }
  sync();
}

// Count the item as finished, after all threads have stored its result.
LWRN_DEVICE void arrive(const Schedule& s, const Item& item) {
  sync();
  if (thread() == 0 && item.stage < s.stages - 1)
    add_release(counter(s, item.stage, item.image, item.tile, item.block), 1);
}

// Zero all counters in the last block that leaves. smem_word is shared memory.
LWRN_DEVICE void leave(const Schedule& s, int* smem_word) {
  if (thread() == 0) *smem_word = add_acquire_release(s.counters + kFinished, 1);
  sync();
  if (*smem_word != blocks() - 1) return;
  for (int i = thread(); i < counters_used(s); i += threads()) store_relaxed(s.counters + i, 0);
}

}  // namespace lwrn_fast::cuda
