#pragma once
#include "copy.cuh"
#include "numbers.cuh"

namespace lwrn_fast::cuda {

template <class Element>
constexpr emulator::OperandType kOperandType = emulator::OperandType::tf32;
template <>
constexpr emulator::OperandType kOperandType<Bf16> = emulator::OperandType::bf16;
template <>
constexpr emulator::OperandType kOperandType<F16> = emulator::OperandType::f16;

LWRN_DEVICE emulator::Words words_at(const void* row) {
  const Vector& v = vector_at(row);
  return {{v.words[0], v.words[1], v.words[2], v.words[3]}};
}

LWRN_DEVICE void load_matrices(uint32_t (&matrices)[4], const void* row) {
  emulator::exchange_rows(words_at(row), matrices);
}

template <class Element>
LWRN_DEVICE void multiply_add(float* acc, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::multiply_tile(kOperandType<Element>, acc, a, b0, b1);
}

LWRN_DEVICE uint32_t to_tf32(uint32_t value) {
  return std::isfinite(float_of(value)) ? (value + 0x1000) & 0xffffe000u : value;  // ties away from zero
}

}  // namespace lwrn_fast::cuda
