// Element types, and arithmetic on 32-bit words: two elements of 16 bits or one of 32.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "threads.cuh"

namespace lwrn_fast::cuda {

struct Bf16 {
  static constexpr int kBytes = 2;
};
struct F16 {
  static constexpr int kBytes = 2;
};
// float32, multiplied exactly (F32) or by tensor cores after rounding to 10 fraction bits (Tf32).
struct F32 {
  static constexpr int kBytes = 4;
};
struct Tf32 {
  static constexpr int kBytes = 4;
};

// Elements in a word.
template <class Element>
constexpr int kPerWord = 4 / Element::kBytes;

// Return the maximum of each element; NaN if one is NaN.
template <class Element>
LWRN_DEVICE uint32_t max_nan(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("max.NaN.f32 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}
template <>
LWRN_DEVICE uint32_t max_nan<Bf16>(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}
template <>
LWRN_DEVICE uint32_t max_nan<F16>(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

// Convert the elements of a word to float, the lower half first.
template <class Element>
LWRN_DEVICE void unpack(uint32_t word, float (&values)[kPerWord<Element>]) {
  values[0] = __uint_as_float(word);
}
template <>
LWRN_DEVICE void unpack<Bf16>(uint32_t word, float (&values)[2]) {
  values[0] = __uint_as_float(word << 16);
  values[1] = __uint_as_float(word & 0xffff0000u);
}
template <>
LWRN_DEVICE void unpack<F16>(uint32_t word, float (&values)[2]) {
  const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&word));
  values[0] = pair.x;
  values[1] = pair.y;
}

// Round to the element type, to nearest, ties to even.
template <class Element>
LWRN_DEVICE uint32_t pack(const float (&values)[kPerWord<Element>]) {
  return __float_as_uint(values[0]);
}
template <>
LWRN_DEVICE uint32_t pack<Bf16>(const float (&values)[2]) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(values[0], values[1]);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
LWRN_DEVICE uint32_t pack<F16>(const float (&values)[2]) {
  const __half2 pair = __floats2half2_rn(values[0], values[1]);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Return a * b + c, rounded once; a and b hold float32.
LWRN_DEVICE float multiply_add(uint32_t a, uint32_t b, float c) {
  return __fmaf_rn(__uint_as_float(a), __uint_as_float(b), c);
}

}  // namespace lwrn_fast::cuda
