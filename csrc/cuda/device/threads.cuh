// Threads, blocks, shared memory and barriers. One of the few files that a host implementation stands in for in tests.
#pragma once
#include <cstdint>

#define LWRN_DEVICE __device__ __forceinline__
#define LWRN_BOTH __host__ __device__ __forceinline__

namespace lwrn_fast::cuda {

LWRN_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
LWRN_DEVICE int threads() { return static_cast<int>(blockDim.x); }
LWRN_DEVICE int block() { return static_cast<int>(blockIdx.x); }
LWRN_DEVICE int blocks() { return static_cast<int>(gridDim.x); }

// The block's dynamic shared memory, aligned to 1024 bytes.
LWRN_DEVICE char* shared_memory() {
  extern __shared__ __align__(1024) char memory[];
  return memory;
}

// `value`, of which the compiler knows nothing: what depends on it is computed here, and not kept in registers from
// before.
LWRN_DEVICE int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// All threads of the block.
LWRN_DEVICE void sync() { __syncthreads(); }

}  // namespace lwrn_fast::cuda
