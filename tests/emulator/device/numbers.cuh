#pragma once
#include <cmath>
#include <cstring>

#include "threads.cuh"

namespace lwrn_fast::cuda {

struct Bf16 {
  static constexpr int kBytes = 2;
};
struct F16 {
  static constexpr int kBytes = 2;
};
struct F32 {
  static constexpr int kBytes = 4;
};
struct Tf32 {
  static constexpr int kBytes = 4;
};

template <class Element>
constexpr int kPerWord = 4 / Element::kBytes;

LWRN_DEVICE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

LWRN_DEVICE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <class Element>
LWRN_DEVICE void unpack(uint32_t word, float (&values)[kPerWord<Element>]) {
  values[0] = float_of(word);
}
template <>
LWRN_DEVICE void unpack<Bf16>(uint32_t word, float (&values)[2]) {
  values[0] = float_of(word << 16);
  values[1] = float_of(word & 0xffff0000u);
}
template <>
LWRN_DEVICE void unpack<F16>(uint32_t word, float (&values)[2]) {
  values[0] = emulator::half_to_float(static_cast<uint16_t>(word));
  values[1] = emulator::half_to_float(static_cast<uint16_t>(word >> 16));
}

template <class Element>
LWRN_DEVICE uint32_t pack(const float (&values)[kPerWord<Element>]) {
  return bits_of(values[0]);
}
template <>
LWRN_DEVICE uint32_t pack<Bf16>(const float (&values)[2]) {
  uint32_t halves[2];
  for (int i = 0; i < 2; ++i) {
    const uint32_t bits = bits_of(values[i]);
    halves[i] = std::isnan(values[i]) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
  return halves[1] << 16 | halves[0];
}
template <>
LWRN_DEVICE uint32_t pack<F16>(const float (&values)[2]) {
  return static_cast<uint32_t>(emulator::float_to_half(values[1])) << 16 | emulator::float_to_half(values[0]);
}

template <class Element>
LWRN_DEVICE uint32_t max_nan(uint32_t a, uint32_t b) {
  float first[kPerWord<Element>], second[kPerWord<Element>];
  unpack<Element>(a, first);
  unpack<Element>(b, second);
  constexpr uint32_t mask = Element::kBytes == 2 ? 0xffff : 0xffffffff;
  uint32_t result = 0;
  for (int i = 0; i < kPerWord<Element>; ++i) {
    const bool left = first[i] > second[i] || std::isnan(first[i]);
    result |= (left ? a : b) & mask << i * 16;
  }
  return result;
}

LWRN_DEVICE float multiply_add(uint32_t a, uint32_t b, float c) { return std::fma(float_of(a), float_of(b), c); }

}  // namespace lwrn_fast::cuda
