// The 5x5 stride-1 maximum of a tile, written as the panel of pixels that the matrix multiplication reads.
#pragma once
#include "gemm.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

constexpr int kPoolRows = 8, kPoolColumns = 64;  // the largest tile
constexpr int kPoolVectors = 64 / kWidth;        // channels pooled together, in vectors
constexpr int kPoolAhead = 4;                    // columns fetched ahead
constexpr int kPoolScratch = kPoolRows * (kPoolColumns + 4) * kPoolVectors * kWidth;  // floats

// out[i] = maximum of in[i .. i + 4] for i < count, two at a time so that they share the maximum of four.
// in(i) is asked once for each i < count + 4.
template <class In, class Out>
inline void slide_maximum(int64_t count, const In& in, const Out& out) {
  vf first = in(0), second = in(2), third = in(3);
  vf pair = max_nan(in(1), second);
  int64_t i = 0;
#pragma GCC unroll 2
  for (; i + 2 <= count; i += 2) {
    const vf fourth = in(i + 4), fifth = in(i + 5);
    const vf next_pair = max_nan(third, fourth);
    const vf middle = max_nan(pair, next_pair);
    out(i, max_nan(first, middle));
    out(i + 1, max_nan(middle, fifth));
    first = second;
    second = fourth;
    third = fifth;
    pair = next_pair;
  }
  if (i < count) out(i, max_nan(first, max_nan(pair, max_nan(third, in(i + 4)))));
}

// source[row]: rows top - 2 .. top + rows + 2 of the map, clamped to it, each pixel `stride` elements from the next.
// Columns left .. left + columns of `width` are pooled. Clamping equals padding with -inf for a window of this shape.
template <class T, class P>
struct PoolTile {
  const T* const* source;
  int64_t stride, width, planes, rows, left, columns;
  float* scratch;  // the tile pooled along its columns: [row][column][vector of channels]
  P* panel;        // the result: [row][column][channel]

  // Where a column of the scratch memory is in a row of the map, in elements.
  int64_t offset_of(int64_t column) const { return clamp(left + column - 2, 0, width - 1) * stride; }

  // kVectors vectors of channels from `channel` on; read(p) takes one from memory.
  template <int kVectors, class Read>
  void pool_channels(int64_t channel, const Read& read) const {
    constexpr int step = kVectors * kWidth;
    const int64_t row_step = (columns + 4) * step, panel_step = padded_planes<P>(planes);
    for (int64_t column = 0; column < columns + 4; ++column) {
      const int64_t offset = offset_of(column) + channel;
      if constexpr (sizeof(T) == 4) {  // 16-bit maps, half the bytes, gain nothing
        const int64_t ahead = offset_of(column + kPoolAhead) + channel;
        for (int64_t row = 0; row < rows + 4; ++row)
          for (int c = 0; c < step; c += 64 / 4) __builtin_prefetch(source[row] + ahead + c);  // by cache lines
      }
      for (int v = 0; v < kVectors; ++v) {
        float* to = scratch + column * step + v * kWidth;
        slide_maximum(
            rows, [&](int64_t row) { return read(source[row] + offset + v * kWidth); },
            [&](int64_t row, vf maximum) { store(to + row * row_step, maximum); });
      }
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int v = 0; v < kVectors; ++v) {
        const float* from = scratch + row * row_step + v * kWidth;
        P* to = panel + row * columns * panel_step + channel + v * kWidth;
        slide_maximum(
            columns, [&](int64_t column) { return load(from + column * step); },
            [&](int64_t column, vf maximum) { store(to + column * panel_step, maximum); });
      }
    }
  }

  void run() const {
    int64_t channel = 0;
    for (; channel + kPoolVectors * kWidth <= planes; channel += kPoolVectors * kWidth)
      pool_channels<kPoolVectors>(channel, [](const T* p) { return load(p); });
    for (; channel + kWidth <= planes; channel += kWidth) pool_channels<1>(channel, [](const T* p) { return load(p); });
    const int64_t left_over = planes - channel;
    if (left_over > 0) pool_channels<1>(channel, [&](const T* p) { return load_first(p, left_over); });
  }
};

}  // namespace
}  // namespace lwrn_fast::LWRN_ISA
