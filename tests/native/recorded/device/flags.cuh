// Replaces csrc/cuda/device/flags.cuh and threads.cuh: one thread at a time, which prints its accesses to counters.
#pragma once
#include <cstdio>
#include <map>

#define LWRN_DEVICE inline
#define LWRN_BOTH inline

namespace lwrn_fast::cuda {

// Threads of a block.
constexpr int kThreads = 256;
inline int current_thread = 0;
inline int* first_counter = nullptr;
inline std::map<const int*, int> awaited;  // counters, and the values waited for

inline int thread() { return current_thread; }
inline int threads() { return kThreads; }
inline int blocks() { return 1; }
inline void sync() {}
inline int opaque(int value) { return value; }

inline int record(const char* name, const int* counter, int value) {
  std::printf("%s %d %d\n", name, static_cast<int>(counter - first_counter), value);
  return 0;
}
inline int add_relaxed(int* counter, int value) { return record("relaxed", counter, value); }
inline void add_release(int* counter, int value) { record("release", counter, value); }
inline int add_acquire_release(int* counter, int value) { return record("acq_rel", counter, value); }
inline void store_relaxed(int* counter, int value) { record("store", counter, value); }

// Return one more at each call, until the caller stops waiting.
inline int load_acquire(const int* counter) { return ++awaited[counter]; }

}  // namespace lwrn_fast::cuda
