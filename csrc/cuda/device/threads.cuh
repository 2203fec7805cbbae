// Threads, blocks, shared memory and barriers. Tests replace the headers of this folder by an implementation for the
// CPU.
#pragma once
#include <cstdint>

#define LWRN_DEVICE __device__ __forceinline__
#define LWRN_BOTH __host__ __device__ __forceinline__

namespace lwrn_fast::cuda {

LWRN_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
LWRN_DEVICE int threads() { return static_cast<int>(blockDim.x); }
LWRN_DEVICE int block() { return static_cast<int>(blockIdx.x); }
LWRN_DEVICE int blocks() { return static_cast<int>(gridDim.x); }

// Return the block's dynamic shared memory, aligned to 1024 bytes.
LWRN_DEVICE char* shared_memory() {
  extern __shared__ __align__(1024) char memory[];
  return memory;
}

// Return `value` and hide it from the compiler, which then computes dependent addresses here instead of keeping them in
// registers from before.
LWRN_DEVICE int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Wait at a barrier for all threads of the block.
LWRN_DEVICE void sync() { __syncthreads(); }

}  // namespace lwrn_fast::cuda
