// crp on Hopper, for numbers of LWRN_KIND: its own kernels where they are better than those of crp.cu.
#include "crp_plan.cuh"

namespace lwrn_fast::cuda {

template <class Kind>
struct CrpLargeSm90 : Crp<Kind, WarpgroupProduct<Kind, Layout<128, 128, 1>>, 8, 16, 3, false, 1> {
  static constexpr const char* kName = "large_sm90";
};
template <class Kind>
struct CrpLargeResidentSm90 : Crp<Kind, WarpgroupProduct<Kind, Layout<128, 64, 1>>, 8, 16, 4, true, 1> {
  static constexpr const char* kName = "large_resident_sm90";
};

using Kind = LWRN_KIND;

namespace {

// Whether these kernels are better for one image: two ways to multiply may round differently, and the result of an
// image must not depend on the batch.
bool better(CrpArgs args, const Device& device) {
  args.x.batch = 1;
  return best_plan<CrpLargeSm90<Kind>, CrpLargeResidentSm90<Kind>>(args, device).cycles <
         choose_crp<Kind>(args, device).cycles;
}

CrpPlan choose(const CrpArgs& args, const Device& device) {
  if (!args.depthwise && better(args, device))
    return best_plan<CrpLargeSm90<Kind>, CrpLargeResidentSm90<Kind>>(args, device);
  return choose_crp<Kind>(args, device);
}

}  // namespace

template <>
Scratch crp_sm90_scratch<Kind>(const CrpArgs& args, const Device& device) {
  return choose(args, device).scratch;
}

template <>
const char* crp_sm90<Kind>(const CrpArgs& args, const Device& device, void* scratch, int32_t* counters) {
  return start(choose(args, device), device, scratch, counters);
}

}  // namespace lwrn_fast::cuda
