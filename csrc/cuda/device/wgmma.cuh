// Products of matrices in shared memory, by the 128 threads of a warpgroup together: Hopper only. PTX ISA,
// "Asynchronous warpgroup level matrix instructions".
#pragma once
#include "numbers.cuh"

namespace lwrn_fast::cuda {

// Make the stores of this thread to shared memory visible to the wgmma instructions after the next sync().
LWRN_DEVICE void fence_for_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

LWRN_DEVICE void begin_wgmma() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
LWRN_DEVICE void commit_wgmma() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Wait until at most kPending of the latest groups are unfinished. With kPending 0, acc passes through the asm, so that
// the compiler moves no use of it before the wait.
template <int kPending, int kAccCount>
LWRN_DEVICE void wait_wgmma(float (&acc)[kAccCount]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  if constexpr (kPending == 0) {
#pragma unroll
    for (int i = 0; i < kAccCount; ++i) asm volatile("" : "+f"(acc[i])::"memory");
  }
}

// Return the descriptor of a matrix in shared memory: rows of 128 bytes, eight of them in 1024 aligned bytes, vectors
// swizzled as by swizzled_offset() in tile.cuh.
LWRN_DEVICE uint64_t wgmma_descriptor(const void* row) {
  const uint64_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

// acc (64 x channels) += a (64 rows) * b (channels rows, columns of the product), over the 32 bytes from 32 * step on
// of each row. Warp i of the warpgroup has rows 16 i and up; within a warp the tiles of acc lie one after another, each
// in the layout of multiply_add(). Between begin_wgmma() and wait_wgmma() nothing else may touch acc.
template <class Element, int kAccCount>
LWRN_DEVICE void multiply_wgmma(float (&acc)[kAccCount], const void* a, const void* b, int step);

#define LWRN_REGISTERS_64                                                            \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define LWRN_REGISTERS_32                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LWRN_ACC_64                                                                                               \
  "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3]), "+f"(acc[4]), "+f"(acc[5]), "+f"(acc[6]), "+f"(acc[7]), \
      "+f"(acc[8]), "+f"(acc[9]), "+f"(acc[10]), "+f"(acc[11]), "+f"(acc[12]), "+f"(acc[13]), "+f"(acc[14]),      \
      "+f"(acc[15]), "+f"(acc[16]), "+f"(acc[17]), "+f"(acc[18]), "+f"(acc[19]), "+f"(acc[20]), "+f"(acc[21]),    \
      "+f"(acc[22]), "+f"(acc[23]), "+f"(acc[24]), "+f"(acc[25]), "+f"(acc[26]), "+f"(acc[27]), "+f"(acc[28]),    \
      "+f"(acc[29]), "+f"(acc[30]), "+f"(acc[31]), "+f"(acc[32]), "+f"(acc[33]), "+f"(acc[34]), "+f"(acc[35]),    \
      "+f"(acc[36]), "+f"(acc[37]), "+f"(acc[38]), "+f"(acc[39]), "+f"(acc[40]), "+f"(acc[41]), "+f"(acc[42]),    \
      "+f"(acc[43]), "+f"(acc[44]), "+f"(acc[45]), "+f"(acc[46]), "+f"(acc[47]), "+f"(acc[48]), "+f"(acc[49]),    \
      "+f"(acc[50]), "+f"(acc[51]), "+f"(acc[52]), "+f"(acc[53]), "+f"(acc[54]), "+f"(acc[55]), "+f"(acc[56]),    \
      "+f"(acc[57]), "+f"(acc[58]), "+f"(acc[59]), "+f"(acc[60]), "+f"(acc[61]), "+f"(acc[62]), "+f"(acc[63])
#define LWRN_ACC_32                                                                                               \
  "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3]), "+f"(acc[4]), "+f"(acc[5]), "+f"(acc[6]), "+f"(acc[7]), \
      "+f"(acc[8]), "+f"(acc[9]), "+f"(acc[10]), "+f"(acc[11]), "+f"(acc[12]), "+f"(acc[13]), "+f"(acc[14]),      \
      "+f"(acc[15]), "+f"(acc[16]), "+f"(acc[17]), "+f"(acc[18]), "+f"(acc[19]), "+f"(acc[20]), "+f"(acc[21]),    \
      "+f"(acc[22]), "+f"(acc[23]), "+f"(acc[24]), "+f"(acc[25]), "+f"(acc[26]), "+f"(acc[27]), "+f"(acc[28]),    \
      "+f"(acc[29]), "+f"(acc[30]), "+f"(acc[31])

#define LWRN_MULTIPLY_WGMMA(Element, count, shape, first, second)                                                \
  template <>                                                                                                    \
  LWRN_DEVICE void multiply_wgmma<Element, count>(float (&acc)[count], const void* a, const void* b, int step) { \
    asm volatile("wgmma.mma_async.sync.aligned." shape " {" LWRN_REGISTERS_##count "}, " first ", " second       \
                                                                                   ", 1, 1, 1, 0, 0;"            \
                 : LWRN_ACC_##count                                                                              \
                 : "l"(wgmma_descriptor(a) + 2 * step), "l"(wgmma_descriptor(b) + 2 * step));                    \
  }
LWRN_MULTIPLY_WGMMA(Bf16, 64, "m64n128k16.f32.bf16.bf16", "%64", "%65")
LWRN_MULTIPLY_WGMMA(Bf16, 32, "m64n64k16.f32.bf16.bf16", "%32", "%33")
LWRN_MULTIPLY_WGMMA(F16, 64, "m64n128k16.f32.f16.f16", "%64", "%65")
LWRN_MULTIPLY_WGMMA(F16, 32, "m64n64k16.f32.f16.f16", "%32", "%33")
#undef LWRN_MULTIPLY_WGMMA
#undef LWRN_REGISTERS_64
#undef LWRN_REGISTERS_32
#undef LWRN_ACC_64
#undef LWRN_ACC_32

}  // namespace lwrn_fast::cuda
