// Which pixel of each 5x5 window is its maximum, as PyTorch has it: the first in row-major order, or the last NaN; and
// the sum, for each pixel, over the windows whose maximum it is.
//
// A winner's place is two bytes: its row and its column in the map, modulo 8, which no two places of a window share.
// Rows go first: of the pixels of a row the first largest, then of the rows the first largest. So the columns of
// winners belong to pixels, whatever window asks, and the sum over 25 windows is one over 5 rows and then one over 5
// columns.
#pragma once
#include "gemm.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

constexpr int kReach = 2;   // of a window around its pixel
constexpr int kWindow = 5;  // pixels

struct Winner {
  vf value;
  vc place;
};

inline vc place_code(int64_t at) { return codes(static_cast<int>(at & 7)); }

// Of two winners, the first one's pixels before the second's.
inline Winner best_of(const Winner& a, const Winner& b) {
  const mask wins = greater_or_nan(b.value, a.value);
  return {choose(wins, b.value, a.value), choose(wins, b.place, a.place)};
}

// out(i, winner of in(i) .. in(i + 4)) for i < count, two at a time, which share the winner of four.
template <class In, class Out>
inline void slide_winner(int64_t count, const In& in, const Out& out) {
  Winner pair = best_of(in(1), in(2));
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    const Winner next_pair = best_of(in(i + 3), in(i + 4)), middle = best_of(pair, next_pair);
    out(i, best_of(in(i), middle));
    out(i + 1, best_of(middle, in(i + 5)));
    pair = next_pair;
  }
  if (i < count) out(i, best_of(in(i), best_of(pair, best_of(in(i + 3), in(i + 4)))));
}

// The sum of value(k) over the windows k, low <= k <= high, whose winner's place, place_of(k), is `place`.
template <class Value, class Places>
inline vf sum_where_won(int64_t low, int64_t high, vc place, const Value& value, const Places& place_of) {
  vf sum = splat(0.0f);
  const auto step = [&](int64_t k) { sum = add(sum, keep(equal(place_of(k), place), value(k))); };
  if (low == 0 && high == kWindow - 1) {
#pragma GCC unroll 5
    for (int64_t k = 0; k < kWindow; ++k) step(k);
  } else {
    for (int64_t k = low; k <= high; ++k) step(k);
  }
  return sum;
}

// The windows around `at` whose pixel lies within 0 .. length, counted from `at` - kReach: low_place() to high_place().
inline int64_t low_place(int64_t at) { return max(0, kReach - at); }
inline int64_t high_place(int64_t at, int64_t length) { return min(kWindow - 1, length - 1 + kReach - at); }

}  // namespace
}  // namespace lwrn_fast::LWRN_ISA
