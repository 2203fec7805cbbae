// The order in which the tiles of a chain of stages are worked on, and the tiles that each of them waits for.
//
// All stages advance together, a band of rows in each step: stage i works one band and two rows behind stage i - 1, so
// that the rows it pools were written in earlier steps and only a ring of rows of each stage exists. Workers take tiles
// by tickets, in the order of steps, and begin one when the steps before the last are complete, and of the last step
// the stage before its own. A ticket waits only for earlier tickets, so workers may even run one after another.
#pragma once
#include <sched.h>

#include <atomic>

#include "../crp.h"
#include "simd.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

struct Tile {
  int64_t image, top, left, rows, columns;
};

struct Wavefront {
  int64_t stages, height, width;
  int64_t band;    // rows that a stage advances in one step; the height itself for one step per stage
  int64_t images;  // images that advance together
  int64_t tile_rows, tile_columns;

  int64_t skew() const { return band < height ? 2 : 0; }  // rows that a stage lags behind, beyond one band
  int64_t steps() const { return ceil_div(height + skew() * (stages - 1), band) + stages - 1; }

  // A stage has the rows from top() to bottom() in a step.
  int64_t top(int64_t stage, int64_t step) const { return clamp((step - stage) * band - skew() * stage, 0, height); }
  int64_t bottom(int64_t stage, int64_t step) const { return top(stage, step + 1); }
  int64_t rows(int64_t stage, int64_t step) const { return bottom(stage, step) - top(stage, step); }

  // Return how many rows of a stage's output exist: while a step writes, the step before may still read the rows that
  // the next stage pools and those that the last stage sums.
  int64_t ring_rows(int64_t stage) const {
    const int64_t pooled = 3 * band + 4, summed = (stages - stage + 1) * band + skew() * (stages - 1 - stage);
    return min(height, max(pooled, summed));
  }

  int64_t down(int64_t stage, int64_t step) const { return ceil_div(rows(stage, step), tile_rows); }
  int64_t across() const { return ceil_div(width, tile_columns); }
  int64_t tiles(int64_t stage, int64_t step) const { return images * down(stage, step) * across(); }

  Tile tile(int64_t stage, int64_t step, int64_t index) const {
    const int64_t column = index % across(), row = index / across() % down(stage, step);
    const int64_t image = index / across() / down(stage, step);
    const int64_t first = row * rows(stage, step) / down(stage, step), left = column * width / across();
    return {image, top(stage, step) + first, left, (row + 1) * rows(stage, step) / down(stage, step) - first,
            (column + 1) * width / across() - left};
  }

  int64_t progress_bytes() const { return round_up(steps() * stages * static_cast<int64_t>(sizeof(int64_t)), 64); }
};

// The tiles that are left in each step. memory: progress_bytes() of it, in use until the last worker is done.
class Progress {
 public:
  Progress(const Wavefront& wave, void* memory) : wave_(wave), left_(static_cast<std::atomic<int64_t>*>(memory)) {
    for (int64_t step = 0; step < wave.steps(); ++step)
      for (int64_t stage = 0; stage < wave.stages; ++stage)
        left(stage, step).store(wave.tiles(stage, step), std::memory_order_relaxed);
  }

  // Run one worker: call body(stage, step, index of the tile in the step, tile) for every tile that it takes.
  template <class Body>
  void work(const Body& body) {
    int64_t ticket = next_.fetch_add(1, std::memory_order_relaxed), before = 0;
    for (int64_t step = 0; step < wave_.steps(); ++step) {
      for (int64_t stage = 0; stage < wave_.stages; ++stage) {
        const int64_t tiles = wave_.tiles(stage, step);
        for (; ticket < before + tiles; ticket = next_.fetch_add(1, std::memory_order_relaxed)) {
          wait_for_rows(stage, step);
          body(stage, step, ticket - before, wave_.tile(stage, step, ticket - before));
          left(stage, step).fetch_sub(1, std::memory_order_release);
        }
        before += tiles;
      }
    }
  }

 private:
  std::atomic<int64_t>& left(int64_t stage, int64_t step) { return left_[step * wave_.stages + stage]; }

  // Every tile of step - 2 waited for step - 4 and before, so looking at two steps covers all.
  void wait_for_rows(int64_t stage, int64_t step) {
    if (stage > 0) wait(stage - 1, step - 1);
    for (int64_t earlier = step - 3; earlier <= step - 2; ++earlier)
      for (int64_t any = 0; any < wave_.stages; ++any) wait(any, earlier);
  }

  void wait(int64_t stage, int64_t step) {
    if (step < 0) return;
    for (int64_t spins = 0; left(stage, step).load(std::memory_order_acquire) > 0; ++spins) {
      if (spins < 1000)
        pause();
      else
        sched_yield();
    }
  }

  const Wavefront& wave_;
  std::atomic<int64_t>* left_;
  std::atomic<int64_t> next_{0};
};

}  // namespace
}  // namespace lwrn_fast::LWRN_ISA
