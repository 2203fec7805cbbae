// Stands in for the kernels that a program is linked without: weak, so that those that are there take precedence.
#include <kinds.h>
#include <device/numbers.cuh>

namespace lwrn_fast::cuda {

constexpr const char* kAbsent = "not in this program";

template <class Kind>
Scratch crp_scratch(const CrpArgs&, const Device&) {
  return {};
}
template <class Kind>
const char* crp(const CrpArgs&, const Device&, void*, int32_t*) {
  return kAbsent;
}
template <class Kind>
int64_t crp_most_planes(const Device&) {
  return 0;
}
template <class Kind>
const char* fusion(const FusionArgs&, const Device&) {
  return kAbsent;
}
template <class Kind>
Scratch crp_sm90_scratch(const CrpArgs&, const Device&) {
  return {};
}
template <class Kind>
const char* crp_sm90(const CrpArgs&, const Device&, void*, int32_t*) {
  return kAbsent;
}
template <class Kind>
const char* fusion_sm90(const FusionArgs&, const Device&) {
  return kAbsent;
}

#define LWRN_ABSENT(Kind)                                                              \
  template Scratch crp_scratch<Kind>(const CrpArgs&, const Device&);                   \
  template const char* crp<Kind>(const CrpArgs&, const Device&, void*, int32_t*);      \
  template int64_t crp_most_planes<Kind>(const Device&);                               \
  template const char* fusion<Kind>(const FusionArgs&, const Device&);                 \
  template Scratch crp_sm90_scratch<Kind>(const CrpArgs&, const Device&);              \
  template const char* crp_sm90<Kind>(const CrpArgs&, const Device&, void*, int32_t*); \
  template const char* fusion_sm90<Kind>(const FusionArgs&, const Device&);
LWRN_ABSENT(Bf16)
LWRN_ABSENT(F16)
LWRN_ABSENT(Tf32)
LWRN_ABSENT(F32)

__attribute__((weak)) const char* upsample_argmax(const UpsampleArgmaxArgs&, const Device&) { return kAbsent; }
__attribute__((weak)) const char* normalise(const NormaliseArgs&, const Device&) { return kAbsent; }

}  // namespace lwrn_fast::cuda
