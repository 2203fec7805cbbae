// Chained residual pooling: t_0 = x, t_i = W_i * maxpool5x5(t_{i-1}) + b_i, out = x + sum of t_i.
#pragma once
#include "types.h"

namespace lwrn_fast {

constexpr int64_t kMostStages = 64;

struct CrpArgs {
  Dtype dtype;
  MapView x;
  int64_t stages;              // 1 to kMostStages
  bool depthwise;              // one scale per channel instead of a dense matrix
  const void* const* weights;  // stages entries: packed (planes, planes), or plain (planes) where depthwise
  const void* const* biases;   // stages entries of (planes), or null
  void* out;                   // (batch, height, width, planes), contiguous; every element is written
};

}  // namespace lwrn_fast

#ifdef LWRN_ISA
namespace lwrn_fast::LWRN_ISA {

// Bytes of scratch memory that crp() needs, the rings of the stages included.
int64_t crp_workspace_bytes(const CrpArgs& args, int64_t threads);

// workspace: 64-byte aligned, contents irrelevant.
void crp(const CrpArgs& args, void* workspace, const Threads& threads);

}  // namespace lwrn_fast::LWRN_ISA
#endif
