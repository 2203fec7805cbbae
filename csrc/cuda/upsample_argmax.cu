// Launches upsample_argmax on every architecture.
#include "upsample_argmax.cuh"

#include <device/launch.cuh>

namespace lwrn_fast::cuda {
namespace {

template <class Element, bool kSameSize>
const char* start(const UpsampleArgmaxArgs& args, const Device& device) {
  using Kernel = UpsampleArgmax<Element, kSameSize>;
  const MapView& logits = args.logits;
  UpsampleArgmaxTask task = {};
  task.logits = static_cast<const char*>(logits.data);
  task.stride_n = logits.stride_n * Element::kBytes;
  task.stride_h = logits.stride_h * Element::kBytes;
  task.stride_w = logits.stride_w * Element::kBytes;
  task.stride_c = args.stride_c * Element::kBytes;
  task.source_height = logits.height;
  task.source_width = logits.width;
  task.height = args.height;
  task.width = args.width;
  task.classes = static_cast<int>(logits.channels);
  task.classes_adjacent = args.stride_c == 1 && logits.stride_w != 1;
  task.align_corners = args.align_corners;
  task.labels = args.labels;

  // Return the maximum number of source columns that so many columns of labels interpolate.
  const auto sources = [&](int64_t columns) {
    const int64_t steps = args.align_corners ? logits.width - 1 : logits.width;
    const int64_t labels = args.align_corners && args.width > 1 ? args.width - 1 : args.width;
    return divide_up((columns - 1) * steps, labels) + 2;
  };
  task.columns = Kernel::kMaxColumns;
  while (task.columns > 1 && sources(task.columns) > Kernel::kMaxSources) task.columns /= 2;

  // Pad a pixel to an odd number of vectors of four classes: those of neighbouring pixels lie in different banks.
  const int classes = task.classes < Kernel::kPassClasses ? task.classes : Kernel::kPassClasses;
  task.pixel_stride = 4 * ((classes + 3) / 4 | 1);
  task.tiles_y = divide_up(args.height, Kernel::kRows);
  task.tiles_x = divide_up(args.width, task.columns);
  task.tiles = logits.batch * task.tiles_y * task.tiles_x;
  const int64_t blocks = task.tiles < INT32_MAX ? task.tiles : INT32_MAX;
  return launch<Kernel>(device, static_cast<int>(blocks), Kernel::smem_bytes(task), task);
}

template <class Element>
const char* start(const UpsampleArgmaxArgs& args, const Device& device) {
  // Do not interpolate where the sizes are the same: a weight of 0 would make an infinity NaN.
  const bool same_size = args.logits.height == args.height && args.logits.width == args.width;
  return same_size ? start<Element, true>(args, device) : start<Element, false>(args, device);
}

}  // namespace

const char* upsample_argmax(const UpsampleArgmaxArgs& args, const Device& device) {
  if (args.dtype == Dtype::bf16) return start<Bf16>(args, device);
  if (args.dtype == Dtype::f16) return start<F16>(args, device);
  return start<F32>(args, device);
}

}  // namespace lwrn_fast::cuda
