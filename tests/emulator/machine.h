// A GPU in one thread: the threads of a launch are fibers, which take turns wherever they may wait for each other, in
// an order that a seed decides. device/*.cuh puts what kernels are written in on top of it.
#pragma once
#include <cstdint>
#include <vector>

#include "fiber.h"

namespace emulator {

struct Settings {
  uint64_t seed = 1;
  int capability = 90;
  int multiprocessors = 3;
  int shared_bytes = 227 * 1024;  // that a block may have
  int at_once = 0;                // blocks that run at once in a launch that is not cooperative; 0: all that fit
};

// Of all launches that follow, on any thread.
extern Settings settings;

struct Words {
  uint32_t words[4];
};

// A copy that has begun.
struct Copy {
  void* to;
  const void* from;  // null: of zeros
  Words early;       // what lay there when it began
  bool is_early;     // that is what arrives; else what lies there when it is waited for
  int64_t group;
};

// A product of a warpgroup that has begun: one thread's part.
struct Product {
  float* sums;
  const char *a, *b;
  int step;
  int64_t group;
  void (*run)(const Product&);
};

// What a thread began and did not wait for yet.
template <class T>
struct Begun {
  std::vector<T> items;
  size_t first = 0;
  int64_t groups = 0;

  void add(T item) {
    item.group = groups;
    items.push_back(item);
  }
  bool empty() const { return first == items.size(); }
  // The next that must be done before at most `pending` of the latest groups are left; null: none.
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
  Begun<Copy> copies;
  Begun<Product> products;
  bool may_multiply = false;  // since begin_wgmma()
  uint32_t fences = 0;
  Fiber fiber;
};

// The thread that runs; null outside launches.
extern __thread Thread* current __attribute__((tls_model("initial-exec")));

// Ends the launch, which then returns the message; a literal.
[[noreturn]] void fail(const char* message);
inline void require(bool right, const char* message) {
  if (!right) fail(message);
}

bool coin();
int thread_count();
int block_index();
int block_count();
char* shared_memory();
// Where a thread may be overtaken by others, for it reads a flag; and where a flag has been written.
void poll();
void wrote_flag();

// Barriers and what the 32 threads of a warp do together. A warp's part orders no memory accesses.
void sync();
void exchange_rows(const Words& row, uint32_t (&matrices)[4]);
enum class Number { bf16, f16, tf32 };
void multiply_tile(Number number, float* sums, const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

// What one thread of a warpgroup adds: two rows of `a` by two of each eight rows of `b`, all of 32 bytes.
void multiply_rows(Number number, float* sums, const Words (&a)[2][2], const Words (*b)[2][2], int tiles);

// For multiplications by a warpgroup: `to`, 16 bytes of shared memory, is stored to by this thread; and whether what
// was stored there last has been fenced.
void wrote_shared(const void* to);
bool fenced(const void* from);

float half_to_float(uint16_t half);
uint16_t float_to_half(float value);

struct Launch {
  int blocks, threads, shared_bytes;
  int at_once;  // blocks
  void (*run)(const void* task);
  const void* task;
};

// Null, or what went wrong.
const char* launch(const Launch& launch);

}  // namespace emulator
