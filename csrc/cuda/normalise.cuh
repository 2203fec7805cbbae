// The input of a network from pictures. A thread computes a pixel, all three colours, from the pixels that it covers;
// neighbouring threads find most of theirs in the same cache lines.
#pragma once
#include "../normalise.h"
#include "tile.cuh"

namespace lwrn_fast::cuda {

template <class Kind>
struct Normalise {
  using Task = NormaliseArgs;
  static constexpr int kThreads = cuda::kThreads, kPrograms = 4;

  LWRN_DEVICE static void run(const Task& task) {
    const int64_t pixels = task.batch * task.height * task.width;
    for (int64_t i = int64_t{block()} * kThreads + thread(); i < pixels; i += int64_t{blocks()} * kThreads) {
      const int64_t row = i / task.width, image = row / task.height;
      const Covered rows = covered_by(row - image * task.height, task.source_height, task.height);
      const Covered columns = covered_by(i - row * task.width, task.source_width, task.width);
      float sums[kColours] = {};
      for (int64_t y = rows.first; y < rows.end; ++y) {
        const uint8_t* const from = task.images + image * task.stride_n + y * task.stride_h;
        const float row_weight = weight_of(rows, y);
        for (int64_t x = columns.first; x < columns.end; ++x) {
          const float weight = row_weight * weight_of(columns, x);
#pragma unroll
          for (int colour = 0; colour < kColours; ++colour)
            sums[colour] += weight * static_cast<float>(from[kColours * x + colour]);
        }
      }
      char* const to = static_cast<char*>(task.out) + i * kColours * Kind::kBytes;
#pragma unroll
      for (int colour = 0; colour < kColours; ++colour)
        store_number<Kind>(to + colour * Kind::kBytes, (sums[colour] - task.mean[colour]) / task.deviation[colour]);
    }
  }
};

}  // namespace lwrn_fast::cuda
