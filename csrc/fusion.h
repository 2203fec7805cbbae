// Fusion: out = act(sum over k of upsample(W_k * x_k + b_k)), bilinear, to the size of the first input.
#pragma once
#include "types.h"

namespace lwrn_fast {

enum class Activation { none, relu, relu6 };

struct FusionArgs {
  Dtype dtype;
  int64_t inputs;
  const MapView* maps;         // inputs entries, one batch size
  const void* const* weights;  // inputs entries: packed (out_channels, maps[k].channels)
  const void* const* biases;   // inputs entries of (out_channels), or null
  int64_t out_channels;
  Activation activation;
  bool align_corners;
  void* out;  // (batch, maps[0].height, maps[0].width, out_channels), contiguous; every element is written
};

// The gradients of sum(grad * out); null where not needed.
struct FusionBackwardArgs {
  Dtype dtype;
  MapView grad;
  MapView out;  // fusion's result, of the size of grad; not read where there is no activation
  int64_t inputs;
  const MapView* maps;         // inputs entries, one batch size
  const void* const* weights;  // inputs entries: plain (grad.channels, maps[k].channels)
  Activation activation;
  bool align_corners;
  void* const* grad_inputs;   // inputs entries like `maps`, contiguous (batch, height, width, channels)
  void* const* grad_weights;  // inputs entries like `weights`
  void* const* grad_biases;   // inputs entries of (grad.channels)
};

}  // namespace lwrn_fast

#ifdef LWRN_ISA
namespace lwrn_fast::LWRN_ISA {

// Return the bytes of scratch memory that fusion() needs: the convolved maps at their own, low resolution, in float32.
int64_t fusion_workspace_bytes(const FusionArgs& args, int64_t threads);

// workspace: 64-byte aligned, contents irrelevant.
void fusion(const FusionArgs& args, void* workspace, const Threads& threads);

// Return the bytes of scratch memory that fusion_backward() needs: transposed weights, and sums of the weights'
// gradients.
int64_t fusion_backward_workspace_bytes(const FusionBackwardArgs& args, int64_t threads);

// Write every element that is needed; the result does not depend on the number of threads. workspace: as for
// fusion().
void fusion_backward(const FusionBackwardArgs& args, void* workspace, const Threads& threads);

}  // namespace lwrn_fast::LWRN_ISA
#endif
