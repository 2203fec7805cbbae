// Products of small matrices in registers, by the 32 threads of a warp together. PTX ISA, "Matrix multiply-accumulate".
#pragma once
#include "numbers.cuh"

namespace lwrn_fast::cuda {

// Load four matrices of 8 rows of 16 bytes: thread i passes the address of row i % 8 of matrix i / 8, and receives the
// word i % 4 of row i / 4 of each matrix.
LWRN_DEVICE void load_matrices(uint32_t (&matrices)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}

// acc (16 x 8) += a (16 rows of 32 bytes) * b (8 columns of 32 bytes). With g = lane / 4 and t = lane % 4:
// acc: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1). a: words t of rows g and g + 8, then words t + 4 of them.
// b: words t and t + 4 of column g.
template <class Element>
LWRN_DEVICE void multiply_add(float* acc, const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

#define LWRN_MULTIPLY_ADD(Element, instruction)                                                            \
  template <>                                                                                              \
  LWRN_DEVICE void multiply_add<Element>(float* acc, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {   \
    asm("mma.sync.aligned." instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])                                           \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                   \
  }
LWRN_MULTIPLY_ADD(Bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
LWRN_MULTIPLY_ADD(F16, "m16n8k16.row.col.f32.f16.f16.f32")
LWRN_MULTIPLY_ADD(Tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef LWRN_MULTIPLY_ADD

// Round float32 to TF32.
LWRN_DEVICE uint32_t to_tf32(uint32_t value) {
  uint32_t result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(__uint_as_float(value)));
  return result;
}

}  // namespace lwrn_fast::cuda
