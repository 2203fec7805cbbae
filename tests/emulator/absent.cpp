// Stubs of the kernels that a program is linked without: weak, so that the real kernels take precedence.
#include <kinds.h>
#include <device/numbers.cuh>

namespace lwrn_fast::cuda {

constexpr const char* kAbsent = "not in this program";

template <class Element>
Scratch crp_scratch(const CrpArgs&, const Device&) {
  return {};
}
template <class Element>
const char* crp(const CrpArgs&, const Device&, void*, int32_t*) {
  return kAbsent;
}
template <class Element>
int64_t crp_max_channels(const Device&) {
  return 0;
}
template <class Element>
const char* fusion(const FusionArgs&, const Device&) {
  return kAbsent;
}
template <class Element>
Scratch crp_sm90_scratch(const CrpArgs&, const Device&) {
  return {};
}
template <class Element>
const char* crp_sm90(const CrpArgs&, const Device&, void*, int32_t*) {
  return kAbsent;
}
template <class Element>
const char* fusion_sm90(const FusionArgs&, const Device&) {
  return kAbsent;
}

#define LWRN_ABSENT(Element)                                                              \
  template Scratch crp_scratch<Element>(const CrpArgs&, const Device&);                   \
  template const char* crp<Element>(const CrpArgs&, const Device&, void*, int32_t*);      \
  template int64_t crp_max_channels<Element>(const Device&);                              \
  template const char* fusion<Element>(const FusionArgs&, const Device&);                 \
  template Scratch crp_sm90_scratch<Element>(const CrpArgs&, const Device&);              \
  template const char* crp_sm90<Element>(const CrpArgs&, const Device&, void*, int32_t*); \
  template const char* fusion_sm90<Element>(const FusionArgs&, const Device&);
LWRN_ABSENT(Bf16)
LWRN_ABSENT(F16)
LWRN_ABSENT(Tf32)
LWRN_ABSENT(F32)

__attribute__((weak)) const char* upsample_argmax(const UpsampleArgmaxArgs&, const Device&) { return kAbsent; }
__attribute__((weak)) const char* normalise(const NormaliseArgs&, const Device&) { return kAbsent; }

}  // namespace lwrn_fast::cuda
