// Fusion: out = act(sum over k of upsample(W_k * x_k + b_k)), bilinear, to the size of the first input.
#pragma once
#include "types.h"

namespace lwrn_fast {

enum class Activation { none, relu, relu6 };

struct FusionArgs {
  Dtype dtype;
  int64_t inputs;
  const MapView* maps;         // inputs entries, one batch size
  const void* const* weights;  // inputs entries: packed (out_planes, maps[k].planes)
  const void* const* biases;   // inputs entries of (out_planes), or null
  int64_t out_planes;
  Activation activation;
  bool align_corners;
  void* out;  // (batch, maps[0].height, maps[0].width, out_planes), contiguous; every element is written
};

}  // namespace lwrn_fast

#ifdef LWRN_ISA
namespace lwrn_fast::LWRN_ISA {

// Bytes of scratch memory that fusion() needs: the convolved maps at their own, low resolution, in float32.
int64_t fusion_workspace_bytes(const FusionArgs& args, int64_t threads);

// workspace: 64-byte aligned, contents irrelevant.
void fusion(const FusionArgs& args, void* workspace, const Threads& threads);

}  // namespace lwrn_fast::LWRN_ISA
#endif
