// The launch functions, one instance for each kind of number; engine.cu chooses. Contracts: engine.h.
#pragma once
#include "engine.h"

namespace lwrn_fast::cuda {

template <class Kind>
Scratch crp_scratch(const CrpArgs& args, const Device& device);
template <class Kind>
const char* crp(const CrpArgs& args, const Device& device, void* scratch, int32_t* counters);

template <class Kind>
int64_t crp_most_planes(const Device& device);

template <class Kind>
const char* fusion(const FusionArgs& args, const Device& device);

// With Hopper's instructions, for devices of capability 9.0 and 16-bit kinds.
template <class Kind>
Scratch crp_sm90_scratch(const CrpArgs& args, const Device& device);
template <class Kind>
const char* crp_sm90(const CrpArgs& args, const Device& device, void* scratch, int32_t* counters);
template <class Kind>
const char* fusion_sm90(const FusionArgs& args, const Device& device);

}  // namespace lwrn_fast::cuda
