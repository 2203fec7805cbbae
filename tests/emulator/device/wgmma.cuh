#pragma once
#include "mma.cuh"

namespace lwrn_fast::cuda {

LWRN_DEVICE void fence_for_wgmma() { ++emulator::current->fences; }
LWRN_DEVICE void begin_wgmma() { emulator::current->may_multiply = true; }

LWRN_DEVICE void commit_wgmma() {
  ++emulator::current->products.groups;
  emulator::current->may_multiply = false;
}

template <int kPending, int kAccCount>
LWRN_DEVICE void wait_wgmma(float (&)[kAccCount]) {
  while (const emulator::Product* product = emulator::current->products.next(kPending)) product->run(*product);
}

// Read 32 bytes of a row.
LWRN_DEVICE void read_row(emulator::Words (&words)[2], const char* matrix, int row, int step) {
  for (int i = 0; i < 2; ++i) {
    const char* from = matrix + 128 * row + ((2 * step + i) ^ (row & 7)) * 16;
    emulator::require(emulator::fenced(from), "a warpgroup multiplies stored data that is not fenced");
    words[i] = words_at(from);
  }
}

// Add this thread's part of the product. Eight rows of b make four accumulators.
template <class Element, int kAccCount>
LWRN_DEVICE void multiply_part(const emulator::Product& product) {
  const int lane = thread() % 32, row = thread() % 128 / 32 * 16 + lane / 4;
  emulator::Words a[2][2], b[kAccCount / 4][2][2];
  for (int i = 0; i < 2; ++i) read_row(a[i], product.a, row + 8 * i, product.step);
  for (int tile = 0; tile < kAccCount / 4; ++tile)
    for (int i = 0; i < 2; ++i) read_row(b[tile][i], product.b, 8 * tile + lane % 4 * 2 + i, product.step);
  emulator::multiply_rows(kOperandType<Element>, product.acc, a, b, kAccCount / 4);
}

// Multiply now or at the wait, by chance; products stay in order.
template <class Element, int kAccCount>
LWRN_DEVICE void multiply_wgmma(float (&acc)[kAccCount], const void* a, const void* b, int step) {
  static_assert(Element::kBytes == 2 && (kAccCount == 32 || kAccCount == 64));
  emulator::require(emulator::current->may_multiply, "a warpgroup multiplies without begin_wgmma()");
  for (const void* matrix : {a, b})
    emulator::require(reinterpret_cast<uintptr_t>(matrix) % 1024 == 0, "a matrix's address is no multiple of 1024");
  const emulator::Product product{acc, static_cast<const char*>(a),       static_cast<const char*>(b), step,
                                  0,   &multiply_part<Element, kAccCount>};
  if (emulator::current->products.empty() && emulator::coin())
    multiply_part<Element, kAccCount>(product);
  else
    emulator::current->products.add(product);
}

}  // namespace lwrn_fast::cuda
