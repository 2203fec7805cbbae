// The launch functions, one instance per element type; engine.cu chooses. Contracts: engine.h.
#pragma once
#include "engine.h"

namespace lwrn_fast::cuda {

template <class Element>
Scratch crp_scratch(const CrpArgs& args, const Device& device);
template <class Element>
const char* crp(const CrpArgs& args, const Device& device, void* scratch, int32_t* counters);

template <class Element>
int64_t crp_max_channels(const Device& device);

template <class Element>
const char* fusion(const FusionArgs& args, const Device& device);

// Kernels with Hopper's instructions, for devices of capability 9.0 and 16-bit element types.
template <class Element>
Scratch crp_sm90_scratch(const CrpArgs& args, const Device& device);
template <class Element>
const char* crp_sm90(const CrpArgs& args, const Device& device, void* scratch, int32_t* counters);
template <class Element>
const char* fusion_sm90(const FusionArgs& args, const Device& device);

}  // namespace lwrn_fast::cuda
