// A vector of floats, the same few operations for every instruction set, and conversions from and to 16 bits.
// Everything here is internal to the file that includes it, so that no function built for one instruction set is
// linked into another's code.
#pragma once
#include <cstdint>
#include <cstring>

#include "../types.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace lwrn_fast::LWRN_ISA {
namespace {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// Call body(T()) with the element type that dtype names.
template <class Body>
void with_type(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::f32:
      return body(float());
    case Dtype::bf16:
      return body(bf16());
    case Dtype::f16:
      return body(f16());
  }
}

inline float to_float(float x) { return x; }

inline float to_float(bf16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

inline float to_float(f16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  float y;
  if (magnitude < 0x0400u) {  // zero and subnormals: multiples of 2^-24
    y = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    uint32_t bits;
    std::memcpy(&bits, &y, 4);
    bits |= sign;
    std::memcpy(&y, &bits, 4);
    return y;
  }
  const uint32_t bits = sign | ((magnitude << 13) + (magnitude < 0x7c00u ? 0x38000000u : 0x70000000u));
  std::memcpy(&y, &bits, 4);
  return y;
#endif
}

inline void from_float(float x, float* to) { *to = x; }

inline void from_float(float x, bf16* to) {  // to the nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  to->bits = x != x ? 0x7fc0u : static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline void from_float(float x, f16* to) {
#if defined(__F16C__)
  to->bits = static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#else
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x47800000u) {
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 makes the adder round to a multiple of 2^-24
    float y;
    std::memcpy(&y, &magnitude, 4);
    y += 0.5f;
    std::memcpy(&half, &y, 4);
    half -= 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0x0fffu + (magnitude >> 13 & 1u)) >> 13;
  }
  to->bits = static_cast<uint16_t>(sign | half);
#endif
}

#if defined(__AVX512F__)

constexpr int kWidth = 16;
using vf = __m512;

inline vf splat(float x) { return _mm512_set1_ps(x); }
inline vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
inline vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
inline vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
inline vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
// Return NaN where either is NaN; the bare instruction returns its second operand.
inline vf max_nan(vf a, vf b) { return _mm512_mask_max_ps(a, _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a, b); }
inline vf max_second(vf a, vf b) { return _mm512_max_ps(a, b); }  // b where either is NaN
inline vf min_second(vf a, vf b) { return _mm512_min_ps(a, b); }

inline vf load(const float* p) { return _mm512_loadu_ps(p); }
inline vf load(const bf16* p) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
inline vf load(const f16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

inline void store(float* p, vf x) { _mm512_storeu_ps(p, x); }
inline __m256i to_bf16(vf x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i y = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), even), 16);
  y = _mm512_mask_mov_epi32(y, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
  return _mm512_cvtepi32_epi16(y);
}
inline void store(bf16* p, vf x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(x)); }
inline void store(f16* p, vf x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

using mask = __mmask16;
using vc = __m512i;  // one code, a small whole number, for each lane

inline mask greater_or_nan(vf a, vf b) {  // where a > b or a is NaN
  return static_cast<mask>(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) | _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q));
}
inline vf choose(mask m, vf a, vf b) { return _mm512_mask_mov_ps(b, m, a); }
inline vf keep(mask m, vf a) { return _mm512_maskz_mov_ps(m, a); }
inline vc choose(mask m, vc a, vc b) { return _mm512_mask_mov_epi32(b, m, a); }
inline vc codes(int code) { return _mm512_set1_epi32(code); }
inline mask equal(vc a, vc b) { return _mm512_cmpeq_epi32_mask(a, b); }
inline vc load_codes(const uint8_t* p) {
  // With a mask, since GCC warns of what the bare intrinsic leaves undefined.
  return _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store_codes(uint8_t* p, vc a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a)); }

#elif defined(__AVX2__)

constexpr int kWidth = 8;
using vf = __m256;

inline vf splat(float x) { return _mm256_set1_ps(x); }
inline vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
inline vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
inline vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
inline vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
// Return NaN where either is NaN: the bare instruction returns its second operand, and all bits set are a NaN.
inline vf max_nan(vf a, vf b) { return _mm256_or_ps(_mm256_max_ps(a, b), _mm256_cmp_ps(a, a, _CMP_UNORD_Q)); }
inline vf max_second(vf a, vf b) { return _mm256_max_ps(a, b); }  // b where either is NaN
inline vf min_second(vf a, vf b) { return _mm256_min_ps(a, b); }

inline vf load(const float* p) { return _mm256_loadu_ps(p); }
inline vf load(const bf16* p) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
inline vf load(const f16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }

inline void store(float* p, vf x) { _mm256_storeu_ps(p, x); }
inline void store(bf16* p, vf x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i y = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), even), 16);
  y = _mm256_blendv_epi8(y, _mm256_set1_epi32(0x7fc0), _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
inline void store(f16* p, vf x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

using mask = __m256;
using vc = __m256i;  // one code, a small whole number, for each lane

inline mask greater_or_nan(vf a, vf b) {  // where a > b or a is NaN
  return _mm256_or_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}
inline vf choose(mask m, vf a, vf b) { return _mm256_blendv_ps(b, a, m); }
inline vf keep(mask m, vf a) { return _mm256_and_ps(m, a); }
inline vc choose(mask m, vc a, vc b) { return _mm256_blendv_epi8(b, a, _mm256_castps_si256(m)); }
inline vc codes(int code) { return _mm256_set1_epi32(code); }
inline mask equal(vc a, vc b) { return _mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b)); }
inline vc load_codes(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline void store_codes(uint8_t* p, vc a) {
  const __m128i pairs = _mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(pairs, pairs));
}

#else

constexpr int kWidth = 4;
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));

inline vf splat(float x) { return vf{x, x, x, x}; }
inline vf add(vf a, vf b) { return a + b; }
inline vf sub(vf a, vf b) { return a - b; }
inline vf mul(vf a, vf b) { return a * b; }
inline vf fma(vf a, vf b, vf c) { return a * b + c; }
inline vf select(vi mask, vf a, vf b) {
  return reinterpret_cast<vf>((mask & reinterpret_cast<vi>(a)) | (~mask & reinterpret_cast<vi>(b)));
}
inline vf max_second(vf a, vf b) { return select(a > b, a, b); }  // b where either is NaN
inline vf min_second(vf a, vf b) { return select(a < b, a, b); }
inline vf max_nan(vf a, vf b) { return reinterpret_cast<vf>(reinterpret_cast<vi>(max_second(a, b)) | (a != a)); }

inline vf load(const float* p) {
  vf x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline void store(float* p, vf x) { std::memcpy(p, &x, sizeof x); }
template <class T>
inline vf load(const T* p) {
  return vf{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
}
template <class T>
inline void store(T* p, vf x) {
  for (int i = 0; i < kWidth; ++i) from_float(x[i], p + i);
}

using mask = vi;
using vc = vi;  // one code, a small whole number, for each lane

inline mask greater_or_nan(vf a, vf b) { return (a > b) | (a != a); }
inline vf choose(mask m, vf a, vf b) { return select(m, a, b); }
inline vf keep(mask m, vf a) { return reinterpret_cast<vf>(m & reinterpret_cast<vi>(a)); }
inline vc choose(mask m, vc a, vc b) { return (m & a) | (~m & b); }
inline vc codes(int code) { return vc{code, code, code, code}; }
inline mask equal(vc a, vc b) { return a == b; }
inline vc load_codes(const uint8_t* p) { return vc{p[0], p[1], p[2], p[3]}; }
inline void store_codes(uint8_t* p, vc a) {
  for (int i = 0; i < kWidth; ++i) p[i] = static_cast<uint8_t>(a[i]);
}

#endif

// Load or store the first n < kWidth elements; the others read as zero and stay unwritten.
template <class T>
inline vf load_first(const T* p, int64_t n) {
  float x[kWidth] = {};
  for (int64_t i = 0; i < n; ++i) x[i] = to_float(p[i]);
  return load(x);
}
template <class T>
inline void store_first(T* p, vf x, int64_t n) {
  float y[kWidth];
  store(y, x);
  for (int64_t i = 0; i < n; ++i) from_float(y[i], p + i);
}

// Load or store n elements; n >= kWidth is a whole vector.
template <class T>
inline vf load_upto(const T* p, int64_t n) {
  return n >= kWidth ? load(p) : load_first(p, n);
}
template <class T>
inline void store_upto(T* p, vf x, int64_t n) {
  if (n >= kWidth)
    store(p, x);
  else
    store_first(p, x, n);
}

// Return the sum of `count` vectors, `stride` elements apart, as the sum of two halves: few roundings for each number.
inline vf sum_in_pairs(const float* first, int64_t stride, int64_t count) {
  if (count > 4)
    return add(sum_in_pairs(first, stride, count / 2),
               sum_in_pairs(first + count / 2 * stride, stride, count - count / 2));
  vf sum = load(first);
  for (int64_t i = 1; i < count; ++i) sum = add(sum, load(first + i * stride));
  return sum;
}

// Tell the processor that this thread waits for another.
inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t clamp(int64_t x, int64_t low, int64_t high) { return min(max(x, low), high); }

}  // namespace
}  // namespace lwrn_fast::LWRN_ISA
