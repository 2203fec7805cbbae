// Matrices in shared memory: rows of 128 bytes, eight vectors of 16. The vectors of a row are swapped by the row's last
// three bits, so that a column of vectors lies in different banks; wgmma calls this the 128-byte swizzle.
#pragma once
#include <device/copy.cuh>
#include <device/numbers.cuh>

namespace lwrn_fast::cuda {

constexpr int kThreads = 256;  // of every kernel that multiplies
constexpr int kRowBytes = 128;
constexpr int kVectors = kRowBytes / 16;

template <class Kind>
constexpr int kRowPlanes = kRowBytes / Kind::kBytes;

template <class Kind>
constexpr int kVectorPlanes = 16 / Kind::kBytes;

// Where vector `vector` of row `row` lies, in bytes.
LWRN_DEVICE int place(int row, int vector) { return row * kRowBytes + ((vector ^ (row & 7)) << 4); }

// One vector of planes, of which `count` are there, at least one; the others are zero. `aligned`: all addresses and
// counts are multiples of 16 bytes, so that there are whole vectors only.
template <class Kind>
LWRN_DEVICE Vector load_planes(const char* from, int count, bool aligned) {
  if (aligned) return load_global(from);
  Vector v = {};
#pragma unroll
  for (int i = 0; i < kVectorPlanes<Kind>; ++i) {
    if (i >= count) continue;
    if constexpr (Kind::kBytes == 4)
      v.words[i] = load_global_word(from + 4 * i);
    else
      v.words[i / 2] |= load_global_half(from + 2 * i) << i % 2 * 16;
  }
  return v;
}

// Begins to copy one vector of planes to shared memory: `count` of them are there, which may be none; the rest becomes
// zero. Planes that are not `aligned` are copied one by one, at once.
template <class Kind>
LWRN_DEVICE void copy_planes(void* to, const char* from, int count, bool aligned) {
  if (aligned)
    copy_async(to, from, count > 0);
  else
    store_shared(to, load_planes<Kind>(from, count, false));
}

template <class Kind>
LWRN_DEVICE void store_planes(char* to, const Vector& v, int count, bool aligned) {
  if (aligned) {
    store_global(to, v);
    return;
  }
#pragma unroll
  for (int i = 0; i < kVectorPlanes<Kind>; ++i) {
    if (i >= count) continue;
    if constexpr (Kind::kBytes == 4)
      *reinterpret_cast<uint32_t*>(to + 4 * i) = v.words[i];
    else
      *reinterpret_cast<uint16_t*>(to + 2 * i) = static_cast<uint16_t>(v.words[i / 2] >> i % 2 * 16);
  }
}

// One number that no one writes during the launch.
template <class Kind>
LWRN_DEVICE float load_number(const char* from) {
  float values[kPerWord<Kind>];
  unpack<Kind>(Kind::kBytes == 4 ? load_constant_word(from) : load_constant_half(from), values);
  return values[0];
}

// One number, rounded.
template <class Kind>
LWRN_DEVICE void store_number(char* to, float value) {
  float values[kPerWord<Kind>] = {value};
  if constexpr (Kind::kBytes == 4)
    *reinterpret_cast<uint32_t*>(to) = pack<Kind>(values);
  else
    *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(pack<Kind>(values));
}

// Two neighbouring numbers, rounded, to shared memory.
template <class Kind>
LWRN_DEVICE void store_pair(char* to, float a, float b) {
  if constexpr (Kind::kBytes == 4) {
    reinterpret_cast<float*>(to)[0] = a;
    reinterpret_cast<float*>(to)[1] = b;
  } else {
    *reinterpret_cast<uint32_t*>(to) = pack<Kind>({a, b});
  }
}

// sums += v
template <class Kind>
LWRN_DEVICE void add_planes(float (&sums)[kVectorPlanes<Kind>], const Vector& v) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float values[kPerWord<Kind>];
    unpack<Kind>(v.words[i], values);
#pragma unroll
    for (int k = 0; k < kPerWord<Kind>; ++k) sums[i * kPerWord<Kind> + k] += values[k];
  }
}

template <class Kind>
LWRN_DEVICE Vector round_planes(const float (&values)[kVectorPlanes<Kind>]) {
  Vector v;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float word[kPerWord<Kind>];
#pragma unroll
    for (int k = 0; k < kPerWord<Kind>; ++k) word[k] = values[i * kPerWord<Kind> + k];
    v.words[i] = pack<Kind>(word);
  }
  return v;
}

}  // namespace lwrn_fast::cuda
