// The parts that all kernels share: the distribution of work, the layout of scratch memory, and the entry functions.
#pragma once
#include <atomic>

#include "simd.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

// Indices below `count`; each is taken by one worker.
class WorkQueue {
 public:
  explicit WorkQueue(int64_t count) : count_(count) {}
  bool take(int64_t* index) { return (*index = next_.fetch_add(1, std::memory_order_relaxed)) < count_; }

 private:
  int64_t count_;
  std::atomic<int64_t> next_{0};
};

// Call body(worker, index) for every index below `count`; a worker that is free takes the next one.
template <class Body>
inline void each_index(const Threads& threads, int64_t count, const Body& body) {
  WorkQueue queue(count);
  threads.each_worker([&](int64_t worker) {
    for (int64_t index; queue.take(&index);) body(worker, index);
  });
}

// Lays out arrays in scratch memory, each at a multiple of 64 bytes, a cache line. Without memory it counts bytes only.
class Layout {
 public:
  explicit Layout(char* memory) : memory_(memory) {}

  template <class E>
  E* take(int64_t count) {
    E* array = memory_ ? reinterpret_cast<E*>(memory_ + bytes_) : nullptr;
    bytes_ += round_up(count * static_cast<int64_t>(sizeof(E)), 64);
    return array;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

// Return the bytes of scratch memory that Op<element type> needs.
template <template <class> class Op, class Args>
int64_t workspace_bytes_of(const Args& args, int64_t threads) {
  int64_t bytes = 0;
  with_type(args.dtype, [&](auto type) { bytes = Op<decltype(type)>(args, threads, nullptr).workspace_bytes(); });
  return bytes;
}

template <template <class> class Op, class Args>
void run_op(const Args& args, void* workspace, const Threads& threads) {
  with_type(args.dtype,
            [&](auto type) { Op<decltype(type)>(args, threads.count, static_cast<char*>(workspace)).run(threads); });
}

}  // namespace
}  // namespace lwrn_fast::LWRN_ISA
