// Element types, threads and maps, the types of every op's contract. No torch, no Python.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lwrn_fast {

enum class Dtype { f32, bf16, f16 };

static inline int64_t bytes_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// The threads of a call. run() calls body(context, worker) for every worker in [0, count). Workers may run one after
// another, in any order.
struct Threads {
  int64_t count;
  void (*run)(int64_t count, void* context, void (*body)(void* context, int64_t worker));

  template <class Body>
  void each_worker(const Body& body) const {
    if (count == 1) {
      body(int64_t{0});
      return;
    }
    run(count, const_cast<Body*>(&body),
        [](void* context, int64_t worker) { (*static_cast<const Body*>(context))(worker); });
  }
};

// A map that a kernel reads: logical (batch, channels, height, width), channels adjacent in memory, other strides free.
struct MapView {
  const void* data;
  int64_t batch, channels, height, width;
  int64_t stride_n, stride_h, stride_w;  // in elements
};

}  // namespace lwrn_fast
