// Queries of the CUDA runtime about devices and streams.
#pragma once
#include <utility>

#include "launch.cuh"

namespace lwrn_fast::cuda {

__global__ void empty_kernel() {}

// Write the facts about the current device. Return null or an error text.
inline const char* query_device(int index, Device* device) {
  int major = 0, minor = 0;
  const std::pair<cudaDeviceAttr, int*> attributes[] = {
      {cudaDevAttrComputeCapabilityMajor, &major},
      {cudaDevAttrComputeCapabilityMinor, &minor},
      {cudaDevAttrMultiProcessorCount, &device->multiprocessors},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, &device->smem_bytes},
  };
  for (const auto& [attribute, value] : attributes)
    if (const char* error = failure(cudaDeviceGetAttribute(value, attribute, index))) return error;
  device->index = index;
  device->capability = 10 * major + minor;
  cudaFuncAttributes of_kernel;
  // Fails where the build has no code for this device.
  return failure(cudaFuncGetAttributes(&of_kernel, empty_kernel));
}

// Return true while the stream is captured into a graph.
inline bool is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  failure(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status));
  return status == cudaStreamCaptureStatusActive;
}

}  // namespace lwrn_fast::cuda
