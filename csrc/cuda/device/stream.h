// Where PyTorch would launch now. For ops_cuda.cpp: the kernels know nothing of torch.
#pragma once
#include <torch/csrc/stable/accelerator.h>

namespace lwrn_fast::cuda {

// Makes a device the current one, until the end of its life.
using CurrentDevice = torch::stable::accelerator::DeviceGuard;

// A cudaStream_t.
inline void* current_stream(int device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

}  // namespace lwrn_fast::cuda
