// Sums of the outer products of pixels' channels: the gradient of a 1x1 convolution's weight.
#pragma once
#include "gemm.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

// Strips of MR channels of the left operand, each the rows of a register tile.
inline int64_t strips(int64_t channels) { return ceil_div(channels, MR); }

// Write packed[panel][NR], the channels of a pixel or of a row of a weight, panels `panel_stride` floats apart;
// channels beyond the last are zero.
template <class T>
inline void pack_panels(const T* from, int64_t channels, float* packed, int64_t panel_stride) {
  for (int64_t panel = 0; panel < panels(channels); ++panel)
    for (int64_t v = 0; v < NR; v += kWidth) {
      const int64_t c = panel * NR + v;
      store(packed + panel * panel_stride + v, c < channels ? load_upto(from + c, channels - c) : splat(0.0f));
    }
}

// sums[row][NR] (+)= sum over pixels of left[pixel][row] * right[pixel][NR], for kRows rows. Strides in floats.
template <int kRows>
inline void add_outer(const float* left, int64_t left_stride, const float* right, int64_t right_stride, int64_t pixels,
                      bool accumulate, float* sums, int64_t sums_stride) {
  micro_kernel<kRows>(
      pixels, accumulate, [&](int row, int64_t pixel) { return splat(left[pixel * left_stride + row]); },
      [&](int64_t pixel, int v) { return load(right + pixel * right_stride + v * kWidth); },
      [&](int row) { return sums + row * sums_stride; });
}

}  // namespace
}  // namespace lwrn_fast::LWRN_ISA
