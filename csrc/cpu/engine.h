// One table of functions per instruction set, built from the same sources.
#pragma once
#include "../channels_last.h"
#include "../crp.h"
#include "../fusion.h"
#include "../normalise.h"
#include "../pack.h"
#include "../upsample_argmax.h"
#include "isa.h"

namespace lwrn_fast {

// A kernel and the bytes of scratch memory that it needs. workspace: 64-byte aligned, contents irrelevant.
template <class Args>
struct Kernel {
  int64_t (*workspace_bytes)(const Args&, int64_t threads);
  void (*run)(const Args&, void* workspace, const Threads&);
};

struct Engine {
  void (*channels_last)(const ChannelsLastArgs&, const Threads&);
  uint64_t (*fingerprint)(const void* data, int64_t bytes);
  int64_t (*packed_bytes)(Dtype, int64_t out_channels, int64_t in_channels);
  void (*pack)(Dtype, const void* weight, int64_t out_channels, int64_t in_channels, void* packed, const Threads&);
  Kernel<CrpArgs> crp;
  Kernel<CrpBackwardArgs> crp_backward;
  Kernel<FusionArgs> fusion;
  Kernel<FusionBackwardArgs> fusion_backward;
  Kernel<UpsampleArgmaxArgs> upsample_argmax;
  Kernel<NormaliseArgs> normalise;
};

// Return the table of an instruction set that this build holds and this machine runs.
const Engine& engine(Isa isa);

}  // namespace lwrn_fast
