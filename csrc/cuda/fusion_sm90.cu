// fusion on Hopper, for numbers of LWRN_KIND: its own kernels where they are better than those of fusion.cu.
#include "fusion_plan.cuh"

namespace lwrn_fast::cuda {

template <class Kind>
struct FusionLargeSm90 : Fusion<Kind, WarpgroupProduct<Kind, Layout<128, 128, 1>>, 1, 1, 1, 2> {
  static constexpr const char* kName = "large_sm90";
};
template <class Kind>
struct FusionMediumSm90 : Fusion<Kind, WarpgroupProduct<Kind, Layout<128, 64, 1>>, 2, 1, 2, 2> {
  static constexpr const char* kName = "medium_sm90";
};

using Kind = LWRN_KIND;

namespace {

FusionPlan choose(const FusionTask& task, int64_t pixels, const Device& device) {
  return best_fusion<FusionLargeSm90<Kind>, FusionMediumSm90<Kind>>(task, pixels, device);
}

}  // namespace

template <>
const char* fusion_sm90<Kind>(const FusionArgs& args, const Device& device) {
  const FusionTask task = fusion_task<Kind>(args);
  // Whose instructions are used is a matter of one image, so that its bits do not depend on the batch.
  const int64_t pixels = task.height * task.width;
  const bool own = choose(task, pixels, device).cycles < choose_fusion<Kind>(task, pixels, device).cycles;
  return start(own ? choose(task, task.pixels, device) : choose_fusion<Kind>(task, task.pixels, device), task, device);
}

}  // namespace lwrn_fast::cuda
