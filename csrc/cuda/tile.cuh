// Matrices in shared memory: rows of 128 bytes, eight vectors of 16. A vector's index is XORed with the row's last
// three bits, so that a column of vectors lies in different banks: the 128-byte swizzle of wgmma.
#pragma once
#include <device/copy.cuh>
#include <device/numbers.cuh>

namespace lwrn_fast::cuda {

// Threads of a block, in every kernel.
constexpr int kThreads = 256;
// Bytes of a row.
constexpr int kRowBytes = 128;
// Vectors of 16 bytes in a row.
constexpr int kVectors = kRowBytes / 16;

// Channels in a row.
template <class Element>
constexpr int kRowChannels = kRowBytes / Element::kBytes;

// Channels in a vector.
template <class Element>
constexpr int kVectorChannels = 16 / Element::kBytes;

// Return the offset of a vector of a row, in bytes.
LWRN_DEVICE int swizzled_offset(int row, int vector) { return row * kRowBytes + ((vector ^ (row & 7)) << 4); }

// Load a vector of channels: `count` of them, at least one; the others become zero. `aligned`: all addresses and counts
// are multiples of 16 bytes, so that all vectors are whole.
template <class Element>
LWRN_DEVICE Vector load_channels(const char* from, int count, bool aligned) {
  if (aligned) return load_global(from);
  Vector v = {};
#pragma unroll
  for (int i = 0; i < kVectorChannels<Element>; ++i) {
    if (i >= count) continue;
    if constexpr (Element::kBytes == 4)
      v.words[i] = load_global_word(from + 4 * i);
    else
      v.words[i / 2] |= load_global_half(from + 2 * i) << i % 2 * 16;
  }
  return v;
}

// Start the copy of a vector of channels to shared memory: `count` of them, none included; the others become zero.
// Channels that are not `aligned` are copied one by one, synchronously.
template <class Element>
LWRN_DEVICE void copy_channels(void* to, const char* from, int count, bool aligned) {
  if (aligned)
    copy_async(to, from, count > 0);
  else
    store_shared(to, load_channels<Element>(from, count, false));
}

template <class Element>
LWRN_DEVICE void store_channels(char* to, const Vector& v, int count, bool aligned) {
  if (aligned) {
    store_global(to, v);
    return;
  }
#pragma unroll
  for (int i = 0; i < kVectorChannels<Element>; ++i) {
    if (i >= count) continue;
    if constexpr (Element::kBytes == 4)
      *reinterpret_cast<uint32_t*>(to + 4 * i) = v.words[i];
    else
      *reinterpret_cast<uint16_t*>(to + 2 * i) = static_cast<uint16_t>(v.words[i / 2] >> i % 2 * 16);
  }
}

// Load an element that nobody writes during the launch.
template <class Element>
LWRN_DEVICE float load_element(const char* from) {
  float values[kPerWord<Element>];
  unpack<Element>(Element::kBytes == 4 ? load_constant_word(from) : load_constant_half(from), values);
  return values[0];
}

// Round and store an element.
template <class Element>
LWRN_DEVICE void store_element(char* to, float value) {
  float values[kPerWord<Element>] = {value};
  if constexpr (Element::kBytes == 4)
    *reinterpret_cast<uint32_t*>(to) = pack<Element>(values);
  else
    *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(pack<Element>(values));
}

// Round two adjacent elements and store them to shared memory.
template <class Element>
LWRN_DEVICE void store_pair(char* to, float a, float b) {
  if constexpr (Element::kBytes == 4) {
    reinterpret_cast<float*>(to)[0] = a;
    reinterpret_cast<float*>(to)[1] = b;
  } else {
    *reinterpret_cast<uint32_t*>(to) = pack<Element>({a, b});
  }
}

// acc += v
template <class Element>
LWRN_DEVICE void add_channels(float (&acc)[kVectorChannels<Element>], const Vector& v) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float values[kPerWord<Element>];
    unpack<Element>(v.words[i], values);
#pragma unroll
    for (int k = 0; k < kPerWord<Element>; ++k) acc[i * kPerWord<Element> + k] += values[k];
  }
}

template <class Element>
LWRN_DEVICE Vector round_channels(const float (&values)[kVectorChannels<Element>]) {
  Vector v;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float word[kPerWord<Element>];
#pragma unroll
    for (int k = 0; k < kPerWord<Element>; ++k) word[k] = values[i * kPerWord<Element> + k];
    v.words[i] = pack<Element>(word);
  }
  return v;
}

}  // namespace lwrn_fast::cuda
