// Kernels of fusion for Hopper (LWRN_ELEMENT), taken where they are expected to be faster than those of fusion.cu.
#include "fusion_plan.cuh"

namespace lwrn_fast::cuda {

template <class Element>
struct FusionLargeSm90 : Fusion<Element, WarpgroupProduct<Element, AccLayout<128, 128, 1>>, 1, 1, 1, 2> {
  static constexpr const char* kName = "large_sm90";
};
template <class Element>
struct FusionMediumSm90 : Fusion<Element, WarpgroupProduct<Element, AccLayout<128, 64, 1>>, 2, 1, 2, 2> {
  static constexpr const char* kName = "medium_sm90";
};

using Element = LWRN_ELEMENT;

namespace {

FusionPlan choose(const FusionTask& task, int64_t pixels, const Device& device) {
  return best_fusion<FusionLargeSm90<Element>, FusionMediumSm90<Element>>(task, pixels, device);
}

}  // namespace

template <>
const char* fusion_sm90<Element>(const FusionArgs& args, const Device& device) {
  const FusionTask task = fusion_task<Element>(args);
  // Choose by the shape of one image, so that its bits do not depend on the batch.
  const int64_t pixels = task.height * task.width;
  const bool own = choose(task, pixels, device).cycles < choose_fusion<Element>(task, pixels, device).cycles;
  return start(own ? choose(task, task.pixels, device) : choose_fusion<Element>(task, task.pixels, device), task,
               device);
}

}  // namespace lwrn_fast::cuda
