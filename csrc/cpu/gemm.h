// Matrix multiplication: the micro-kernel, the order of packed weights, and the loops around both. Names as in BLIS and
// XNNPACK: a register tile holds MR x NR sums, a panel of packed weights NR output channels.
#pragma once
#include <type_traits>

#include "simd.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

// Rows of a register tile. Its MR x kNrVectors sums stay in vector registers, with a few left for the operands.
#if defined(__AVX512F__)
constexpr int MR = 12;
#elif defined(__AVX2__) || defined(__x86_64__)
constexpr int MR = 6;
#else
constexpr int MR = 10;  // 32 vector registers
#endif
// Columns of a register tile, in vectors and in floats.
constexpr int kNrVectors = 2;
constexpr int NR = kNrVectors * kWidth;

// The element type of pixels and packed weights as operands, for maps of T.
#if defined(__AVX512BF16__)
template <class T>
using Operand = std::conditional_t<std::is_same_v<T, bf16>, bf16, float>;
#else
template <class T>
using Operand = float;
#endif

// Channels that one instruction multiplies and adds up, in a lane as wide as their sum.
template <class P>
constexpr int64_t KR = sizeof(float) / sizeof(P);

// Distance between two pixels of scratch memory with `channels` channels, in elements. A cache line more than whole
// vectors need: at a distance of a power of two, the pixels of a tile would compete for a few sets of the cache.
template <class E>
int64_t padded_channels(int64_t channels) {
  return round_up(channels, 16) + 64 / static_cast<int64_t>(sizeof(E));
}

// Elements of one panel of packed weights.
template <class T>
int64_t packed_panel(int64_t in_channels) {
  return round_up(in_channels, KR<Operand<T>>) * NR;
}

inline int64_t panels(int64_t out_channels) { return ceil_div(out_channels, NR); }

// Products that are added one to the other, at most, before they join the sum so far: a long chain of roundings would
// be less accurate than the libraries' own.
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr int64_t kMaxChain = 128;
#else
constexpr int64_t kMaxChain = 8;  // every product is rounded too
#endif
// Pixels that are multiplied together: they stay in the nearest caches while all the weights pass by.
constexpr int64_t MC = 48;
// Channels that a register tile reads before the next one begins, so that 32 KB of weights stay near; whole chains.
template <class P>
constexpr int64_t KC = 8192 / NR * KR<P>;
static_assert(KC<float> % kMaxChain == 0);

// KR channels of a pixel in every lane, and a vector of packed weights.
inline vf broadcast_group(const float* pixel) { return splat(*pixel); }
inline vf load_group(const float* packed) { return load(packed); }
#if defined(__AVX512BF16__)
inline __m512bh broadcast_group(const bf16* pixel) {
  int32_t pair;
  std::memcpy(&pair, pixel, sizeof pair);
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
}
inline __m512bh load_group(const bf16* packed) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(packed)); }
inline vf fma(__m512bh a, __m512bh b, vf c) { return _mm512_dpbf16_ps(c, a, b); }
#endif

// c(row)[NR] (+)= sum over k of a(row, k) * b(k, vector), for kRows rows and k < depth. a returns an element of its
// operand in every lane, b a vector of a panel, c a pointer.
template <int kRows, class A, class B, class C>
inline void micro_kernel(int64_t depth, bool accumulate, const A& a, const B& b, const C& c) {
  vf sum[kRows][kNrVectors];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kNrVectors; ++v) sum[row][v] = splat(0.0f);
#pragma GCC unroll 4
  for (int64_t k = 0; k < depth; ++k) {
    decltype(b(k, 0)) right[kNrVectors];
    for (int v = 0; v < kNrVectors; ++v) right[v] = b(k, v);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const auto left = a(row, k);
      for (int v = 0; v < kNrVectors; ++v) sum[row][v] = fma(left, right[v], sum[row][v]);
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kNrVectors; ++v) {
      float* to = c(row) + v * kWidth;
      store(to, accumulate ? add(load(to), sum[row][v]) : sum[row][v]);
    }
}

// Call body(std::integral_constant<int, count>) for 1 <= count <= MR.
template <int kRows = MR, class Body>
inline void with_rows(int64_t count, const Body& body) {
  if constexpr (kRows > 0) {
    if (count == kRows)
      body(std::integral_constant<int, kRows>());
    else
      with_rows<kRows - 1>(count, body);
  }
}

// The operands of one product of a sum of products: the pixels of a map and the packed weights that they meet.
template <class P>
struct Operands {
  const P* pixels;
  int64_t pixel_stride;  // elements
  const P* packed;
  int64_t panel_stride;  // elements
  int64_t channels;
};

// to[pixel][at + NR] (+)= pixels[pixel][k] * packed[k][NR], for `count` pixels, at most MR, and k < channels.
template <class P>
inline void multiply_tile(int64_t count, const P* pixels, int64_t pixel_stride, const P* packed, int64_t channels,
                          bool accumulate, float* const* to, int64_t at) {
  with_rows(count, [&](auto rows) {
    micro_kernel<rows()>(
        ceil_div(channels, KR<P>), accumulate,
        [&](int row, int64_t k) { return broadcast_group(pixels + row * pixel_stride + k * KR<P>); },
        [&](int64_t k, int v) { return load_group(packed + (k * NR + v * kWidth) * KR<P>); },
        [&](int row) { return to[row] + at; });
  });
}

// Fetch the pixels from `first` to `last`: the processor does not foresee where a block of them begins.
template <class P>
void prefetch(const Operands<P>& operands, int64_t first, int64_t last) {
  for (int64_t pixel = first; pixel < last; ++pixel)
    for (int64_t c = 0; c < operands.channels; c += 64 / static_cast<int64_t>(sizeof(P)))
      __builtin_prefetch(operands.pixels + pixel * operands.pixel_stride + c, 0, 2);
}

// Distance between the sums of two pixels, in floats.
inline int64_t sums_stride(int64_t out_channels) { return padded_channels<float>(panels(out_channels) * NR); }
// Bytes of the sums that multiply_blocks() needs.
inline int64_t sums_bytes(int64_t out_channels) {
  return MC * sums_stride(out_channels) * static_cast<int64_t>(sizeof(float));
}

// Write the sum over `operands` of pixels times weights, for `count` pixels. Pixel i's sums are made in row(i, its
// index in the block), as whole panels; finish(i, sums) takes them from there before the rows of later blocks are asked
// for. Pixels are dealt evenly to register tiles, and these to blocks: a tile of one or two pixels wastes most of the
// machine.
template <class P, class Row, class Finish>
void multiply_into(int64_t count, const Operands<P>* operands, int64_t operand_count, int64_t out_channels,
                   const Row& row, const Finish& finish) {
  constexpr int64_t kChain = kMaxChain * KR<P>;  // channels
  const int64_t tiles = ceil_div(count, MR), blocks = ceil_div(tiles, MC / MR);
  const int64_t panel_count = panels(out_channels);
  const auto edge = [&](int64_t tile) { return tile * count / tiles; };
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first_tile = block * tiles / blocks, last_tile = (block + 1) * tiles / blocks;
    const int64_t begin = edge(first_tile), size = edge(last_tile) - begin;
    const int64_t next = block + 1 < blocks ? edge((block + 2) * tiles / blocks) - edge(last_tile) : 0;
    // While a panel is multiplied, its share of the next block's pixels is fetched, from ahead(panel) on.
    const auto ahead = [&](int64_t panel) { return edge(last_tile) + panel * next / panel_count; };
    float* to[MC];
    for (int64_t i = 0; i < size; ++i) to[i] = row(begin + i, i);
    for (int64_t i = 0; i < size && operand_count == 0; ++i)
      std::memset(to[i], 0, static_cast<size_t>(panel_count * NR) * sizeof(float));
    for (int64_t panel = 0; panel < panel_count; ++panel) {
      for (int64_t i = 0; i < operand_count; ++i) {
        const Operands<P>& o = operands[i];
        prefetch(o, ahead(panel), ahead(panel + 1));
        for (int64_t depth = 0; depth < o.channels; depth += KC<P>) {
          const int64_t end = min(depth + KC<P>, o.channels);
          for (int64_t tile = first_tile; tile < last_tile; ++tile) {
            const int64_t first = edge(tile), pixels = edge(tile + 1) - first;
            for (int64_t k = depth; k < end; k += kChain)
              multiply_tile(pixels, o.pixels + first * o.pixel_stride + k, o.pixel_stride,
                            o.packed + panel * o.panel_stride + k * NR, min(kChain, end - k), i + k > 0,
                            to + first - begin, panel * NR);
          }
        }
      }
    }
    for (int64_t i = 0; i < size; ++i) finish(begin + i, to[i]);
  }
}

// The same with rows in scratch memory, sums_bytes(out_channels) of it.
template <class P, class Finish>
void multiply_blocks(int64_t count, const Operands<P>* operands, int64_t operand_count, int64_t out_channels,
                     float* sums, const Finish& finish) {
  const int64_t stride = sums_stride(out_channels);
  multiply_into(
      count, operands, operand_count, out_channels, [&](int64_t, int64_t i) { return sums + i * stride; }, finish);
}

}  // namespace
}  // namespace lwrn_fast::LWRN_ISA
