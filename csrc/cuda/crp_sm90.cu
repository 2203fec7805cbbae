// Kernels of crp for Hopper (LWRN_ELEMENT), taken where they are expected to be faster than those of crp.cu.
#include "crp_plan.cuh"

namespace lwrn_fast::cuda {

template <class Element>
struct CrpLargeSm90 : Crp<Element, WarpgroupProduct<Element, AccLayout<128, 128, 1>>, 8, 16, 3, false, 1> {
  static constexpr const char* kName = "large_sm90";
};
template <class Element>
struct CrpLargeResidentSm90 : Crp<Element, WarpgroupProduct<Element, AccLayout<128, 64, 1>>, 8, 16, 4, true, 1> {
  static constexpr const char* kName = "large_resident_sm90";
};

using Element = LWRN_ELEMENT;

namespace {

CrpPlan own(const CrpArgs& args, const Device& device) {
  return best_plan<CrpLargeSm90<Element>, CrpLargeResidentSm90<Element>>(args, device);
}

// Choose between the two instructions by the shape of one image: they may round differently, and the result of an image
// must not depend on the batch.
CrpPlan choose(const CrpArgs& args, const Device& device) {
  if (args.depthwise) return choose_crp<Element>(args, device);
  CrpArgs image = args;
  image.x.batch = 1;
  const CrpPlan ours = own(image, device), others = choose_crp<Element>(image, device);
  const bool better = ours.cycles < others.cycles;
  if (args.x.batch == 1) return better ? ours : others;
  return better ? own(args, device) : choose_crp<Element>(args, device);
}

}  // namespace

template <>
Scratch crp_sm90_scratch<Element>(const CrpArgs& args, const Device& device) {
  return choose(args, device).scratch;
}

template <>
const char* crp_sm90<Element>(const CrpArgs& args, const Device& device, void* scratch, int32_t* counters) {
  return start(choose(args, device), device, scratch, counters);
}

}  // namespace lwrn_fast::cuda
