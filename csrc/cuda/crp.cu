// crp on every architecture, for numbers of LWRN_KIND.
#include "crp_plan.cuh"

namespace lwrn_fast::cuda {

template <class Kind, int kPixels, int kPlanes, int kAcross>
using CrpProduct = std::conditional_t<std::is_same_v<Kind, F32>, ExactProduct<Layout<kPixels, kPlanes, kAcross>>,
                                      WarpProduct<Kind, Layout<kPixels, kPlanes, kAcross>>>;

template <class Kind>
struct CrpDepthwise : Crp<Kind, Depthwise<Kind, 128>, 8, 16, 0, false, 2> {
  static constexpr const char* kName = "depthwise";
};
template <class Kind>
struct CrpSmallest : Crp<Kind, CrpProduct<Kind, 32, 64, 4>, 4, 8, 3, false, 2> {
  static constexpr const char* kName = "smallest";
};
template <class Kind>
struct CrpSmall : Crp<Kind, CrpProduct<Kind, 64, 64, 2>, 8, 8, 3, false, 1> {
  static constexpr const char* kName = "small";
};
template <class Kind>
struct CrpLarge : Crp<Kind, CrpProduct<Kind, 128, 64, 2>, 8, 16, 3, false, 1> {
  static constexpr const char* kName = "large";
};
template <class Kind>
struct CrpSmallResident : Crp<Kind, CrpProduct<Kind, 64, 64, 2>, 8, 8, 4, true, 1> {
  static constexpr const char* kName = "small_resident";
};
template <class Kind>
struct CrpLargeResident : Crp<Kind, CrpProduct<Kind, 128, 64, 2>, 8, 16, 4, true, 1> {
  static constexpr const char* kName = "large_resident";
};

using Kind = LWRN_KIND;

template <>
CrpPlan choose_crp<Kind>(const CrpArgs& args, const Device& device) {
  if (args.depthwise) return plan_crp<CrpDepthwise<Kind>>(args, device);
  const CrpPlan best = best_plan<CrpSmall<Kind>, CrpSmallest<Kind>>(args, device);
  if constexpr (Kind::kBytes == 4)
    return best;
  else
    return best_plan<CrpLarge<Kind>, CrpSmallResident<Kind>, CrpLargeResident<Kind>>(args, device, best);
}

template <>
int64_t crp_most_planes<Kind>(const Device& device) {
  using Least = CrpSmallest<Kind>;  // in its need of memory
  int chunks = 0;
  while (Least::shared_bytes(Least::kPassChunks, chunks + 1) <= device.shared_bytes) ++chunks;
  return int64_t{chunks} * kRowPlanes<Kind>;
}

template <>
Scratch crp_scratch<Kind>(const CrpArgs& args, const Device& device) {
  return choose_crp<Kind>(args, device).scratch;
}

template <>
const char* crp<Kind>(const CrpArgs& args, const Device& device, void* scratch, int32_t* counters) {
  return start(choose_crp<Kind>(args, device), device, scratch, counters);
}

}  // namespace lwrn_fast::cuda
