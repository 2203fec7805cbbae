// An emulated GPU in one thread: the threads of a launch are fibers, which take turns wherever they may wait for each
// other, in an order that a seed decides. device/*.cuh implements the primitives of the kernels on top of it.
#pragma once
#include <cstdint>
#include <vector>

#include "fiber.h"

namespace emulator {

struct Settings {
  uint64_t seed = 1;
  int capability = 90;
  int multiprocessors = 3;
  int smem_bytes = 227 * 1024;  // maximum of a block
  int at_once = 0;              // resident blocks of a launch that is not cooperative; 0: all that fit
};

// The settings of all launches that follow, on any thread.
extern Settings settings;

struct Words {
  uint32_t words[4];
};

// A copy that has started and is not finished.
struct Copy {
  void* to;
  const void* from;  // null: the copy writes zeros
  Words early;       // the source when the copy started
  bool is_early;     // the copy delivers `early`; else the source at the time of the wait
  int64_t group;
};

// One thread's part of a warpgroup's product that has started.
struct Product {
  float* acc;
  const char *a, *b;
  int step;
  int64_t group;
  void (*run)(const Product&);
};

// Asynchronous work that a thread has started and not waited for.
template <class T>
struct InFlight {
  std::vector<T> items;
  size_t first = 0;
  int64_t groups = 0;

  void add(T item) {
    item.group = groups;
    items.push_back(item);
  }
  bool empty() const { return first == items.size(); }
  // Return the next item to finish so that at most `pending` of the latest groups remain; null: none.
  const T* next(int pending) {
    if (empty()) {
      items.clear();
      first = 0;
    }
    return first < items.size() && items[first].group + pending < groups ? &items[first++] : nullptr;
  }
};

class Block;

struct Thread {
  Thread(Block* block, int index);

  Block* const block;
  const int index;
  InFlight<Copy> copies;
  InFlight<Product> products;
  bool may_multiply = false;  // true since begin_wgmma()
  uint32_t fences = 0;
  Fiber fiber;
};

// The running thread; null outside launches.
extern __thread Thread* current __attribute__((tls_model("initial-exec")));

// End the launch, which then returns the message; message is a literal.
[[noreturn]] void fail(const char* message);
inline void require(bool ok, const char* message) {
  if (!ok) fail(message);
}

bool coin();
int thread_count();
int block_index();
int block_count();
char* shared_memory();
// Yield to other threads before a flag is read; and announce that a flag was written.
void poll();
void wrote_flag();

// The barrier of a block, and the operations of the 32 threads of a warp together, which order no memory accesses.
void sync();
void exchange_rows(const Words& row, uint32_t (&matrices)[4]);
enum class OperandType { bf16, f16, tf32 };
void multiply_tile(OperandType type, float* acc, const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

// Add one thread's part of a warpgroup's product: two rows of `a` by two of each eight rows of `b`, of 32 bytes each.
void multiply_rows(OperandType type, float* acc, const Words (&a)[2][2], const Words (*b)[2][2], int tiles);

// For products by a warpgroup: record that this thread stores to 16 bytes of shared memory; and return true where the
// last store there has been fenced.
void wrote_shared(const void* to);
bool fenced(const void* from);

float half_to_float(uint16_t half);
uint16_t float_to_half(float value);

struct Launch {
  int blocks, threads, smem_bytes;
  int at_once;  // resident blocks
  void (*run)(const void* task);
  const void* task;
};

// Run a launch; return null or an error text.
const char* launch(const Launch& launch);

}  // namespace emulator
