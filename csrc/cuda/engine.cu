// What engine.h promises: facts about devices, and the choice of a kernel by kind of number and by capability.
#include "engine.h"

#include <device/numbers.cuh>
#include <device/runtime.cuh>

#include <map>
#include <mutex>
#include <string>

#include "kinds.h"

namespace lwrn_fast::cuda {
namespace {

template <class Kind_>
struct Of {
  using Kind = Kind_;
};

// function(Of<Kind>{}) for the kind of number that is multiplied.
template <class Function>
auto with_kind(Dtype dtype, Multiply multiply, const Function& function) {
  if (dtype == Dtype::bf16) return function(Of<Bf16>{});
  if (dtype == Dtype::f16) return function(Of<F16>{});
  return multiply == Multiply::tf32 ? function(Of<Tf32>{}) : function(Of<F32>{});
}

#ifdef LWRN_HAVE_SM90
constexpr bool kHaveSm90 = true;
#else
constexpr bool kHaveSm90 = false;
#endif

// Whether the kernels for capability 9.0 exist for a kind.
template <class Kind>
constexpr bool kSm90 = kHaveSm90 && Kind::kBytes == 2;

std::mutex only_mutex;
std::string only;

}  // namespace

void use_only(const char* name) {
  const std::lock_guard<std::mutex> lock(only_mutex);
  only = name ? name : "";
}

bool may_use(const char* name) {
  const std::lock_guard<std::mutex> lock(only_mutex);
  return only.empty() || only == name;
}

const char* describe(int index, void* stream, Device* device) {
  static std::mutex mutex;
  static std::map<int, Device> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(index);
  if (found != known.end()) {
    *device = found->second;
  } else {
    if (const char* error = ask_device(index, device)) return error;
    known.emplace(index, *device);
  }
  device->stream = stream;
  return nullptr;
}

bool recording(const Device& device) { return is_recording(device.stream); }

Scratch crp_scratch(const CrpArgs& args, Multiply multiply, const Device& device) {
  return with_kind(args.dtype, multiply, [&](auto of) {
    using Kind = typename decltype(of)::Kind;
    if constexpr (kSm90<Kind>)
      if (device.capability == 90) return crp_sm90_scratch<Kind>(args, device);
    return crp_scratch<Kind>(args, device);
  });
}

const char* crp(const CrpArgs& args, Multiply multiply, const Device& device, void* scratch, int32_t* counters) {
  return with_kind(args.dtype, multiply, [&](auto of) {
    using Kind = typename decltype(of)::Kind;
    if constexpr (kSm90<Kind>)
      if (device.capability == 90) return crp_sm90<Kind>(args, device, scratch, counters);
    return crp<Kind>(args, device, scratch, counters);
  });
}

int64_t crp_most_planes(Dtype dtype, const Device& device) {
  return with_kind(dtype, Multiply::exact,
                   [&](auto of) { return crp_most_planes<typename decltype(of)::Kind>(device); });
}

const char* fusion(const FusionArgs& args, Multiply multiply, const Device& device) {
  return with_kind(args.dtype, multiply, [&](auto of) {
    using Kind = typename decltype(of)::Kind;
    if constexpr (kSm90<Kind>)
      if (device.capability == 90) return fusion_sm90<Kind>(args, device);
    return fusion<Kind>(args, device);
  });
}

}  // namespace lwrn_fast::cuda
