// Implements engine.h: facts about devices, and the dispatch by element type and compute capability.
#include "engine.h"

#include <device/numbers.cuh>
#include <device/runtime.cuh>

#include <map>
#include <mutex>
#include <string>

#include "kinds.h"

namespace lwrn_fast::cuda {
namespace {

template <class Element_>
struct Type {
  using Element = Element_;
};

// Call function(Type<Element>{}) with the element type of the call.
template <class Function>
auto with_element(Dtype dtype, Multiply multiply, const Function& function) {
  if (dtype == Dtype::bf16) return function(Type<Bf16>{});
  if (dtype == Dtype::f16) return function(Type<F16>{});
  return multiply == Multiply::tf32 ? function(Type<Tf32>{}) : function(Type<F32>{});
}

#ifdef LWRN_HAVE_SM90
constexpr bool kHaveSm90 = true;
#else
constexpr bool kHaveSm90 = false;
#endif

// True where kernels for capability 9.0 exist for an element type.
template <class Element>
constexpr bool kSm90 = kHaveSm90 && Element::kBytes == 2;

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
  static std::map<int, Device> devices;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto entry = devices.find(index);
  if (entry != devices.end()) {
    *device = entry->second;
  } else {
    if (const char* error = query_device(index, device)) return error;
    devices.emplace(index, *device);
  }
  device->stream = stream;
  return nullptr;
}

bool recording(const Device& device) { return is_capturing(device.stream); }

Scratch crp_scratch(const CrpArgs& args, Multiply multiply, const Device& device) {
  return with_element(args.dtype, multiply, [&](auto type) {
    using Element = typename decltype(type)::Element;
    if constexpr (kSm90<Element>)
      if (device.capability == 90) return crp_sm90_scratch<Element>(args, device);
    return crp_scratch<Element>(args, device);
  });
}

const char* crp(const CrpArgs& args, Multiply multiply, const Device& device, void* scratch, int32_t* counters) {
  return with_element(args.dtype, multiply, [&](auto type) {
    using Element = typename decltype(type)::Element;
    if constexpr (kSm90<Element>)
      if (device.capability == 90) return crp_sm90<Element>(args, device, scratch, counters);
    return crp<Element>(args, device, scratch, counters);
  });
}

int64_t crp_max_channels(Dtype dtype, const Device& device) {
  return with_element(dtype, Multiply::exact,
                      [&](auto type) { return crp_max_channels<typename decltype(type)::Element>(device); });
}

const char* fusion(const FusionArgs& args, Multiply multiply, const Device& device) {
  return with_element(args.dtype, multiply, [&](auto type) {
    using Element = typename decltype(type)::Element;
    if constexpr (kSm90<Element>)
      if (device.capability == 90) return fusion_sm90<Element>(args, device);
    return fusion<Element>(args, device);
  });
}

}  // namespace lwrn_fast::cuda
