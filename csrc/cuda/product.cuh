// The matrix product of a panel of pixels and a block of weights, both swizzled as in tile.cuh, with K along their
// rows. Three implementations share one layout of the accumulators over the threads of a block.
#pragma once
#include <device/mma.cuh>
#include <device/wgmma.cuh>

#include "tile.cuh"

namespace lwrn_fast::cuda {

// The accumulators of a block's kPixels (M) x kChannels (N) that a thread holds. kWarpsN warps divide the channels, and
// kWarpsM the pixels; a warp's accumulators are tiles of 16 pixels x 8 channels, in the layout of multiply_add().
template <int kPixels_, int kChannels_, int kWarpsN>
struct AccLayout {
  static constexpr int kPixels = kPixels_, kChannels = kChannels_;
  static constexpr int kWarpsM = kThreads / 32 / kWarpsN;
  static constexpr int kTilesM = kPixels / (16 * kWarpsM), kTilesN = kChannels / (8 * kWarpsN);
  static constexpr int kAccCount = 4 * kTilesM * kTilesN;
  static_assert(kTilesM * 16 * kWarpsM == kPixels && kTilesN * 8 * kWarpsN == kChannels && kTilesN % 2 == 0);

  LWRN_DEVICE static int first_pixel() { return thread() / 32 % kWarpsM * (16 * kTilesM); }
  LWRN_DEVICE static int first_channel() { return thread() / 32 / kWarpsM * (8 * kTilesN); }

  // Call use(pixel, channel, a, b) for each pixel and pair of channels, channel and channel + 1, of this thread.
  template <class Use>
  LWRN_DEVICE static void each_pair(const float (&acc)[kAccCount], const Use& use) {
    const int pixel = first_pixel() + thread() % 32 / 4, channel = first_channel() + thread() % 4 * 2;
#pragma unroll
    for (int m = 0; m < kTilesM; ++m)
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) {
        const float* tile = acc + 4 * (m * kTilesN + n);
        use(pixel + 16 * m, channel + 8 * n, tile[0], tile[1]);
        use(pixel + 16 * m + 8, channel + 8 * n, tile[2], tile[3]);
      }
  }
};

// Every product has these functions. add(): acc += panel (kPixels rows) * weights (kChannels rows), over 128 bytes of
// K; takes about kCycles of a multiprocessor. Each thread that wrote to the operands calls publish() and then sync()
// before it. wait(): returns when at most kPending of the latest additions still read the operands; call wait<0>()
// before acc is read.

// Multiplies by tensor cores, a warp at a time.
template <class Element, class L>
struct WarpProduct : L {
  static constexpr double kCycles =
      L::kPixels * L::kChannels * (Element::kBytes == 2 ? 64.0 / 1024 : 32.0 / 512);  // for add()

  LWRN_DEVICE static void publish() {}

  LWRN_DEVICE static void add(float (&acc)[L::kAccCount], const char* panel, const char* weights) {
    const int lane = thread() % 32;
    // A step takes two vectors of a row, so that it flips other bits of the swizzled offset than the lane does.
    const int rows = swizzled_offset(L::first_pixel() + lane % 16, lane / 16);
    const int columns = swizzled_offset(L::first_channel() + lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t a[L::kTilesM][4];
#pragma unroll
      for (int m = 0; m < L::kTilesM; ++m) load(a[m], panel + ((rows ^ 32 * step) + 16 * m * kRowBytes));
#pragma unroll
      for (int n = 0; n < L::kTilesN; n += 2) {
        uint32_t b[4];
        load(b, weights + ((columns ^ 32 * step) + 8 * n * kRowBytes));
#pragma unroll
        for (int m = 0; m < L::kTilesM; ++m) {
          float* tile = acc + 4 * (m * L::kTilesN + n);
          multiply_add<Element>(tile, a[m], b[0], b[1]);
          multiply_add<Element>(tile + 4, a[m], b[2], b[3]);
        }
      }
    }
  }

  template <int kPending>
  LWRN_DEVICE static void wait(float (&)[L::kAccCount]) {}

 private:
  LWRN_DEVICE static void load(uint32_t (&matrices)[4], const char* row) {
    load_matrices(matrices, row);
    if constexpr (Element::kBytes == 4) {
#pragma unroll
      for (uint32_t& word : matrices) word = to_tf32(word);
    }
  }
};

// Multiplies float32 without tensor cores: a * b + c, rounded once.
template <class L>
struct ExactProduct : L {
  static constexpr double kCycles = L::kPixels * L::kChannels * 32.0 / 100;

  LWRN_DEVICE static void publish() {}

  LWRN_DEVICE static void add(float (&acc)[L::kAccCount], const char* panel, const char* weights) {
    const int row = L::first_pixel() + thread() % 32 / 4, column = L::first_channel() + thread() % 4 * 2;
#pragma unroll 1
    for (int v = 0; v < kVectors; ++v) {
      Vector a[2 * L::kTilesM];
#pragma unroll
      for (int m = 0; m < 2 * L::kTilesM; ++m) a[m] = load_shared(panel + swizzled_offset(row + 8 * m, v));
#pragma unroll
      for (int i = 0; i < 2 * L::kTilesN; ++i) {
        const Vector b = load_shared(weights + swizzled_offset(column + i / 2 * 8 + i % 2, v));
#pragma unroll
        for (int m = 0; m < 2 * L::kTilesM; ++m) {
          float& sum = acc[4 * (m / 2 * L::kTilesN + i / 2) + m % 2 * 2 + i % 2];
          float part = 0;  // partial sums round less than one long sum
#pragma unroll
          for (int k = 0; k < 4; ++k) part = multiply_add(a[m].words[k], b.words[k], part);
          sum += part;
        }
      }
    }
  }

  template <int kPending>
  LWRN_DEVICE static void wait(float (&)[L::kAccCount]) {}
};

// Multiplies by Hopper's tensor cores, a warpgroup at a time, asynchronously to the threads.
template <class Element, class L>
struct WarpgroupProduct : L {
  static constexpr double kCycles = L::kPixels * L::kChannels * 64.0 / 1800;

  static_assert(L::kTilesM == 1 && L::kWarpsM % 4 == 0);

  LWRN_DEVICE static void publish() { fence_for_wgmma(); }

  LWRN_DEVICE static void add(float (&acc)[L::kAccCount], const char* panel, const char* weights) {
    panel += thread() / 128 * 4 % L::kWarpsM * (16 * kRowBytes);
    weights += L::first_channel() * kRowBytes;
    begin_wgmma();
#pragma unroll
    for (int step = 0; step < 4; ++step) multiply_wgmma<Element>(acc, panel, weights, step);
    commit_wgmma();
  }

  template <int kPending>
  LWRN_DEVICE static void wait(float (&acc)[L::kAccCount]) {
    wait_wgmma<kPending>(acc);
  }
};

}  // namespace lwrn_fast::cuda
