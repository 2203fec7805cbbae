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

CrpPlan own(const CrpArgs& args, const Device& device) {
  return best_plan<CrpLargeSm90<Kind>, CrpLargeResidentSm90<Kind>>(args, device);
}

// Two ways to multiply may round differently, and the result of an image must not depend on the batch. So which of them
// is a matter of one image.
CrpPlan choose(const CrpArgs& args, const Device& device) {
  if (args.depthwise) return choose_crp<Kind>(args, device);
  CrpArgs image = args;
  image.x.batch = 1;
  const CrpPlan ours = own(image, device), others = choose_crp<Kind>(image, device);
  const bool better = ours.cycles < others.cycles;
  if (args.x.batch == 1) return better ? ours : others;
  return better ? own(args, device) : choose_crp<Kind>(args, device);
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
