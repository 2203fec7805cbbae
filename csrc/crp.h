// Chained residual pooling: t_0 = x, t_i = W_i * maxpool5x5(t_{i-1}) + b_i, out = x + sum of t_i.
#pragma once
#include "types.h"

namespace lwrn_fast {

// Stages of a call.
constexpr int64_t kMaxStages = 64;

struct CrpArgs {
  Dtype dtype;
  MapView x;
  int64_t stages;              // 1 to kMaxStages
  bool depthwise;              // one scale per channel instead of a dense matrix
  const void* const* weights;  // stages entries: packed (channels, channels), or plain (channels) where depthwise
  const void* const* biases;   // stages entries of (channels), or null
  void* out;                   // (batch, height, width, channels), contiguous; every element is written
  void* const* kept;  // null, or maps like `out` for t_1, ..., t_(stages - 1); where out is null, up to t_stages
};

// The gradients of sum(grad * out); null where not needed.
struct CrpBackwardArgs {
  Dtype dtype;
  MapView grad;
  int64_t stages;
  bool depthwise;
  const MapView* pooled;       // stages entries: the maps that the stages pool, x, t_1, ...
  const void* const* weights;  // stages entries: plain (channels, channels), or (channels) where depthwise
  void* grad_x;                // (batch, height, width, channels), contiguous
  void* const* grad_weights;   // stages entries like `weights`
  void* const* grad_biases;    // stages entries of (channels)
};

}  // namespace lwrn_fast

#ifdef LWRN_ISA
namespace lwrn_fast::LWRN_ISA {

// Return the bytes of scratch memory that crp() needs, the rings of the stages included.
int64_t crp_workspace_bytes(const CrpArgs& args, int64_t threads);

// workspace: 64-byte aligned, contents irrelevant.
void crp(const CrpArgs& args, void* workspace, const Threads& threads);

// Return the bytes of scratch memory that crp_backward() needs: rings of two maps per stage, and sums of the weights'
// gradients.
int64_t crp_backward_workspace_bytes(const CrpBackwardArgs& args, int64_t threads);

// Write every element that is needed; the result does not depend on the number of threads. workspace: as for crp().
void crp_backward(const CrpBackwardArgs& args, void* workspace, const Threads& threads);

}  // namespace lwrn_fast::LWRN_ISA
#endif
