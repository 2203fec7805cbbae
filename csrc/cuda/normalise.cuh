// The input of a model from images. A thread computes the three colours of a pixel from the source pixels that it
// covers; neighbouring threads read mostly the same cache lines.
#pragma once
#include "../normalise.h"
#include "tile.cuh"

namespace lwrn_fast::cuda {

template <class Element>
struct Normalise {
  using Task = NormaliseArgs;
  static constexpr int kThreads = cuda::kThreads, kMinBlocksPerSm = 4;

  LWRN_DEVICE static void run(const Task& task) {
    const int64_t pixels = task.batch * task.height * task.width;
    for (int64_t i = int64_t{block()} * kThreads + thread(); i < pixels; i += int64_t{blocks()} * kThreads) {
      const int64_t row = i / task.width, image = row / task.height;
      const Covered rows = covered_by(row - image * task.height, task.source_height, task.height);
      const Covered columns = covered_by(i - row * task.width, task.source_width, task.width);
      float acc[kColours] = {};
      for (int64_t y = rows.first; y < rows.end; ++y) {
        const uint8_t* const from = task.images + image * task.stride_n + y * task.stride_h;
        const float row_weight = weight_of(rows, y);
        for (int64_t x = columns.first; x < columns.end; ++x) {
          const float weight = row_weight * weight_of(columns, x);
#pragma unroll
          for (int colour = 0; colour < kColours; ++colour)
            acc[colour] += weight * static_cast<float>(from[kColours * x + colour]);
        }
      }
      char* const to = static_cast<char*>(task.out) + i * kColours * Element::kBytes;
#pragma unroll
      for (int colour = 0; colour < kColours; ++colour)
        store_element<Element>(to + colour * Element::kBytes,
                               (acc[colour] - task.mean[colour]) / task.deviation[colour]);
    }
  }
};

}  // namespace lwrn_fast::cuda
