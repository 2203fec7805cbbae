// Matrix multiplication of a few pixels by one panel of packed weights: the register tile and the order of its weights.
#pragma once
#include "simd.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

// A register tile holds kTilePixels x kPanel sums.
#if defined(__AVX512F__)
constexpr int kTilePixels = 12, kPanelVectors = 2;
#elif defined(__AVX2__) || defined(__x86_64__)
constexpr int kTilePixels = 6, kPanelVectors = 2;
#else
constexpr int kTilePixels = 10, kPanelVectors = 2;  // 32 vector registers
#endif
constexpr int kPanel = kPanelVectors * kWidth;

// What a pixel's channels are multiplied as: operand<T> is the type of the panel of pixels and of the packed weights.
template <class T>
struct Operand {
  using type = float;
};
#if defined(__AVX512BF16__)
template <>
struct Operand<bf16> {
  using type = bf16;
};
#endif

// Channels that one instruction multiplies and adds up, in a lane as wide as their sum.
template <class P>
constexpr int64_t kGroup = sizeof(float) / sizeof(P);

// Distance between two pixels of scratch memory with `channels` channels, in elements. A cache line more than whole
// vectors need: at a distance of a power of two, the pixels of a tile would compete for a few sets of the cache.
template <class E>
int64_t padded_channels(int64_t channels) {
  return round_up(channels, 16) + 64 / static_cast<int64_t>(sizeof(E));
}

// Elements of one panel of packed weights.
template <class T>
int64_t packed_panel(int64_t in_channels) {
  return round_up(in_channels, kGroup<typename Operand<T>::type>) * kPanel;
}

inline int64_t panels(int64_t out_channels) { return ceil_div(out_channels, kPanel); }

// At most this many products are added one to the other before they join the sum so far: a long chain of roundings
// would be less accurate than the libraries' own.
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr int64_t kChain = 128;
#else
constexpr int64_t kChain = 8;  // every product is rounded too
#endif
// Pixels multiplied together: they stay in the nearest caches while all the weights pass by.
constexpr int64_t kBlock = 48;
// Channels that a register tile meets before the next one begins, so that 32 KB of weights stay near; whole chains.
template <class P>
constexpr int64_t kDepth = 8192 / kPanel * kGroup<P>;
static_assert(kDepth<float> % kChain == 0);

// to[pixel][at + kPanel] (+)= pixels[pixel][k] * packed[k][kPanel], for kPixels pixels and `channels` values of k.
template <int kPixels>
inline void multiply_tile(const float* pixels, int64_t stride, const float* packed, int64_t channels, bool accumulate,
                          float* const* to, int64_t at) {
  vf sum[kPixels][kPanelVectors];
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p)
    for (int v = 0; v < kPanelVectors; ++v) sum[p][v] = splat(0.0f);
#pragma GCC unroll 4
  for (int64_t k = 0; k < channels; ++k) {
    vf weight[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) weight[v] = load(packed + k * kPanel + v * kWidth);
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p) {
      const vf pixel = splat(pixels[p * stride + k]);
      for (int v = 0; v < kPanelVectors; ++v) sum[p][v] = fma(pixel, weight[v], sum[p][v]);
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p)
    for (int v = 0; v < kPanelVectors; ++v) {
      float* place = to[p] + at + v * kWidth;
      store(place, accumulate ? add(load(place), sum[p][v]) : sum[p][v]);
    }
}

#if defined(__AVX512BF16__)
template <int kPixels>
inline void multiply_tile(const bf16* pixels, int64_t stride, const bf16* packed, int64_t channels, bool accumulate,
                          float* const* to, int64_t at) {
  vf sum[kPixels][kPanelVectors];
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p)
    for (int v = 0; v < kPanelVectors; ++v) sum[p][v] = splat(0.0f);
#pragma GCC unroll 4
  for (int64_t k = 0; k < channels; k += 2) {
    __m512bh weight[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v)
      weight[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(packed + k * kPanel + v * 2 * kWidth));
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p) {
      int32_t pair;
      std::memcpy(&pair, pixels + p * stride + k, sizeof pair);
      const __m512bh pixel = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
      for (int v = 0; v < kPanelVectors; ++v) sum[p][v] = _mm512_dpbf16_ps(sum[p][v], pixel, weight[v]);
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p)
    for (int v = 0; v < kPanelVectors; ++v) {
      float* place = to[p] + at + v * kWidth;
      store(place, accumulate ? add(load(place), sum[p][v]) : sum[p][v]);
    }
}
#endif

// The same for any count of pixels up to kTilePixels.
template <class P, int kPixels = kTilePixels>
inline void multiply_pixels(int64_t count, const P* pixels, int64_t stride, const P* packed, int64_t channels,
                            bool accumulate, float* const* to, int64_t at) {
  if constexpr (kPixels > 0) {
    if (count == kPixels)
      multiply_tile<kPixels>(pixels, stride, packed, channels, accumulate, to, at);
    else
      multiply_pixels<P, kPixels - 1>(count, pixels, stride, packed, channels, accumulate, to, at);
  }
}

// One product of a sum of products: the pixels of a map and the packed weights that they meet.
template <class P>
struct Factor {
  const P* pixels;
  int64_t stride;  // from pixel to pixel, in elements
  const P* packed;
  int64_t packed_stride;  // from panel to panel
  int64_t channels;
};

// Pixels that will be multiplied soon: the processor does not foresee where a block of them begins.
template <class P>
void prefetch(const Factor<P>& factor, int64_t first, int64_t last) {
  for (int64_t pixel = first; pixel < last; ++pixel)
    for (int64_t c = 0; c < factor.channels; c += 64 / static_cast<int64_t>(sizeof(P)))
      __builtin_prefetch(factor.pixels + pixel * factor.stride + c, 0, 2);
}

// Distance between the sums of two pixels.
inline int64_t sums_stride(int64_t out_channels) { return padded_channels<float>(panels(out_channels) * kPanel); }
// Bytes of the sums that multiply_blocks() needs.
inline int64_t sums_bytes(int64_t out_channels) {
  return kBlock * sums_stride(out_channels) * static_cast<int64_t>(sizeof(float));
}

// The sum over `factors` of pixels times weights, for `count` pixels. It is made in place(i), for pixel i, a row of
// whole panels; finish(i, row) takes it from there before the pixels of later blocks are placed. Pixels are dealt
// evenly to register tiles, and these to blocks: a tile of one or two pixels wastes most of the machine.
template <class P, class Place, class Finish>
void multiply_placed(int64_t count, const Factor<P>* factors, int64_t factor_count, int64_t out_channels,
                     const Place& place, const Finish& finish) {
  const int64_t tiles = ceil_div(count, kTilePixels), blocks = ceil_div(tiles, kBlock / kTilePixels);
  const int64_t panel_count = panels(out_channels);
  const auto edge = [&](int64_t tile) { return tile * count / tiles; };
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first_tile = block * tiles / blocks, last_tile = (block + 1) * tiles / blocks;
    const int64_t begin = edge(first_tile), many = edge(last_tile) - begin;
    const int64_t next = block + 1 < blocks ? edge((block + 2) * tiles / blocks) - edge(last_tile) : 0;
    // Where the share of the next block's pixels begins that is fetched while a panel is multiplied.
    const auto ahead = [&](int64_t panel) { return edge(last_tile) + panel * next / panel_count; };
    float* to[kBlock];
    for (int64_t i = 0; i < many; ++i) to[i] = place(begin + i, i);
    for (int64_t i = 0; i < many && factor_count == 0; ++i)
      std::memset(to[i], 0, static_cast<size_t>(panel_count * kPanel) * sizeof(float));
    for (int64_t panel = 0; panel < panel_count; ++panel) {
      for (int64_t i = 0; i < factor_count; ++i) {
        const Factor<P>& f = factors[i];
        prefetch(f, ahead(panel), ahead(panel + 1));
        for (int64_t depth = 0; depth < f.channels; depth += kDepth<P>) {
          const int64_t end = smaller(depth + kDepth<P>, f.channels);
          for (int64_t tile = first_tile; tile < last_tile; ++tile) {
            const int64_t first = edge(tile), pixels = edge(tile + 1) - first;
            for (int64_t k = depth; k < end; k += kChain * kGroup<P>)
              multiply_pixels(pixels, f.pixels + first * f.stride + k, f.stride,
                              f.packed + panel * f.packed_stride + k * kPanel, smaller(kChain * kGroup<P>, end - k),
                              i + k > 0, to + first - begin, panel * kPanel);
          }
        }
      }
    }
    for (int64_t i = 0; i < many; ++i) finish(begin + i, to[i]);
  }
}

// The same in scratch memory, sums_bytes(out_channels) of it.
template <class P, class Finish>
void multiply_blocks(int64_t count, const Factor<P>* factors, int64_t factor_count, int64_t out_channels, float* sums,
                     const Finish& finish) {
  const int64_t stride = sums_stride(out_channels);
  multiply_placed(
      count, factors, factor_count, out_channels, [&](int64_t, int64_t i) { return sums + i * stride; }, finish);
}

}  // namespace
}  // namespace lwrn_fast::LWRN_ISA
