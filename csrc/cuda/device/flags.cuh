// Atomic counters in global memory, on which blocks of one launch wait for each other.
#pragma once
#include "threads.cuh"

namespace lwrn_fast::cuda {

// Add, and return the value before. Orders no other memory access.
LWRN_DEVICE int add_relaxed(int* counter, int value) {
  int before;
  asm volatile("atom.relaxed.gpu.global.add.s32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(value) : "memory");
  return before;
}

// Add with release: who acquires the value sees what this thread wrote, and what it saw written (by all of its block,
// after a sync()).
LWRN_DEVICE void add_release(int* counter, int value) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
}

LWRN_DEVICE int add_acquire_release(int* counter, int value) {
  int before;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(value) : "memory");
  return before;
}

LWRN_DEVICE int load_acquire(const int* counter) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

LWRN_DEVICE void store_relaxed(int* counter, int value) {
  asm volatile("st.relaxed.gpu.global.s32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
}

}  // namespace lwrn_fast::cuda
