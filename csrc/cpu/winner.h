// Which pixel of each 5x5 window is its maximum, as PyTorch has it: the first in row-major order, or the last NaN; and
// the sum, for each pixel, over the windows whose maximum it is.
//
// A winner is one byte: its column of the window in the low bits and its row above them. Rows go first: of the pixels
// of a row the first largest, then of the rows the first largest. So the columns of winners belong to pixels, whatever
// window asks, and the sum over 25 windows is one over 5 rows and then one over 5 columns.
#pragma once
#include "gemm.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

constexpr int kReach = 2;   // of a window around its pixel
constexpr int kWindow = 5;  // pixels
constexpr int kColumnBits = 0x07;
constexpr int kRowBits = 0x70, kRowShift = 4;

struct Winner {
  vf value;
  vc place;
};

// The first largest, or the last NaN, of value(k) for low <= k <= high; its place is k << shift.
template <class Value>
inline Winner first_maximum(int64_t low, int64_t high, int shift, const Value& value) {
  Winner best{value(low), codes(static_cast<int>(low) << shift)};
  const auto step = [&](int64_t k) {
    const vf next = value(k);
    const mask wins = greater_or_nan(next, best.value);
    best = {choose(wins, next, best.value), choose(wins, codes(static_cast<int>(k) << shift), best.place)};
  };
  if (low == 0 && high == kWindow - 1) {
#pragma GCC unroll 4
    for (int64_t k = 1; k < kWindow; ++k) step(k);
  } else {
    for (int64_t k = low + 1; k <= high; ++k) step(k);
  }
  return best;
}

// The sum of value(k) over the windows k, low <= k <= high, around a pixel that is their winner: window k lies
// k - kReach beyond the pixel, which is at its place 4 - k. codes_at(k): the winner of window k.
template <class Value, class Codes>
inline vf sum_where_won(int64_t low, int64_t high, int bits, int shift, const Value& value, const Codes& codes_at) {
  vf sum = splat(0.0f);
  const auto step = [&](int64_t k) {
    const int place = static_cast<int>(kWindow - 1 - k) << shift;
    sum = add(sum, keep(has(codes_at(k), bits, place), value(k)));
  };
  if (low == 0 && high == kWindow - 1) {
#pragma GCC unroll 5
    for (int64_t k = 0; k < kWindow; ++k) step(k);
  } else {
    for (int64_t k = low; k <= high; ++k) step(k);
  }
  return sum;
}

// The places of a window around `at` that lie within 0 .. length: from low_place() to high_place().
inline int64_t low_place(int64_t at) { return larger(0, kReach - at); }
inline int64_t high_place(int64_t at, int64_t length) { return smaller(kWindow - 1, length - 1 + kReach - at); }

}  // namespace
}  // namespace lwrn_fast::LWRN_ISA
