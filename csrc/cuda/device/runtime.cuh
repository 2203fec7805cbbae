// What the CUDA runtime knows of devices and streams.
#pragma once
#include <utility>

#include "launch.cuh"

namespace lwrn_fast::cuda {

__global__ void nothing() {}

// Fills in the facts about the current device. Null, or the error in words.
inline const char* ask_device(int index, Device* device) {
  int major = 0, minor = 0;
  const std::pair<cudaDeviceAttr, int*> questions[] = {
      {cudaDevAttrComputeCapabilityMajor, &major},
      {cudaDevAttrComputeCapabilityMinor, &minor},
      {cudaDevAttrMultiProcessorCount, &device->multiprocessors},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, &device->shared_bytes},
  };
  for (const auto& [attribute, value] : questions)
    if (const char* error = failure(cudaDeviceGetAttribute(value, attribute, index))) return error;
  device->index = index;
  device->capability = 10 * major + minor;
  cudaFuncAttributes attributes;
  return failure(cudaFuncGetAttributes(&attributes, nothing));  // fails where the build has no code for this device
}

// Whether what is put on the stream becomes part of a graph.
inline bool is_recording(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  failure(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status));
  return status == cudaStreamCaptureStatusActive;
}

}  // namespace lwrn_fast::cuda
