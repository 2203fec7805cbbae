// Host code that chooses the kernel of a crp call, its launch and its scratch memory.
#pragma once
#include <device/launch.cuh>

#include <cmath>

#include "crp.cuh"
#include "kinds.h"

namespace lwrn_fast::cuda {

struct CrpPlan {
  CrpTask task = {};
  int blocks = 0, smem_bytes = 0;  // no blocks: the kernel cannot run this call
  double cycles = INFINITY;        // expected duration
  Scratch scratch = {};
  const char* (*start)(const Device&, const CrpPlan&) = nullptr;
};

inline bool is_aligned(const CrpArgs& args) {
  const int64_t bytes = bytes_of(args.dtype);
  const auto whole = [](int64_t n) { return n % 16 == 0; };
  bool all = whole(args.x.channels * bytes) && whole(args.x.stride_n * bytes) && whole(args.x.stride_h * bytes) &&
             whole(args.x.stride_w * bytes) && whole(reinterpret_cast<intptr_t>(args.x.data)) &&
             whole(reinterpret_cast<intptr_t>(args.out));
  for (int64_t i = 0; i < args.stages; ++i) all = all && whole(reinterpret_cast<intptr_t>(args.weights[i]));
  return all;
}

// The cost model of a multiprocessor, from counts of bytes and instructions, not yet from measurements.
// Bytes copied from the L2 cache per cycle.
constexpr double kCopiedBytes = 40;
// Rows of 128 bytes pooled per cycle, bound by reads of shared memory.
constexpr double kPooledRows = 1 / 5.5;
// Cycles per item until finished neighbours are seen and the first bytes arrive.
constexpr double kItemLatency = 2000;

template <class Kernel>
double expected_cycles(const CrpPlan& plan, const Device& device, int64_t items, int64_t chunks) {
  const double max_at_once = plan.blocks, stages = plan.task.schedule.stages;
  const double busy = items < device.multiprocessors ? items : device.multiprocessors;
  const double sharing = max_at_once > busy ? max_at_once / busy : 1;  // blocks that share a multiprocessor
  const double copied = Kernel::copied_rows() * chunks * kRowBytes / kCopiedBytes;
  const double pooled = Kernel::kPixels * chunks / kPooledRows;
  const double multiplied = Kernel::MatrixProduct::kCycles * plan.task.passes * chunks;
  const double item = kItemLatency + sharing * (copied + pooled + multiplied);
  const double in_turn = stages * items / max_at_once;
  return item * (in_turn > stages ? in_turn : stages);
}

// Return the launch of one kernel; a plan without blocks where it cannot run the call.
template <class Kernel>
CrpPlan plan_crp(const CrpArgs& args, const Device& device) {
  using Element = typename Kernel::Element;
  const MapView& x = args.x;
  const int64_t tiles_y = divide_up(x.height, Kernel::kTileHeight), tiles_x = divide_up(x.width, Kernel::kTileWidth);
  const int64_t tiles = x.batch * tiles_y * tiles_x, chunks = divide_up(x.channels, kRowChannels<Element>);
  const int64_t max_blocks = divide_up(x.channels, Kernel::kChannels);
  const int64_t enough = divide_up(device.multiprocessors * Kernel::kMinBlocksPerSm, tiles);
  int64_t passes = 1;
  if (Kernel::kResident)
    passes = max_blocks;
  else if (!Kernel::kDepthwise)
    passes = divide_up(max_blocks, enough < max_blocks ? enough : max_blocks);
  const int64_t blocks = divide_up(max_blocks, passes), int_max = INT32_MAX;

  CrpPlan plan;
  if (!may_use(Kernel::kName)) return plan;
  const bool aligned = is_aligned(args);
  if (Kernel::kResident && (!aligned || args.stages < 2 || chunks > Kernel::kMaxChunks)) return plan;
  if (tiles * blocks * args.stages > int_max - 2 * device.multiprocessors * Kernel::kMinBlocksPerSm ||
      x.height > int_max / 2 || x.width > int_max / 2 || x.channels > int_max / 8)
    return plan;

  const int panel = Kernel::kDepthwise ? 1 : static_cast<int>(chunks);
  const int min_chunks = Kernel::kResident ? panel : Kernel::kPassChunks;
  int smem_chunks = panel > min_chunks ? panel : min_chunks;
  const auto needed = [&] { return int64_t{Kernel::smem_bytes(smem_chunks, panel)}; };
  while (smem_chunks > min_chunks && needed() > device.smem_bytes / Kernel::kMinBlocksPerSm) --smem_chunks;
  if (needed() > device.smem_bytes) return plan;
  plan.smem_bytes = static_cast<int>(needed());
  const int64_t resident = resident_blocks<Kernel>(device, plan.smem_bytes);
  if (resident == 0 || (Kernel::kResident && tiles > resident)) return plan;
  plan.blocks = static_cast<int>(tiles * blocks < resident ? tiles * blocks : resident);

  const int64_t bytes = Element::kBytes, pixels = x.batch * x.height * x.width;
  CrpTask& task = plan.task;
  Schedule& s = task.schedule;
  s.batch = static_cast<int>(x.batch);
  const int64_t per_image = tiles_y * tiles_x * blocks, group = divide_up(2 * plan.blocks, per_image);
  s.group = static_cast<int>(group < x.batch ? group : x.batch);
  s.stages = static_cast<int>(args.stages);
  s.tiles_y = static_cast<int>(tiles_y);
  s.tiles_x = static_cast<int>(tiles_x);
  s.blocks = static_cast<int>(blocks);
  s.independent = Kernel::kDepthwise;
  task.x = static_cast<const char*>(x.data);
  task.x_image = x.stride_n * bytes;
  task.x_row = x.stride_h * bytes;
  task.x_pixel = x.stride_w * bytes;
  task.out = static_cast<char*>(args.out);
  task.biased = args.biases != nullptr;
  for (int64_t i = 0; i < args.stages; ++i) {
    task.weights[i] = static_cast<const char*>(args.weights[i]);
    if (task.biased) task.biases[i] = static_cast<const char*>(args.biases[i]);
  }
  task.height = static_cast<int>(x.height);
  task.width = static_cast<int>(x.width);
  task.channels = static_cast<int>(x.channels);
  task.passes = static_cast<int>(passes);
  task.smem_chunks = smem_chunks;
  task.aligned = aligned;
  plan.cycles = expected_cycles<Kernel>(plan, device, tiles * blocks, chunks);
  plan.scratch = {(args.stages - 1) * pixels * x.channels * bytes, counters_used(s)};
  plan.start = [](const Device& on, const CrpPlan& p) {
    return launch<Kernel>(on, p.blocks, p.smem_bytes, p.task, Kernel::kResident);
  };
  return plan;
}

// Return the fastest of the kernels that can run the call, by expected cycles.
template <class... Kernels>
CrpPlan best_plan(const CrpArgs& args, const Device& device, CrpPlan best = {}) {
  for (const CrpPlan& plan : {plan_crp<Kernels>(args, device)...})
    if (plan.cycles < best.cycles) best = plan;
  return best;
}

// Return the best plan among the kernels in crp.cu.
template <class Element>
CrpPlan choose_crp(const CrpArgs& args, const Device& device);

inline const char* start(CrpPlan plan, const Device& device, void* scratch, int32_t* counters) {
  if (plan.blocks == 0) return "more channels or pixels than the kernels take on this device";
  plan.task.kept = static_cast<char*>(scratch);
  plan.task.schedule.counters = counters;
  return plan.start(device, plan);
}

}  // namespace lwrn_fast::cuda
