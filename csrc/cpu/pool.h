// The 5x5 stride-1 maximum of a tile, written as the panel of pixels that the matrix multiplication reads.
#pragma once
#include "gemm.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

// Rows and columns of the largest tile.
constexpr int kPoolRows = 8, kPoolColumns = 64;
// Columns that two windows side by side see, each in a slot.
constexpr int kPoolSlots = 6;
// Floats of a slot: six slots stay in the nearest cache.
constexpr int64_t kPoolSlot = 1024;
// Floats of all slots.
constexpr int64_t kPoolScratch = kPoolSlots * kPoolSlot;

// The vectors that are pooled: floats, whatever the map holds.
template <class T, class P>
struct Pooled {
  using Cell = float;  // an element of the scratch memory
  using Vector = vf;
  static constexpr int64_t kLanes = kWidth;

  static Vector read(const T* from) { return load(from); }
  static Vector read_first(const T* from, int64_t count) { return load_first(from, count); }
  static Vector fetch(const Cell* from) { return load(from); }
  static void keep(Cell* to, Vector x) { store(to, x); }
  static Vector maximum(Vector a, Vector b) { return max_nan(a, b); }
  static void write(P* to, Vector x) { store(to, x); }
};

#if defined(__AVX512BF16__)
// bfloat16 as whole numbers in the same order, twice as many at a time; NaN is the largest of them.
template <>
struct Pooled<bf16, bf16> {
  using Cell = int16_t;
  using Vector = __m512i;
  static constexpr int64_t kLanes = 32;

  static Vector read(const bf16* from) { return number(_mm512_loadu_si512(from)); }
  static Vector read_first(const bf16* from, int64_t count) {
    return number(_mm512_maskz_loadu_epi16((__mmask32{1} << count) - 1, from));
  }
  static Vector fetch(const Cell* from) { return _mm512_loadu_si512(from); }
  static void keep(Cell* to, Vector x) { _mm512_storeu_si512(to, x); }
  static Vector maximum(Vector a, Vector b) { return _mm512_max_epi16(a, b); }
  static void write(bf16* to, Vector x) { _mm512_storeu_si512(to, turned(x)); }

 private:
  // Below 0 the order of the bits is the reverse of the numbers'; turned twice, they are as they were.
  static Vector turned(Vector x) {
    return _mm512_xor_si512(x, _mm512_and_si512(_mm512_srai_epi16(x, 15), _mm512_set1_epi16(0x7fff)));
  }
  static Vector number(Vector bits) {
    const Vector magnitude = _mm512_and_si512(bits, _mm512_set1_epi16(0x7fff));
    const __mmask32 nan = _mm512_cmpgt_epi16_mask(magnitude, _mm512_set1_epi16(0x7f80));
    return _mm512_mask_mov_epi16(turned(bits), nan, _mm512_set1_epi16(0x7fff));
  }
};
#endif

// Call out(i, maximum of in(i) .. in(i + 4)) for i < count, two at a time so that they share the maximum of four. in(i)
// is called once for each i < count + 4.
template <class Maximum, class In, class Out>
inline void slide_maximum(int64_t count, const Maximum& maximum, const In& in, const Out& out) {
  auto first = in(0), second = in(2), third = in(3);
  auto pair = maximum(in(1), second);
  int64_t i = 0;
#pragma GCC unroll 2
  for (; i + 2 <= count; i += 2) {
    const auto fourth = in(i + 4), fifth = in(i + 5);
    const auto next_pair = maximum(third, fourth);
    const auto middle = maximum(pair, next_pair);
    out(i, maximum(first, middle));
    out(i + 1, maximum(middle, fifth));
    first = second;
    second = fourth;
    third = fifth;
    pair = next_pair;
  }
  if (i < count) out(i, maximum(first, maximum(pair, maximum(third, in(i + 4)))));
}

// Pools a tile. source[row]: rows top - 2 .. top + rows + 2 of the map, clamped to it, each pixel `stride` elements
// from the next. Columns left .. left + columns of `width` are pooled. For a stride-1 5x5 maximum, clamping equals
// padding with -inf. Each row is read from left to right with all channels of a pixel, as far as the scratch memory
// allows: memory that is read in order is prefetched by the processor.
template <class T, class P>
struct PoolTile {
  using V = Pooled<T, P>;
  using Cell = typename V::Cell;
  using Vector = typename V::Vector;
  static constexpr int64_t kLanes = V::kLanes;
  static constexpr int64_t kSlot = kPoolSlot * static_cast<int64_t>(sizeof(float) / sizeof(Cell));

  const T* const* source;
  int64_t stride, width, channels, rows, left, columns;
  Cell* scratch;  // some columns pooled along themselves: [column % kPoolSlots][row][channel]
  P* panel;       // the result: [row][column][channel]

  // Return where a column of the tile begins in a row of the map, in elements.
  int64_t offset_of(int64_t column) const { return clamp(left + column - 2, 0, width - 1) * stride; }

  // Pool a column of the tile along itself, `count` channels from `channel` on.
  void pool_column(int64_t column, int64_t channel, int64_t count, int64_t span) const {
    Cell* slot = scratch + column % kPoolSlots * kSlot;
    const int64_t offset = offset_of(column) + channel;
    for (int64_t c = 0; c < count; c += kLanes) {
      const auto keep = [&](int64_t row, Vector maximum) { V::keep(slot + row * span + c, maximum); };
      if (count - c >= kLanes)
        slide_maximum(rows, V::maximum, [&](int64_t row) { return V::read(source[row] + offset + c); }, keep);
      else
        slide_maximum(
            rows, V::maximum, [&](int64_t row) { return V::read_first(source[row] + offset + c, count - c); }, keep);
    }
  }

  // Write one or two columns of the result, from the five or six that they see.
  template <int kColumns>
  void pool_across(int64_t column, int64_t channel, int64_t span) const {
    const int64_t panel_step = padded_channels<P>(channels);
    const Cell* slot[kColumns + 4];
    for (int i = 0; i < kColumns + 4; ++i) slot[i] = scratch + (column + i) % kPoolSlots * kSlot;
    for (int64_t row = 0; row < rows; ++row) {
      P* to = panel + (row * columns + column) * panel_step + channel;
      for (int64_t c = 0; c < span; c += kLanes) {
        const auto in = [&](int i) { return V::fetch(slot[i] + row * span + c); };
        const Vector middle = V::maximum(V::maximum(in(1), in(2)), V::maximum(in(3), in(4)));
        V::write(to + c, V::maximum(in(0), middle));
        if constexpr (kColumns > 1) V::write(to + panel_step + c, V::maximum(middle, in(5)));
      }
    }
  }

  void pool_channels(int64_t channel, int64_t count) const {
    const int64_t span = round_up(count, kLanes);
    int64_t next = 0;
    for (int64_t column = 0; column < columns; column += 2) {
      const int64_t pair = min(2, columns - column);
      for (; next < column + pair + 4; ++next) pool_column(next, channel, count, span);
      pair > 1 ? pool_across<2>(column, channel, span) : pool_across<1>(column, channel, span);
    }
  }

  void run() const {
    const int64_t step = kSlot / rows / kLanes * kLanes;
    for (int64_t channel = 0; channel < channels; channel += step)
      pool_channels(channel, min(step, channels - channel));
  }
};

}  // namespace
}  // namespace lwrn_fast::LWRN_ISA
