// Launches normalise on every architecture.
#include "normalise.cuh"

#include <device/launch.cuh>

namespace lwrn_fast::cuda {
namespace {

template <class Element>
const char* start(const NormaliseArgs& args, const Device& device) {
  using Kernel = Normalise<Element>;
  const int64_t blocks = divide_up(args.batch * args.height * args.width, Kernel::kThreads);
  return launch<Kernel>(device, static_cast<int>(blocks < INT32_MAX ? blocks : INT32_MAX), 0, args);
}

}  // namespace

const char* normalise(const NormaliseArgs& args, const Device& device) {
  if (args.dtype == Dtype::bf16) return start<Bf16>(args, device);
  if (args.dtype == Dtype::f16) return start<F16>(args, device);
  return start<F32>(args, device);
}

}  // namespace lwrn_fast::cuda
