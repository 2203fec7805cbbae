// fusion on every architecture, for numbers of LWRN_KIND.
#include <type_traits>

#include "fusion_plan.cuh"

namespace lwrn_fast::cuda {

template <class Kind, int kPixels, int kPlanes>
using FusionProduct = std::conditional_t<std::is_same_v<Kind, F32>, ExactProduct<Layout<kPixels, kPlanes, 2>>,
                                         WarpProduct<Kind, Layout<kPixels, kPlanes, 2>>>;

template <class Kind>
struct FusionLarge : Fusion<Kind, FusionProduct<Kind, 128, 128>, 2, 0, 4, 1> {
  static constexpr const char* kName = "large";
};
template <class Kind>
struct FusionMedium : Fusion<Kind, FusionProduct<Kind, 128, 64>, 2, 0, 1, 2> {
  static constexpr const char* kName = "medium";
};
template <class Kind>
struct FusionSmall : Fusion<Kind, FusionProduct<Kind, 64, 32>, 4, 0, 2, 2> {
  static constexpr const char* kName = "small";
};

using Kind = LWRN_KIND;

template <>
FusionPlan choose_fusion<Kind>(const FusionTask& task, int64_t pixels, const Device& device) {
  return best_fusion<FusionLarge<Kind>, FusionMedium<Kind>, FusionSmall<Kind>>(task, pixels, device);
}

template <>
const char* fusion<Kind>(const FusionArgs& args, const Device& device) {
  const FusionTask task = fusion_task<Kind>(args);
  return start(choose_fusion<Kind>(task, task.pixels, device), task, device);
}

}  // namespace lwrn_fast::cuda
