// Launches a kernel: a type with `Task`, `kThreads`, `kMinBlocksPerSm` (blocks that share a multiprocessor, at least)
// and a device function `run(const Task&)`.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <map>
#include <mutex>
#include <utility>

#include "../engine.h"
#include "threads.cuh"

namespace lwrn_fast::cuda {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocksPerSm)
    kernel(const __grid_constant__ typename Kernel::Task task) {
  Kernel::run(task);
}

inline const char* failure(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // clears the error, so that later calls do not report it
  return cudaGetErrorString(error);
}

// Allow the kernel all shared memory that the current device gives a block. Calls the runtime once per device.
template <class Kernel>
const char* allow_shared_memory(const Device& device) {
  static std::atomic<uint64_t> allowed{0};  // one bit per device, for the first 64
  const uint64_t bit = device.index < 64 ? uint64_t{1} << device.index : 0;
  if (allowed.load(std::memory_order_relaxed) & bit) return nullptr;
  const char* error =
      failure(cudaFuncSetAttribute(kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, device.smem_bytes));
  if (!error) allowed.fetch_or(bit, std::memory_order_relaxed);
  return error;
}

// Return how many blocks with so much dynamic shared memory run at once on the current device; 0: none.
template <class Kernel>
int resident_blocks(const Device& device, int smem_bytes) {
  static std::mutex mutex;
  static std::map<std::pair<int, int>, int> cache;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto entry = cache.find({device.index, smem_bytes});
  if (entry != cache.end()) return entry->second;
  int per_multiprocessor = 0;
  if (allow_shared_memory<Kernel>(device) ||
      failure(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel<Kernel>, Kernel::kThreads,
                                                            static_cast<size_t>(smem_bytes))))
    return 0;
  return cache[{device.index, smem_bytes}] = per_multiprocessor * device.multiprocessors;
}

// Launch a kernel; return null or an error text. cooperative: all blocks run at once, or the launch fails.
template <class Kernel>
const char* launch(const Device& device, int blocks, int smem_bytes, const typename Kernel::Task& task,
                   bool cooperative = false) {
  if (const char* error = allow_shared_memory<Kernel>(device)) return error;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = cooperative;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(Kernel::kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(smem_bytes);
  config.stream = static_cast<cudaStream_t>(device.stream);
  config.attrs = &attribute;
  config.numAttrs = 1;
  return failure(cudaLaunchKernelEx(&config, kernel<Kernel>, task));
}

}  // namespace lwrn_fast::cuda
