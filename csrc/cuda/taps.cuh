// The taps of linear interpolation, at the positions of torch.nn.functional.interpolate.
#pragma once
#include <device/threads.cuh>

namespace lwrn_fast::cuda {

struct Tap {
  int64_t low, high;  // source pixels before and after the position
  float high_weight;
};

// Return the taps of an output pixel. The position is a fraction of integers, so only its division rounds: the weight
// is correctly rounded where the denominator is below 2**24.
LWRN_DEVICE Tap tap_at(int64_t index, int64_t source_size, int64_t size, bool align_corners) {
  int64_t numerator = index * (source_size - 1), denominator = size > 1 ? size - 1 : 1;
  if (!align_corners) {
    numerator = (2 * index + 1) * source_size - size;
    if (numerator < 0) numerator = 0;
    denominator = 2 * size;
  }
  const int64_t low = numerator / denominator, remainder = numerator - low * denominator;
  return {low, low + 1 < source_size ? low + 1 : low, static_cast<float>(remainder) / static_cast<float>(denominator)};
}

// Interpolate between a and b. A weight of 0 is multiplied too: it makes an infinity NaN, as in PyTorch.
LWRN_DEVICE float between(float a, float b, float high_weight) { return a * (1.0f - high_weight) + b * high_weight; }

}  // namespace lwrn_fast::cuda
