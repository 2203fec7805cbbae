// Sums of the outer products of pixels' channels, of which a 1x1 convolution's weight has its gradient.
#pragma once
#include "gemm.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

// Strips of kTilePixels channels of the left factor, each a register tile's rows.
inline int64_t strips(int64_t channels) { return ceil_div(channels, kTilePixels); }

// packed[panel][kPanel] of the channels of a pixel, or of a row of a weight, panels `panel_stride` apart; channels
// beyond the last are zero.
template <class T>
inline void pack_panels(const T* from, int64_t channels, float* packed, int64_t panel_stride) {
  for (int64_t panel = 0; panel < panels(channels); ++panel)
    for (int64_t v = 0; v < kPanel; v += kWidth) {
      const int64_t c = panel * kPanel + v;
      store(packed + panel * panel_stride + v, c < channels ? load_upto(from + c, channels - c) : splat(0.0f));
    }
}

// sums[kTilePixels][kPanel] (+)= sum over pixels of left[pixel][kTilePixels] * right[pixel][kPanel]; the pixels of
// right are packed.
inline void add_outer(const float* left, int64_t left_stride, const float* right, int64_t pixels, bool accumulate,
                      float* sums) {
  vf sum[kTilePixels][kPanelVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kTilePixels; ++r)
    for (int v = 0; v < kPanelVectors; ++v) sum[r][v] = splat(0.0f);
#pragma GCC unroll 4
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    vf value[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) value[v] = load(right + pixel * kPanel + v * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < kTilePixels; ++r) {
      const vf factor = splat(left[pixel * left_stride + r]);
      for (int v = 0; v < kPanelVectors; ++v) sum[r][v] = fma(factor, value[v], sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTilePixels; ++r)
    for (int v = 0; v < kPanelVectors; ++v) {
      float* to = sums + r * kPanel + v * kWidth;
      store(to, accumulate ? add(load(to), sum[r][v]) : sum[r][v]);
    }
}

}  // namespace
}  // namespace lwrn_fast::LWRN_ISA
