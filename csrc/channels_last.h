// Copies of maps with adjacent channels, from maps whose channels lie apart, as in contiguous NCHW.
#pragma once
#include "types.h"

namespace lwrn_fast {

struct ChannelsLastArgs {
  Dtype dtype;
  MapView map;       // stride_w must be 1; stride_c below replaces "channels adjacent"
  int64_t stride_c;  // in elements
  void* out;         // (batch, height, width, channels), contiguous; every element is written
};

}  // namespace lwrn_fast

#ifdef LWRN_ISA
namespace lwrn_fast::LWRN_ISA {

void channels_last(const ChannelsLastArgs& args, const Threads& threads);

}  // namespace lwrn_fast::LWRN_ISA
#endif
