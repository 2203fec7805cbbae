// The 5x5 stride-1 maximum of a tile, written as the panel of pixels that the matrix multiplication reads.
#pragma once
#include "gemm.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

constexpr int kPoolRows = 8, kPoolColumns = 64;           // the largest tile
constexpr int kPoolSlots = 6;                             // columns that two windows side by side see
constexpr int64_t kPoolSlot = 1024;                       // floats of one of them: six stay in the nearest cache
constexpr int64_t kPoolScratch = kPoolSlots * kPoolSlot;  // floats

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
// Each row is read from left to right with all channels of a pixel, as far as the scratch memory allows: in the order
// in which they lie, the processor fetches them ahead by itself.
template <class T, class P>
struct PoolTile {
  const T* const* source;
  int64_t stride, width, planes, rows, left, columns;
  float* scratch;  // some columns pooled along themselves: [column % kPoolSlots][row][channel]
  P* panel;        // the result: [row][column][channel]

  // Where a column of the tile is in a row of the map, in elements.
  int64_t offset_of(int64_t column) const { return clamp(left + column - 2, 0, width - 1) * stride; }

  // A column of the tile, `count` channels from `channel` on.
  void pool_column(int64_t column, int64_t channel, int64_t count, int64_t span) const {
    float* slot = scratch + column % kPoolSlots * kPoolSlot;
    const int64_t offset = offset_of(column) + channel;
    for (int64_t c = 0; c < count; c += kWidth) {
      const auto write = [&](int64_t row, vf maximum) { store(slot + row * span + c, maximum); };
      if (count - c >= kWidth)
        slide_maximum(rows, [&](int64_t row) { return load(source[row] + offset + c); }, write);
      else
        slide_maximum(rows, [&](int64_t row) { return load_first(source[row] + offset + c, count - c); }, write);
    }
  }

  // One or two columns of the result, from the five or six that they see.
  template <int kColumns>
  void pool_across(int64_t column, int64_t channel, int64_t span) const {
    const int64_t panel_step = padded_planes<P>(planes);
    const float* slot[kColumns + 4];
    for (int i = 0; i < kColumns + 4; ++i) slot[i] = scratch + (column + i) % kPoolSlots * kPoolSlot;
    for (int64_t row = 0; row < rows; ++row) {
      P* to = panel + (row * columns + column) * panel_step + channel;
      for (int64_t c = 0; c < span; c += kWidth) {
        const int64_t at = row * span + c;
        const vf middle =
            max_nan(max_nan(load(slot[1] + at), load(slot[2] + at)), max_nan(load(slot[3] + at), load(slot[4] + at)));
        store(to + c, max_nan(load(slot[0] + at), middle));
        if constexpr (kColumns > 1) store(to + panel_step + c, max_nan(middle, load(slot[5] + at)));
      }
    }
  }

  void pool_planes(int64_t channel, int64_t count) const {
    const int64_t span = round_up(count, kWidth);
    int64_t next = 0;
    for (int64_t column = 0; column < columns; column += 2) {
      const int64_t many = smaller(2, columns - column);
      for (; next < column + many + 4; ++next) pool_column(next, channel, count, span);
      many > 1 ? pool_across<2>(column, channel, span) : pool_across<1>(column, channel, span);
    }
  }

  void run() const {
    const int64_t most = kPoolSlot / rows / 16 * 16;
    for (int64_t channel = 0; channel < planes; channel += most) pool_planes(channel, smaller(most, planes - channel));
  }
};

}  // namespace
}  // namespace lwrn_fast::LWRN_ISA
