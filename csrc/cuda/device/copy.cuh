// Loads, stores and asynchronous copies of 16 bytes, at addresses that are multiples of 16.
#pragma once
#include "threads.cuh"

namespace lwrn_fast::cuda {

struct alignas(16) Vector {
  uint32_t words[4];
};

// Load past the L1 cache, which does not see what other blocks write.
LWRN_DEVICE Vector load_global(const void* from) {
  Vector v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
               : "l"(from)
               : "memory");
  return v;
}

// Load memory that nobody writes during the launch, through the L1 cache.
LWRN_DEVICE Vector load_constant(const void* from) {
  Vector v;
  asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
      : "l"(from));
  return v;
}

// Load 32 or 16 bits, aligned to their size, past the L1 cache.
LWRN_DEVICE uint32_t load_global_word(const void* from) {
  uint32_t value;
  asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
LWRN_DEVICE uint32_t load_global_half(const void* from) {
  uint16_t value;
  asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(value) : "l"(from) : "memory");
  return value;
}

LWRN_DEVICE uint32_t load_constant_word(const void* from) {
  uint32_t value;
  asm("ld.global.nc.u32 %0, [%1];" : "=r"(value) : "l"(from));
  return value;
}
LWRN_DEVICE uint32_t load_constant_half(const void* from) {
  uint16_t value;
  asm("ld.global.nc.u16 %0, [%1];" : "=h"(value) : "l"(from));
  return value;
}

LWRN_DEVICE void store_global(void* to, const Vector& v) { *static_cast<Vector*>(to) = v; }
LWRN_DEVICE Vector load_shared(const void* from) { return *static_cast<const Vector*>(from); }
LWRN_DEVICE void store_shared(void* to, const Vector& v) { *static_cast<Vector*>(to) = v; }

// Start a copy from global to shared memory, past L1. Where `mask` is false, write zeros and do not read `from`.
LWRN_DEVICE void copy_async(void* to, const void* from, bool mask = true) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(mask ? 16 : 0)
               : "memory");
}

// Close the group of the copies that this thread started.
LWRN_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most `kPending` of the latest groups of this thread are unfinished. Other threads see the copies after
// the next sync().
template <int kPending>
LWRN_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace lwrn_fast::cuda
