// The input of a model from images: resized, normalised, channels adjacent.
#pragma once
#include "types.h"

namespace lwrn_fast {

// Channels of an image.
constexpr int64_t kColours = 3;

// Resizing is bilinear, over as many pixels as an output pixel covers where it shrinks: what
// torch.nn.functional.interpolate(antialias=True) computes. All sums are in float32.
struct NormaliseArgs {
  const uint8_t* images;  // (batch, source_height, source_width, 3), pixels adjacent in a row
  int64_t batch, source_height, source_width;
  int64_t stride_n, stride_h;  // in bytes
  int64_t height, width;
  float mean[kColours], deviation[kColours];  // in units of a byte: the result is (value - mean) / deviation
  Dtype dtype;
  void* out;  // (batch, height, width, 3), contiguous; every element is written
};

#if defined(__CUDACC__)
#define LWRN_ANYWHERE __host__ __device__
#else
#define LWRN_ANYWHERE
#endif

// The pixels of the source that one output pixel covers, along one side: a triangle around its centre, as wide as two
// of the larger pixels. Weights are fractions of whole numbers, counted in halves of size * source_size.
struct Covered {
  int64_t first, end;  // source indices
  int64_t centre, reach, size, sum;
};

LWRN_ANYWHERE static inline int64_t part_of(const Covered& covered, int64_t j) {
  const int64_t distance = (2 * j + 1) * covered.size - covered.centre;
  return covered.reach - (distance < 0 ? -distance : distance);
}

LWRN_ANYWHERE static inline float weight_of(const Covered& covered, int64_t j) {
  return static_cast<float>(part_of(covered, j)) / static_cast<float>(covered.sum);
}

LWRN_ANYWHERE static inline Covered covered_by(int64_t i, int64_t source_size, int64_t size) {
  Covered covered = {};
  covered.size = size;
  covered.centre = (2 * i + 1) * source_size;
  covered.reach = 2 * (source_size > size ? source_size : size);
  // the first j with (2 j + 1) size > centre - reach, and the first with (2 j + 1) size >= centre + reach
  const int64_t low = covered.centre - covered.reach, high = covered.centre + covered.reach;
  covered.first = low < size ? 0 : (low - size) / (2 * size) + 1;
  covered.end = (high - size + 2 * size - 1) / (2 * size);
  if (covered.end > source_size) covered.end = source_size;
  for (int64_t j = covered.first; j < covered.end; ++j) covered.sum += part_of(covered, j);
  return covered;
}

}  // namespace lwrn_fast

#ifdef LWRN_ISA
namespace lwrn_fast::LWRN_ISA {

// Return the bytes of scratch memory that normalise() needs: the weights of rows and columns, and rows of floats.
int64_t normalise_workspace_bytes(const NormaliseArgs& args, int64_t threads);

// workspace: 64-byte aligned, contents irrelevant.
void normalise(const NormaliseArgs& args, void* workspace, const Threads& threads);

}  // namespace lwrn_fast::LWRN_ISA
#endif
