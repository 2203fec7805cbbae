// Host code that chooses the kernel of a fusion call and prepares its task.
#pragma once
#include <device/launch.cuh>

#include <cmath>

#include "fusion.cuh"
#include "kinds.h"

namespace lwrn_fast::cuda {

template <class Element>
FusionTask fusion_task(const FusionArgs& args) {
  constexpr int64_t kBytes = Element::kBytes;
  const auto whole = [](int64_t bytes) { return bytes % 16 == 0; };
  const auto starts_whole = [&](const void* data) { return whole(reinterpret_cast<intptr_t>(data)); };
  const MapView& first = args.maps[0];
  FusionTask task = {};
  task.count = static_cast<int>(args.inputs);
  task.out = static_cast<char*>(args.out);
  task.pixels = first.batch * first.height * first.width;
  task.height = first.height;
  task.width = first.width;
  task.out_channels = static_cast<int>(args.out_channels);
  task.align_corners = args.align_corners;
  task.aligned = starts_whole(args.out) && whole(args.out_channels * kBytes);
  task.min_value = args.activation == Activation::none ? -INFINITY : 0.0f;
  task.max_value = args.activation == Activation::relu6 ? 6.0f : INFINITY;
  for (int64_t k = 0; k < args.inputs; ++k) {
    const MapView& map = args.maps[k];
    FusionTask::Input& input = task.inputs[k];
    input.data = static_cast<const char*>(map.data);
    input.weight = static_cast<const char*>(args.weights[k]);
    input.bias = args.biases ? static_cast<const char*>(args.biases[k]) : nullptr;
    input.stride_n = map.stride_n * kBytes;
    input.stride_h = map.stride_h * kBytes;
    input.stride_w = map.stride_w * kBytes;
    input.height = map.height;
    input.width = map.width;
    input.channels = static_cast<int>(map.channels);
    input.interpolated = map.height != first.height || map.width != first.width;
    input.aligned = starts_whole(map.data) && starts_whole(args.weights[k]) && whole(map.channels * kBytes) &&
                    whole(input.stride_n) && whole(input.stride_h) && whole(input.stride_w);
    task.chunks += (input.channels + kRowChannels<Element> - 1) / kRowChannels<Element>;
  }
  return task;
}

struct FusionPlan {
  double cycles = INFINITY;
  const char* (*start)(FusionTask task, const Device& device) = nullptr;
};

template <class Kernel>
int64_t channel_blocks(const FusionTask& task) {
  return divide_up(task.out_channels, Kernel::kChannels);
}

// Estimate the cycles of a kernel for so many pixels. A chunk takes as long as the slowest of what overlaps: loading,
// interpolating and multiplying, and waiting for memory, which kPrefetch chunks share.
template <class Kernel>
double expected_cycles(const FusionTask& task, int64_t pixels, const Device& device) {
  constexpr double kStart = 2000, kMemory = 800, kBytesPerCycle = 64, kPerInterpolated = 6;
  const int64_t room = (device.smem_bytes + 1024) / (Kernel::smem_bytes(task) + 1024);
  const int64_t at_once = device.multiprocessors * (room < Kernel::kMinBlocksPerSm ? room : Kernel::kMinBlocksPerSm);
  const int64_t blocks = divide_up(pixels, Kernel::kPixels) * channel_blocks<Kernel>(task);
  const int64_t sharing = divide_up(blocks < at_once ? blocks : at_once, device.multiprocessors);
  const double loading = Kernel::kStageBytes / kBytesPerCycle * sharing, waiting = kMemory / Kernel::kPrefetch;
  double cycles = kStart;
  for (int k = 0; k < task.count; ++k) {
    const double interpolating = task.inputs[k].interpolated ? Kernel::kPixels * kPerInterpolated : 0;
    const double working = (interpolating + Kernel::kProductCycles) * sharing;
    cycles += divide_up(task.inputs[k].channels, Kernel::kChunkChannels) * fmax(fmax(loading, waiting), working);
  }
  return cycles * divide_up(blocks, at_once);
}

template <class Kernel>
const char* start_fusion(FusionTask task, const Device& device) {
  const int64_t blocks = divide_up(task.pixels, Kernel::kPixels) * channel_blocks<Kernel>(task);
  if (blocks > INT32_MAX) return "more pixels than the kernels take";
  task.channel_blocks = static_cast<int>(channel_blocks<Kernel>(task));
  return launch<Kernel>(device, static_cast<int>(blocks), Kernel::smem_bytes(task), task);
}

template <class Kernel>
FusionPlan plan_fusion(const FusionTask& task, int64_t pixels, const Device& device) {
  if (!may_use(Kernel::kName) || Kernel::smem_bytes(task) > device.smem_bytes) return {};
  return {expected_cycles<Kernel>(task, pixels, device), start_fusion<Kernel>};
}

// Return the plan with the fewest expected cycles.
template <class... Kernels>
FusionPlan best_fusion(const FusionTask& task, int64_t pixels, const Device& device) {
  FusionPlan best;
  for (const FusionPlan& plan : {plan_fusion<Kernels>(task, pixels, device)...})
    if (plan.cycles < best.cycles) best = plan;
  return best;
}

// Return the best plan among the kernels in fusion.cu.
template <class Element>
FusionPlan choose_fusion(const FusionTask& task, int64_t pixels, const Device& device);

inline const char* start(const FusionPlan& plan, const FusionTask& task, const Device& device) {
  return plan.start ? plan.start(task, device) : "no kernel runs this on this device";
}

}  // namespace lwrn_fast::cuda
