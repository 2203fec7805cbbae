// The product of a panel of pixels and a block of weights, both matrices of tile.cuh with the depth along their rows.
// Three ways to multiply share one order of sums over the threads of a block.
#pragma once
#include <device/mma.cuh>
#include <device/wgmma.cuh>

#include "tile.cuh"

namespace lwrn_fast::cuda {

// Which sums of a block's kPixels x kPlanes a thread holds. Warps share the planes out among kAcross of them, and the
// pixels among the others; the sums of a warp are tiles of 16 pixels x 8 planes, as multiply_add() has them.
template <int kPixels_, int kPlanes_, int kAcross>
struct Layout {
  static constexpr int kPixels = kPixels_, kPlanes = kPlanes_;
  static constexpr int kDown = kThreads / 32 / kAcross;
  static constexpr int kTilesDown = kPixels / (16 * kDown), kTilesAcross = kPlanes / (8 * kAcross);
  static constexpr int kCount = 4 * kTilesDown * kTilesAcross;
  static_assert(kTilesDown * 16 * kDown == kPixels && kTilesAcross * 8 * kAcross == kPlanes && kTilesAcross % 2 == 0);

  LWRN_DEVICE static int first_pixel() { return thread() / 32 % kDown * (16 * kTilesDown); }
  LWRN_DEVICE static int first_plane() { return thread() / 32 / kDown * (8 * kTilesAcross); }

  // Calls use(pixel, plane, a, b) for each pixel and pair of planes, plane and plane + 1, of this thread.
  template <class Use>
  LWRN_DEVICE static void each_pair(const float (&sums)[kCount], const Use& use) {
    const int pixel = first_pixel() + thread() % 32 / 4, plane = first_plane() + thread() % 4 * 2;
#pragma unroll
    for (int down = 0; down < kTilesDown; ++down)
#pragma unroll
      for (int across = 0; across < kTilesAcross; ++across) {
        const float* tile = sums + 4 * (down * kTilesAcross + across);
        use(pixel + 16 * down, plane + 8 * across, tile[0], tile[1]);
        use(pixel + 16 * down + 8, plane + 8 * across, tile[2], tile[3]);
      }
  }
};

// Every product has these functions. add(): sums += panel (kPixels rows) * weights (kPlanes rows), over 128 bytes of
// depth, after a sync() before which each thread that wrote to them has called publish(); about kCycles of a
// multiprocessor. wait(): at most kPending of the latest additions are still reading panel and weights; none, before
// the sums are used.

// Tensor cores, a warp at a time.
template <class Kind, class L>
struct WarpProduct : L {
  static constexpr double kCycles =
      L::kPixels * L::kPlanes * (Kind::kBytes == 2 ? 64.0 / 1024 : 32.0 / 512);  // of add()

  LWRN_DEVICE static void publish() {}

  LWRN_DEVICE static void add(float (&sums)[L::kCount], const char* panel, const char* weights) {
    const int lane = thread() % 32;
    // A step takes two vectors, so that it changes other bits of their places than the lane does.
    const int rows = place(L::first_pixel() + lane % 16, lane / 16);
    const int columns = place(L::first_plane() + lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t a[L::kTilesDown][4];
#pragma unroll
      for (int down = 0; down < L::kTilesDown; ++down)
        load(a[down], panel + ((rows ^ 32 * step) + 16 * down * kRowBytes));
#pragma unroll
      for (int across = 0; across < L::kTilesAcross; across += 2) {
        uint32_t b[4];
        load(b, weights + ((columns ^ 32 * step) + 8 * across * kRowBytes));
#pragma unroll
        for (int down = 0; down < L::kTilesDown; ++down) {
          float* tile = sums + 4 * (down * L::kTilesAcross + across);
          multiply_add<Kind>(tile, a[down], b[0], b[1]);
          multiply_add<Kind>(tile + 4, a[down], b[2], b[3]);
        }
      }
    }
  }

  template <int kPending>
  LWRN_DEVICE static void wait(float (&)[L::kCount]) {}

 private:
  LWRN_DEVICE static void load(uint32_t (&matrices)[4], const char* row) {
    load_matrices(matrices, row);
    if constexpr (Kind::kBytes == 4) {
#pragma unroll
      for (uint32_t& word : matrices) word = to_tf32(word);
    }
  }
};

// float32 without tensor cores: a * b + c, rounded once.
template <class L>
struct ExactProduct : L {
  static constexpr double kCycles = L::kPixels * L::kPlanes * 32.0 / 100;

  LWRN_DEVICE static void publish() {}

  LWRN_DEVICE static void add(float (&sums)[L::kCount], const char* panel, const char* weights) {
    const int row = L::first_pixel() + thread() % 32 / 4, column = L::first_plane() + thread() % 4 * 2;
#pragma unroll 1
    for (int v = 0; v < kVectors; ++v) {
      Vector a[2 * L::kTilesDown];
#pragma unroll
      for (int down = 0; down < 2 * L::kTilesDown; ++down) a[down] = load_shared(panel + place(row + 8 * down, v));
#pragma unroll
      for (int i = 0; i < 2 * L::kTilesAcross; ++i) {
        const Vector b = load_shared(weights + place(column + i / 2 * 8 + i % 2, v));
#pragma unroll
        for (int down = 0; down < 2 * L::kTilesDown; ++down) {
          float& sum = sums[4 * (down / 2 * L::kTilesAcross + i / 2) + down % 2 * 2 + i % 2];
          float part = 0;  // fewer terms in a row round less
#pragma unroll
          for (int k = 0; k < 4; ++k) part = multiply_add(a[down].words[k], b.words[k], part);
          sum += part;
        }
      }
    }
  }

  template <int kPending>
  LWRN_DEVICE static void wait(float (&)[L::kCount]) {}
};

// Hopper's tensor cores, a warpgroup at a time, which go on multiplying while the threads do something else.
template <class Kind, class L>
struct WarpgroupProduct : L {
  static constexpr double kCycles = L::kPixels * L::kPlanes * 64.0 / 1800;

  static_assert(L::kTilesDown == 1 && L::kDown % 4 == 0);

  LWRN_DEVICE static void publish() { fence_for_wgmma(); }

  LWRN_DEVICE static void add(float (&sums)[L::kCount], const char* panel, const char* weights) {
    panel += thread() / 128 * 4 % L::kDown * (16 * kRowBytes);
    weights += L::first_plane() * kRowBytes;
    begin_wgmma();
#pragma unroll
    for (int step = 0; step < 4; ++step) multiply_wgmma<Kind>(sums, panel, weights, step);
    commit_wgmma();
  }

  template <int kPending>
  LWRN_DEVICE static void wait(float (&sums)[L::kCount]) {
    wait_wgmma<kPending>(sums);
  }
};

}  // namespace lwrn_fast::cuda
