#pragma once
#include "threads.cuh"

namespace lwrn_fast::cuda {

LWRN_DEVICE int add_flag(int* counter, int value, int order) {
  const int before = order == __ATOMIC_RELAXED   ? __atomic_fetch_add(counter, value, __ATOMIC_RELAXED)
                     : order == __ATOMIC_RELEASE ? __atomic_fetch_add(counter, value, __ATOMIC_RELEASE)
                                                 : __atomic_fetch_add(counter, value, __ATOMIC_ACQ_REL);
  emulator::wrote_flag();
  return before;
}

LWRN_DEVICE int add_relaxed(int* counter, int value) { return add_flag(counter, value, __ATOMIC_RELAXED); }
LWRN_DEVICE void add_release(int* counter, int value) { add_flag(counter, value, __ATOMIC_RELEASE); }
LWRN_DEVICE int add_acquire_release(int* counter, int value) { return add_flag(counter, value, __ATOMIC_ACQ_REL); }

LWRN_DEVICE int load_acquire(const int* counter) {
  if (emulator::coin()) emulator::poll();
  return __atomic_load_n(counter, __ATOMIC_ACQUIRE);
}

LWRN_DEVICE void store_relaxed(int* counter, int value) {
  __atomic_store_n(counter, value, __ATOMIC_RELAXED);
  emulator::wrote_flag();
}

}  // namespace lwrn_fast::cuda
