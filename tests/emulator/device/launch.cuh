#pragma once
#include <engine.h>

#include <algorithm>
#include <type_traits>

#include "threads.cuh"

namespace lwrn_fast::cuda {

template <class Kernel>
int resident_blocks(const Device& device, int smem_bytes) {
  if (smem_bytes > device.smem_bytes) return 0;
  return device.multiprocessors * std::min(Kernel::kMinBlocksPerSm, (device.smem_bytes + 1024) / (smem_bytes + 1024));
}

template <class Kernel>
const char* launch(const Device& device, int blocks, int smem_bytes, const typename Kernel::Task& task,
                   bool cooperative = false) {
  using Task = typename Kernel::Task;
  static_assert(std::is_trivially_copyable_v<Task> && sizeof(Task) <= 4096 && Kernel::kThreads % 32 == 0);
  const int resident = resident_blocks<Kernel>(device, smem_bytes);
  if (blocks < 1) return "no blocks";
  if (resident == 0) return "too much shared memory";
  if (cooperative && blocks > resident) return "too many blocks for a cooperative launch";
  const int at_once = cooperative || !emulator::settings.at_once ? resident : emulator::settings.at_once;
  return emulator::launch({blocks, Kernel::kThreads, smem_bytes, at_once,
                           [](const void* given) { Kernel::run(*static_cast<const Task*>(given)); }, &task});
}

}  // namespace lwrn_fast::cuda
