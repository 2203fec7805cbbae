// One table of functions per instruction set; each is built from the same sources.
#pragma once
#include "../channels_last.h"
#include "../crp.h"
#include "../fusion.h"
#include "../normalise.h"
#include "../pack.h"
#include "../upsample_argmax.h"
#include "isa.h"

namespace lwrn_fast {

struct Engine {
  void (*channels_last)(const ChannelsLastArgs&, const Threads&);
  uint64_t (*fingerprint)(const void* data, int64_t bytes);
  int64_t (*packed_bytes)(Dtype, int64_t out_channels, int64_t in_channels);
  void (*pack)(Dtype, const void* weight, int64_t out_channels, int64_t in_channels, void* packed, const Threads&);
  int64_t (*crp_workspace_bytes)(const CrpArgs&, int64_t threads);
  void (*crp)(const CrpArgs&, void* workspace, const Threads&);
  int64_t (*crp_backward_workspace_bytes)(const CrpBackwardArgs&, int64_t threads);
  void (*crp_backward)(const CrpBackwardArgs&, void* workspace, const Threads&);
  int64_t (*fusion_workspace_bytes)(const FusionArgs&, int64_t threads);
  void (*fusion)(const FusionArgs&, void* workspace, const Threads&);
  int64_t (*fusion_backward_workspace_bytes)(const FusionBackwardArgs&, int64_t threads);
  void (*fusion_backward)(const FusionBackwardArgs&, void* workspace, const Threads&);
  int64_t (*upsample_argmax_workspace_bytes)(const UpsampleArgmaxArgs&, int64_t threads);
  void (*upsample_argmax)(const UpsampleArgmaxArgs&, void* workspace, const Threads&);
  int64_t (*normalise_workspace_bytes)(const NormaliseArgs&, int64_t threads);
  void (*normalise)(const NormaliseArgs&, void* workspace, const Threads&);
};

// The table of an instruction set that this machine runs; one that was not built is never asked for.
const Engine& engine(Isa isa);

}  // namespace lwrn_fast
