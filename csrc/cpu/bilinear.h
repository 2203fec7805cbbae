// Bilinear interpolation: the source pixels and weights of an upsampled pixel, as in torch.nn.functional.interpolate.
#pragma once
#include "simd.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

struct Tap {
  int64_t low, high;  // source indices
  float low_weight, high_weight;
};

// Computed in double, so that the weights are right to the last bit of a float.
inline Tap tap_at(int64_t index, int64_t source_size, int64_t size, bool align_corners) {
  double position;
  if (align_corners)
    position = size > 1
                   ? static_cast<double>(index) * static_cast<double>(source_size - 1) / static_cast<double>(size - 1)
                   : 0;
  else
    position = (static_cast<double>(index) + 0.5) * static_cast<double>(source_size) / static_cast<double>(size) - 0.5;
  if (position < 0) position = 0;
  const int64_t low = min(static_cast<int64_t>(position), source_size - 1);
  const float high_weight = static_cast<float>(position - static_cast<double>(low));
  return {low, min(low + 1, source_size - 1), 1.0f - high_weight, high_weight};
}

}  // namespace
}  // namespace lwrn_fast::LWRN_ISA
