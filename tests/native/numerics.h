// Conversion to and from the engine's dtypes, guarded memory and worker threads.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <thread>
#include <vector>

#include "../../csrc/types.h"

namespace selfcheck {

using lwrn_fast::Dtype;
using lwrn_fast::MapView;
using lwrn_fast::Threads;

// The format of a dtype. Conversions are implemented here again, in double and by the definition of the formats, so
// that they check the engine's own.
struct Format {
  int fraction_bits, min_exponent;  // of a normal number
  uint32_t infinity;
  double roundoff() const { return std::ldexp(1.0, -fraction_bits - 1); }
  double min_subnormal() const { return std::ldexp(1.0, min_exponent - fraction_bits); }
};

inline Format format_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::bf16:
      return {7, -126, 0x7f80};
    case Dtype::f16:
      return {10, -14, 0x7c00};
    case Dtype::f32:
      break;
  }
  return {23, -126, 0x7f800000};
}

inline const char* name_of(Dtype dtype) {
  return dtype == Dtype::f32 ? "float32" : dtype == Dtype::bf16 ? "bfloat16" : "float16";
}

inline void encode(Dtype dtype, double x, void* data, int64_t index) {
  const Format format = format_of(dtype);
  uint32_t bits = format.infinity;
  if (std::isnan(x)) {
    bits |= 1u << (format.fraction_bits - 1);
  } else if (x != 0 && !std::isinf(x)) {
    int exponent;
    std::frexp(x, &exponent);
    exponent = exponent - 1 < format.min_exponent ? format.min_exponent : exponent - 1;
    const double units = std::nearbyint(std::ldexp(std::fabs(x), format.fraction_bits - exponent));
    const double all = units + std::ldexp(exponent - format.min_exponent, format.fraction_bits);
    if (all < format.infinity) bits = static_cast<uint32_t>(all);
  } else if (x == 0) {
    bits = 0;
  }
  if (std::signbit(x)) bits |= dtype == Dtype::f32 ? 0x80000000u : 0x8000u;
  char* to = static_cast<char*>(data) + index * bytes_of(dtype);
  const uint16_t half = static_cast<uint16_t>(bits);
  if (dtype == Dtype::f32)
    std::memcpy(to, &bits, sizeof bits);
  else
    std::memcpy(to, &half, sizeof half);
}

inline double decode(Dtype dtype, const void* data, int64_t index) {
  const Format format = format_of(dtype);
  const char* from = static_cast<const char*>(data) + index * bytes_of(dtype);
  uint32_t bits;
  uint16_t half;
  std::memcpy(&half, from, sizeof half);
  bits = half;
  if (dtype == Dtype::f32) std::memcpy(&bits, from, sizeof bits);
  const uint32_t sign = dtype == Dtype::f32 ? 0x80000000u : 0x8000u, rest = bits & ~sign;
  const uint32_t one = 1u << format.fraction_bits, exponent = rest >> format.fraction_bits, fraction = rest & (one - 1);
  double x = 0;
  if (rest > format.infinity)
    x = std::numeric_limits<double>::quiet_NaN();
  else if (rest == format.infinity)
    x = std::numeric_limits<double>::infinity();
  else if (exponent == 0)
    x = std::ldexp(fraction, format.min_exponent - format.fraction_bits);
  else
    x = std::ldexp(one + fraction, static_cast<int>(exponent) - 1 + format.min_exponent - format.fraction_bits);
  return bits & sign ? -x : x;
}

inline double rounded(Dtype dtype, double x) {
  uint32_t memory;
  encode(dtype, x, &memory, 0);
  return decode(dtype, &memory, 0);
}

// A random generator that gives the same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t x = state_ += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
  }
  int64_t below(int64_t count) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(count)); }
  double uniform() { return std::ldexp(static_cast<double>(bits() >> 11), -52) - 1; }  // from -1 to 1
  template <class T, size_t kCount>
  T pick(const T (&items)[kCount]) {
    return items[below(kCount)];
  }

 private:
  uint64_t state_;
};

// Memory filled with 0xff, NaN in all formats. It ends at a guard page, and intact() checks the writable bytes around
// it.
class Buffer {
 public:
  explicit Buffer(int64_t bytes, int64_t alignment = 1) : bytes_(bytes) {
    const int64_t page = sysconf(_SC_PAGESIZE), padded = (bytes + alignment - 1) / alignment * alignment;
    usable_ = (padded + kBefore + page - 1) / page * page;
    void* memory = mmap(nullptr, usable_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(static_cast<char*>(memory) + usable_, page, PROT_NONE)) {
      std::perror("mmap");
      std::exit(2);
    }
    mapped_ = usable_ + page;
    start_ = static_cast<unsigned char*>(memory);
    std::memset(start_, 0xff, usable_);
    data_ = start_ + usable_ - padded;
  }
  ~Buffer() { munmap(start_, mapped_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  unsigned char* get() const { return data_; }
  bool intact() const {
    for (const unsigned char* p = data_ - kBefore; p < start_ + usable_; ++p)
      if ((p < data_ || p >= data_ + bytes_) && *p != 0xff) return false;
    return true;
  }

 private:
  // Checked bytes before the data.
  static constexpr int64_t kBefore = 64;
  int64_t bytes_, usable_, mapped_;
  unsigned char *start_, *data_;
};

// Return threads that run workers at once, each in a thread of its own, or one after another, the last first.
inline Threads workers(int64_t count, bool at_once) {
  if (!at_once)
    return {count, [](int64_t many, void* context, void (*body)(void*, int64_t)) {
              for (int64_t worker = many; worker-- > 0;) body(context, worker);
            }};
  return {count, [](int64_t many, void* context, void (*body)(void*, int64_t)) {
            std::vector<std::thread> threads;
            for (int64_t worker = 0; worker < many; ++worker) threads.emplace_back(body, context, worker);
            for (std::thread& thread : threads) thread.join();
          }};
}

}  // namespace selfcheck
