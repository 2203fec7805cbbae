// Argmax of 5x5 stride-1 windows, as PyTorch has it: the first maximum in row-major order, or the last NaN; and the
// sum, for each pixel, over the windows whose argmax it is.
//
// The position of an argmax is two bytes: its row and its column in the map, modulo 8, which no two positions of a
// window share. Rows are reduced first: each row to its first largest pixel, then the rows to the first largest of
// these. So the columns of argmaxes belong to pixels, whatever window asks, and the sum over 25 windows is one over 5
// rows and then one over 5 columns.
#pragma once
#include "gemm.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

// Size of a window, and the distance from its centre to its edge, in pixels.
constexpr int kWindow = 5, kReach = 2;

struct Argmax {
  vf value;
  vc position;  // row or column, modulo 8
};

inline vc position_code(int64_t position) { return codes(static_cast<int>(position & 7)); }

// Return the larger of two; `a` comes before `b` in the window.
inline Argmax max_of(const Argmax& a, const Argmax& b) {
  const mask wins = greater_or_nan(b.value, a.value);
  return {choose(wins, b.value, a.value), choose(wins, b.position, a.position)};
}

// Call out(i, argmax of in(i) .. in(i + 4)) for i < count, two at a time, which share the argmax of four.
template <class In, class Out>
inline void slide_argmax(int64_t count, const In& in, const Out& out) {
  Argmax pair = max_of(in(1), in(2));
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    const Argmax next_pair = max_of(in(i + 3), in(i + 4)), middle = max_of(pair, next_pair);
    out(i, max_of(in(i), middle));
    out(i + 1, max_of(middle, in(i + 5)));
    pair = next_pair;
  }
  if (i < count) out(i, max_of(in(i), max_of(pair, max_of(in(i + 3), in(i + 4)))));
}

// Return the sum of value(k) over the windows k, low <= k <= high, whose argmax, position_of(k), is at `position`.
template <class Value, class PositionOf>
inline vf sum_where_argmax(int64_t low, int64_t high, vc position, const Value& value, const PositionOf& position_of) {
  vf sum = splat(0.0f);
  const auto step = [&](int64_t k) { sum = add(sum, keep(equal(position_of(k), position), value(k))); };
  if (low == 0 && high == kWindow - 1) {
#pragma GCC unroll 5
    for (int64_t k = 0; k < kWindow; ++k) step(k);
  } else {
    for (int64_t k = low; k <= high; ++k) step(k);
  }
  return sum;
}

// The windows around `position` whose centre lies within 0 .. length are first_window() to last_window(), counted from
// `position` - kReach.
inline int64_t first_window(int64_t position) { return max(0, kReach - position); }
inline int64_t last_window(int64_t position, int64_t length) {
  return min(kWindow - 1, length - 1 + kReach - position);
}

}  // namespace
}  // namespace lwrn_fast::LWRN_ISA
