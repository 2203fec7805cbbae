// Packed weights of a 1x1 convolution: laid out once in the order in which the micro-kernel reads them.
#pragma once
#include "types.h"

#ifdef LWRN_ISA
namespace lwrn_fast::LWRN_ISA {

// Return a hash that always differs between two contents of which one word of 8 bytes differs, and almost always
// otherwise; each instruction set has its own.
uint64_t fingerprint(const void* data, int64_t bytes);

// Return the bytes of a packed (out_channels, in_channels) weight.
int64_t packed_bytes(Dtype dtype, int64_t out_channels, int64_t in_channels);

// weight: (out_channels, in_channels), contiguous. packed: packed_bytes() bytes, 64-byte aligned.
void pack(Dtype dtype, const void* weight, int64_t out_channels, int64_t in_channels, void* packed,
          const Threads& threads);

}  // namespace lwrn_fast::LWRN_ISA
#endif
