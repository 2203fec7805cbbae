// Products of matrices in shared memory by a warpgroup, 128 threads: Hopper only. PTX ISA, "Asynchronous warpgroup
// level matrix instructions".
#pragma once
#include "numbers.cuh"

namespace lwrn_fast::cuda {

// What this thread stored to shared memory before the next sync() is there for the multiplications that follow it.
LWRN_DEVICE void fence_for_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

LWRN_DEVICE void begin_wgmma() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
LWRN_DEVICE void commit_wgmma() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending of the latest groups are unfinished. Where none is left, the sums pass through, so that
// no use of them is moved before it.
template <int kPending, int kCount>
LWRN_DEVICE void wait_wgmma(float (&sums)[kCount]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  if constexpr (kPending == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
  }
}

// Rows of 128 bytes in shared memory, eight of them in 1024 aligned bytes, with vectors swizzled as by place() in
// tile.cuh.
LWRN_DEVICE uint64_t wgmma_matrix(const void* row) {
  const uint64_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

// sums (64 x planes) += a (64 rows) * b (planes rows, columns of the product), over the 32 bytes from 32 * step on of
// each row. Warp i of the warpgroup has rows 16 i and up; within a warp sums lie as those of multiply_add, one after
// another. Between begin_wgmma() and wait_wgmma() nothing else may touch the sums.
template <class Kind, int kCount>
LWRN_DEVICE void multiply_wgmma(float (&sums)[kCount], const void* a, const void* b, int step);

#define LWRN_REGISTERS_64                                                            \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define LWRN_REGISTERS_32                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LWRN_SUMS_64                                                                                                  \
  "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]),            \
      "+f"(sums[7]), "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]),    \
      "+f"(sums[14]), "+f"(sums[15]), "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]), \
      "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]), "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), \
      "+f"(sums[28]), "+f"(sums[29]), "+f"(sums[30]), "+f"(sums[31]), "+f"(sums[32]), "+f"(sums[33]), "+f"(sums[34]), \
      "+f"(sums[35]), "+f"(sums[36]), "+f"(sums[37]), "+f"(sums[38]), "+f"(sums[39]), "+f"(sums[40]), "+f"(sums[41]), \
      "+f"(sums[42]), "+f"(sums[43]), "+f"(sums[44]), "+f"(sums[45]), "+f"(sums[46]), "+f"(sums[47]), "+f"(sums[48]), \
      "+f"(sums[49]), "+f"(sums[50]), "+f"(sums[51]), "+f"(sums[52]), "+f"(sums[53]), "+f"(sums[54]), "+f"(sums[55]), \
      "+f"(sums[56]), "+f"(sums[57]), "+f"(sums[58]), "+f"(sums[59]), "+f"(sums[60]), "+f"(sums[61]), "+f"(sums[62]), \
      "+f"(sums[63])
#define LWRN_SUMS_32                                                                                                  \
  "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]), "+f"(sums[6]),            \
      "+f"(sums[7]), "+f"(sums[8]), "+f"(sums[9]), "+f"(sums[10]), "+f"(sums[11]), "+f"(sums[12]), "+f"(sums[13]),    \
      "+f"(sums[14]), "+f"(sums[15]), "+f"(sums[16]), "+f"(sums[17]), "+f"(sums[18]), "+f"(sums[19]), "+f"(sums[20]), \
      "+f"(sums[21]), "+f"(sums[22]), "+f"(sums[23]), "+f"(sums[24]), "+f"(sums[25]), "+f"(sums[26]), "+f"(sums[27]), \
      "+f"(sums[28]), "+f"(sums[29]), "+f"(sums[30]), "+f"(sums[31])

#define LWRN_MULTIPLY_WGMMA(Kind, count, shape, first, second)                                                 \
  template <>                                                                                                  \
  LWRN_DEVICE void multiply_wgmma<Kind, count>(float (&sums)[count], const void* a, const void* b, int step) { \
    asm volatile("wgmma.mma_async.sync.aligned." shape " {" LWRN_REGISTERS_##count "}, " first ", " second     \
                                                                                   ", 1, 1, 1, 0, 0;"          \
                 : LWRN_SUMS_##count                                                                           \
                 : "l"(wgmma_matrix(a) + 2 * step), "l"(wgmma_matrix(b) + 2 * step));                          \
  }
LWRN_MULTIPLY_WGMMA(Bf16, 64, "m64n128k16.f32.bf16.bf16", "%64", "%65")
LWRN_MULTIPLY_WGMMA(Bf16, 32, "m64n64k16.f32.bf16.bf16", "%32", "%33")
LWRN_MULTIPLY_WGMMA(F16, 64, "m64n128k16.f32.f16.f16", "%64", "%65")
LWRN_MULTIPLY_WGMMA(F16, 32, "m64n64k16.f32.f16.f16", "%32", "%33")
#undef LWRN_MULTIPLY_WGMMA
#undef LWRN_REGISTERS_64
#undef LWRN_REGISTERS_32
#undef LWRN_SUMS_64
#undef LWRN_SUMS_32

}  // namespace lwrn_fast::cuda
