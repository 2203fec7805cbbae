#pragma once
#include "threads.cuh"

namespace lwrn_fast::cuda {

struct alignas(16) Vector {
  uint32_t words[4];
};

// Return the vector at an address, which must be a multiple of 16.
LWRN_DEVICE const Vector& vector_at(const void* address) {
  emulator::require(reinterpret_cast<uintptr_t>(address) % 16 == 0, "an address of 16 bytes is no multiple of 16");
  return *static_cast<const Vector*>(address);
}
LWRN_DEVICE Vector& vector_at(void* address) {
  return const_cast<Vector&>(vector_at(const_cast<const void*>(address)));
}

LWRN_DEVICE Vector load_global(const void* from) { return vector_at(from); }
LWRN_DEVICE Vector load_constant(const void* from) { return vector_at(from); }
LWRN_DEVICE uint32_t load_global_word(const void* from) { return *static_cast<const uint32_t*>(from); }
LWRN_DEVICE uint32_t load_global_half(const void* from) { return *static_cast<const uint16_t*>(from); }
LWRN_DEVICE uint32_t load_constant_word(const void* from) { return load_global_word(from); }
LWRN_DEVICE uint32_t load_constant_half(const void* from) { return load_global_half(from); }
LWRN_DEVICE void store_global(void* to, const Vector& v) { vector_at(to) = v; }
LWRN_DEVICE Vector load_shared(const void* from) { return vector_at(from); }
LWRN_DEVICE void store_shared(void* to, const Vector& v) {
  emulator::wrote_shared(to);
  vector_at(to) = v;
}

// Poison the destination until the copy arrives. The copy reads its source now or at the wait, by chance.
LWRN_DEVICE void copy_async(void* to, const void* from, bool mask = true) {
  store_shared(to, {{~0u, ~0u, ~0u, ~0u}});
  const Vector early = mask ? vector_at(from) : Vector{};
  emulator::current->copies.add({to,
                                 mask ? from : nullptr,
                                 {{early.words[0], early.words[1], early.words[2], early.words[3]}},
                                 emulator::coin(),
                                 0});
}

LWRN_DEVICE void commit_copies() { ++emulator::current->copies.groups; }

template <int kPending>
LWRN_DEVICE void wait_copies() {
  while (const emulator::Copy* copy = emulator::current->copies.next(kPending)) {
    const uint32_t* early = copy->early.words;
    store_shared(copy->to, copy->from && !copy->is_early ? vector_at(copy->from)
                                                         : Vector{{early[0], early[1], early[2], early[3]}});
  }
}

}  // namespace lwrn_fast::cuda
