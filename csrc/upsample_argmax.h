// Label maps: argmax over classes of the bilinearly upsampled logits; ties go to the lowest class.
#pragma once
#include "types.h"

namespace lwrn_fast {

struct UpsampleArgmaxArgs {
  Dtype dtype;
  MapView logits;  // channels = classes, at most 256; stride_c below replaces "channels adjacent"
  int64_t stride_c;
  int64_t height, width;  // size of the labels
  bool align_corners;
  uint8_t* labels;  // (batch, height, width), contiguous; every element is written
};

}  // namespace lwrn_fast

#ifdef LWRN_ISA
namespace lwrn_fast::LWRN_ISA {

// Return the bytes of scratch memory that upsample_argmax() needs: the taps of a row, and rows of logits.
int64_t upsample_argmax_workspace_bytes(const UpsampleArgmaxArgs& args, int64_t threads);

// workspace: 64-byte aligned, contents irrelevant.
void upsample_argmax(const UpsampleArgmaxArgs& args, void* workspace, const Threads& threads);

}  // namespace lwrn_fast::LWRN_ISA
#endif
