// The current stream of PyTorch. For ops_cuda.cpp: the kernels know nothing of torch.
#pragma once
#include <torch/csrc/stable/accelerator.h>

namespace lwrn_fast::cuda {

// Makes a device the current one for as long as the object lives.
using CurrentDevice = torch::stable::accelerator::DeviceGuard;

// Return PyTorch's current stream on a device, a cudaStream_t.
inline void* current_stream(int device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

}  // namespace lwrn_fast::cuda
