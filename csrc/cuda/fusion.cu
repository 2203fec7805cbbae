// Kernels of fusion for every architecture, compiled once per element type (LWRN_ELEMENT).
#include <type_traits>

#include "fusion_plan.cuh"

namespace lwrn_fast::cuda {

template <class Element, int kPixels, int kChannels>
using FusionProduct = std::conditional_t<std::is_same_v<Element, F32>, ExactProduct<AccLayout<kPixels, kChannels, 2>>,
                                         WarpProduct<Element, AccLayout<kPixels, kChannels, 2>>>;

template <class Element>
struct FusionLarge : Fusion<Element, FusionProduct<Element, 128, 128>, 2, 0, 4, 1> {
  static constexpr const char* kName = "large";
};
template <class Element>
struct FusionMedium : Fusion<Element, FusionProduct<Element, 128, 64>, 2, 0, 1, 2> {
  static constexpr const char* kName = "medium";
};
template <class Element>
struct FusionSmall : Fusion<Element, FusionProduct<Element, 64, 32>, 4, 0, 2, 2> {
  static constexpr const char* kName = "small";
};

using Element = LWRN_ELEMENT;

template <>
FusionPlan choose_fusion<Element>(const FusionTask& task, int64_t pixels, const Device& device) {
  return best_fusion<FusionLarge<Element>, FusionMedium<Element>, FusionSmall<Element>>(task, pixels, device);
}

template <>
const char* fusion<Element>(const FusionArgs& args, const Device& device) {
  const FusionTask task = fusion_task<Element>(args);
  return start(choose_fusion<Element>(task, task.pixels, device), task, device);
}

}  // namespace lwrn_fast::cuda
