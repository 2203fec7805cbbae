// Kernels of crp for every architecture, compiled once per element type (LWRN_ELEMENT).
#include "crp_plan.cuh"

namespace lwrn_fast::cuda {

template <class Element, int kPixels, int kChannels, int kWarpsN>
using CrpProduct =
    std::conditional_t<std::is_same_v<Element, F32>, ExactProduct<AccLayout<kPixels, kChannels, kWarpsN>>,
                       WarpProduct<Element, AccLayout<kPixels, kChannels, kWarpsN>>>;

template <class Element>
struct CrpDepthwise : Crp<Element, Depthwise<Element, 128>, 8, 16, 0, false, 2> {
  static constexpr const char* kName = "depthwise";
};
template <class Element>
struct CrpSmallest : Crp<Element, CrpProduct<Element, 32, 64, 4>, 4, 8, 3, false, 2> {
  static constexpr const char* kName = "smallest";
};
template <class Element>
struct CrpSmall : Crp<Element, CrpProduct<Element, 64, 64, 2>, 8, 8, 3, false, 1> {
  static constexpr const char* kName = "small";
};
template <class Element>
struct CrpLarge : Crp<Element, CrpProduct<Element, 128, 64, 2>, 8, 16, 3, false, 1> {
  static constexpr const char* kName = "large";
};
template <class Element>
struct CrpSmallResident : Crp<Element, CrpProduct<Element, 64, 64, 2>, 8, 8, 4, true, 1> {
  static constexpr const char* kName = "small_resident";
};
template <class Element>
struct CrpLargeResident : Crp<Element, CrpProduct<Element, 128, 64, 2>, 8, 16, 4, true, 1> {
  static constexpr const char* kName = "large_resident";
};

using Element = LWRN_ELEMENT;

template <>
CrpPlan choose_crp<Element>(const CrpArgs& args, const Device& device) {
  if (args.depthwise) return plan_crp<CrpDepthwise<Element>>(args, device);
  const CrpPlan best = best_plan<CrpSmall<Element>, CrpSmallest<Element>>(args, device);
  if constexpr (Element::kBytes == 4)
    return best;
  else
    return best_plan<CrpLarge<Element>, CrpSmallResident<Element>, CrpLargeResident<Element>>(args, device, best);
}

template <>
int64_t crp_max_channels<Element>(const Device& device) {
  using Smallest = CrpSmallest<Element>;  // the kernel that needs the least shared memory
  int chunks = 0;
  while (Smallest::smem_bytes(Smallest::kPassChunks, chunks + 1) <= device.smem_bytes) ++chunks;
  return int64_t{chunks} * kRowChannels<Element>;
}

template <>
Scratch crp_scratch<Element>(const CrpArgs& args, const Device& device) {
  return choose_crp<Element>(args, device).scratch;
}

template <>
const char* crp<Element>(const CrpArgs& args, const Device& device, void* scratch, int32_t* counters) {
  return start(choose_crp<Element>(args, device), device, scratch, counters);
}

}  // namespace lwrn_fast::cuda
