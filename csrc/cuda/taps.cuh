// Where an upsampled pixel lies between the pixels of the source, as torch.nn.functional.interpolate places it.
#pragma once
#include <device/threads.cuh>

namespace lwrn_fast::cuda {

struct Tap {
  int64_t low, high;  // the source's pixels before and after
  float high_weight;
};

// The place is a fraction of whole numbers, so only its division is rounded, and the weight is right to the last bit
// where the denominator is below 2**24.
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

// a and b weighted. A weight of 0 counts, so that it makes an infinity NaN, as in PyTorch.
LWRN_DEVICE float between(float a, float b, float high_weight) { return a * (1.0f - high_weight) + b * high_weight; }

}  // namespace lwrn_fast::cuda
