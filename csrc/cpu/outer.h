// Sums of the outer products of pixels' channels, of which a 1x1 convolution's weight has its gradient.
#pragma once
#include "gemm.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

// Strips of kTilePixels channels, in which the left factor of outer products is packed.
inline int64_t strips(int64_t planes) { return ceil_div(planes, kTilePixels); }

// packed[strip][pixel][kTilePixels] of `count` pixels; channels beyond the planes are zero.
inline void pack_strips(const float* pixels, int64_t stride, int64_t planes, int64_t count, float* packed) {
  constexpr size_t kBytes = kTilePixels * sizeof(float);
  const int64_t whole = planes / kTilePixels, rest = planes % kTilePixels;
  for (int64_t i = 0; i < count; ++i) {
    const float* pixel = pixels + i * stride;
    for (int64_t strip = 0; strip < whole; ++strip)
      std::memcpy(packed + (strip * count + i) * kTilePixels, pixel + strip * kTilePixels, kBytes);
    if (rest == 0) continue;
    float last[kTilePixels] = {};
    for (int64_t c = 0; c < rest; ++c) last[c] = pixel[whole * kTilePixels + c];
    std::memcpy(packed + (whole * count + i) * kTilePixels, last, kBytes);
  }
}

// packed[panel][kPanel] of the channels of a pixel, or of a row of a weight, panels `panel_stride` apart; channels
// beyond the planes are zero.
template <class T>
inline void pack_panels(const T* channels, int64_t planes, float* packed, int64_t panel_stride) {
  for (int64_t panel = 0; panel < panels(planes); ++panel)
    for (int64_t v = 0; v < kPanel; v += kWidth) {
      const int64_t c = panel * kPanel + v;
      store(packed + panel * panel_stride + v, c < planes ? load_upto(channels + c, planes - c) : splat(0.0f));
    }
}

// sums[kTilePixels][kPanel] (+)= sum over pixels of left[pixel][kTilePixels] * right[pixel][kPanel].
inline void add_outer_packed(const float* left, const float* right, int64_t pixels, bool accumulate, float* sums) {
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
      const vf factor = splat(left[pixel * kTilePixels + r]);
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
