// Compiled without sanitizers even where the kernels have one: the memory accesses of kernels lie in their own sources
// and in device/*.cuh, and the exchanges here order none of them.
#include "machine.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "../native/numerics.h"

namespace emulator {

Settings settings;
__thread Thread* current;

namespace {

// Rounds without progress, in which all waiting threads poll their flags, before a deadlock is reported.
constexpr int kMaxIdleRounds = 10000;

// A fast random generator (xorshift), called at every step.
struct Dice {
  uint64_t state;
  uint32_t below(uint32_t count) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<uint32_t>((state >> 32) * count >> 32);
  }
};

enum class Operation { none, exchange, multiply };

// The operands of a warp-wide operation, by lane.
struct Warp {
  int count = 0;
  Operation operation = Operation::none;
  OperandType type;
  Words a[32];
  uint32_t b[32][2];
  uint32_t* matrices[32];
  float* acc[32];
};

}  // namespace

class Machine;

class Block {
 public:
  Block(Machine* machine, int thread_count) : machine(machine) {
    for (int i = 0; i < thread_count; ++i) threads.push_back(std::make_unique<Thread>(this, i));
    warps.resize((thread_count + 31) / 32);
    ready.reserve(thread_count);  // no fiber may allocate memory that others use: ThreadSanitizer would report it
    polling.reserve(thread_count);
  }

  Machine* const machine;
  int index = 0, left = 0, waiting = 0;
  int64_t phase = 0;  // barriers passed
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  std::vector<Thread*> ready, polling;  // the back of `ready` runs next
  std::unique_ptr<char, decltype(&std::free)> shared{nullptr, &std::free};
  // The last thread that stored to each 16 bytes of shared memory, and its count of fences then.
  std::vector<std::pair<const Thread*, uint32_t>> written;
  char barriers[2] = {};  // tags for release() and acquire()
};

class Machine {
 public:
  const char* launch(const Launch& task) {
    if (!home_) home_ = std::make_unique<Fiber>();
    task_ = &task;
    message_ = nullptr;
    current_block_ = ended_ = nullptr;
    rounds_ = started_ = 0;
    dice_.state = settings.seed * 0x9e3779b97f4a7c15u | 1;
    if (!blocks_.empty() && static_cast<int>(blocks_[0]->threads.size()) != task.threads) blocks_.clear();
    const int at_once = std::min(task.at_once, task.blocks);
    while (static_cast<int>(blocks_.size()) < at_once) blocks_.push_back(std::make_unique<Block>(this, task.threads));
    live_.clear();
    for (int i = 0; i < at_once; ++i) start(blocks_[i].get());
    while (!live_.empty() && !message_) {
      Thread* next = choose();
      if (!next) break;
      current = next;
      home_->switch_to(next->fiber);
      acquire(&end_);
      if (ended_) {  // a block has ended
        live_.erase(std::find(live_.begin(), live_.end(), ended_));
        if (started_ < task.blocks) start(ended_);
        ended_ = nullptr;
      }
    }
    current = nullptr;
    if (message_) abandon();
    return message_;
  }

  const Launch& task() const { return *task_; }
  uint32_t below(uint32_t count) { return dice_.below(count); }

  // Run the body of a thread, launch after launch.
  void run() {
    Thread* self = current;
    for (;;) {
      acquire(&begin_);
      task_->run(task_->task);
      release(&end_);
      rounds_ = 0;
      if (--self->block->left == 0) {
        ended_ = self->block;
        self->fiber.switch_to(*home_);
      } else {
        go_on();
      }
      // The next launch continues here.
    }
  }

  // Switch from the running thread, which is in a queue already, to the next.
  void go_on() {
    Thread* self = current;
    Thread* next = choose();
    if (next == self) return;
    current = next;
    self->fiber.switch_to(next ? next->fiber : *home_);
  }

  [[noreturn]] void fail(const char* message) {
    message_ = message;
    Thread* self = current;
    self->fiber.switch_to(*home_);
    std::abort();
  }

  void wake(Block* block) {
    for (Thread* thread : block->polling) block->ready.push_back(thread);
    block->polling.clear();
  }

  void wrote_flag() {
    rounds_ = 0;
    if (below(4) == 0) wake(live_[below(static_cast<uint32_t>(live_.size()))]);
  }

  void sync(Block* block) {
    void* barrier = &block->barriers[block->phase % 2];
    release(barrier);
    if (++block->waiting == static_cast<int>(block->threads.size())) {
      block->waiting = 0;
      ++block->phase;
      rounds_ = 0;
      all_ready(block);
      if (below(8) == 0) current_block_ = nullptr;  // lets other blocks overtake
    }
    go_on();
    acquire(barrier);
  }

 private:
  // Drop all threads, which are suspended inside the kernel.
  void abandon() {
    for (auto& block : blocks_)
      for (auto& thread : block->threads) home_->release_for(thread->fiber, &end_);
    acquire(&end_);
    blocks_.clear();
  }

  void start(Block* block) {
    block->index = started_++;
    block->left = task_->threads;
    block->waiting = 0;
    void* memory = nullptr;
    const auto bytes = static_cast<size_t>(std::max(task_->smem_bytes, 1));
    if (posix_memalign(&memory, 1024, bytes)) std::abort();
    std::memset(memory, 0xff, bytes);
    block->shared.reset(static_cast<char*>(memory));
    block->written.assign((bytes + 15) / 16, {nullptr, 0});
    for (auto& thread : block->threads) {
      thread->copies = {};
      thread->products = {};
      thread->may_multiply = false;
    }
    for (Warp& warp : block->warps) warp.count = 0;
    block->polling.clear();
    all_ready(block);
    live_.push_back(block);
    release(&begin_);
  }

  void all_ready(Block* block) {
    block->ready.clear();
    for (auto& thread : block->threads) block->ready.push_back(thread.get());
    for (size_t i = block->ready.size(); i > 1; --i)
      std::swap(block->ready[i - 1], block->ready[below(static_cast<uint32_t>(i))]);
  }

  // Return the thread that runs next, of the same block where possible; null, with message_ set, where none can.
  Thread* choose() {
    for (;;) {
      if (!current_block_ || current_block_->ready.empty()) current_block_ = find_ready();
      if (current_block_) {
        Thread* next = current_block_->ready.back();
        current_block_->ready.pop_back();
        return next;
      }
      bool polls = false;
      for (Block* block : live_) {
        polls = polls || !block->polling.empty();
        wake(block);
      }
      if (polls && ++rounds_ < kMaxIdleRounds) continue;
      message_ = polls ? "deadlock: blocks wait for flags that none will set"
                       : "deadlock: threads wait for others of their block or warp that do something else or have left";
      return nullptr;
    }
  }

  Block* find_ready() {
    const size_t count = live_.size(), first = count ? below(static_cast<uint32_t>(count)) : 0;
    for (size_t i = 0; i < count; ++i)
      if (!live_[(first + i) % count]->ready.empty()) return live_[(first + i) % count];
    return nullptr;
  }

  std::unique_ptr<Fiber> home_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Block*> live_;
  Block *current_block_ = nullptr, *ended_ = nullptr;
  const Launch* task_ = nullptr;
  const char* message_ = nullptr;
  int started_ = 0, rounds_ = 0;
  Dice dice_{1};
  char begin_ = 0, end_ = 0;
};

namespace {

// Run a warp-wide operation: the last lane to arrive does the work, then all continue in a random order.
template <class Pass, class Work>
void warp_operation(Operation operation, const Pass& pass, const Work& work) {
  Block* block = current->block;
  Machine* machine = block->machine;
  const int lane = current->index % 32, first = current->index - lane;
  Warp& warp = block->warps[first / 32];
  if (warp.count == 0) warp.operation = operation;
  require(warp.operation == operation, "the threads of a warp do different operations together");
  pass(warp, lane);
  if (++warp.count < 32) return machine->go_on();
  warp.count = 0;
  work(warp);
  const uint32_t start = machine->below(32), step = 2 * machine->below(16) + 1;
  for (uint32_t i = 0; i < 32; ++i) {
    const int other = static_cast<int>((start + i * step) % 32);
    if (other != lane) block->ready.push_back(block->threads[first + other].get());
  }
}

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct Halves {
  float values[65536];
  Halves() {
    for (uint32_t i = 0; i < 65536; ++i) {
      const auto bits = static_cast<uint16_t>(i);
      values[i] = static_cast<float>(selfcheck::decode(lwrn_fast::Dtype::f16, &bits, 0));
    }
  }
};
const Halves halves;

// Convert words to float. A tensor core ignores the last 13 bits of a float32.
void decode(OperandType type, const uint32_t* words, int count, float* to) {
  for (int i = 0; i < count; ++i) {
    const uint32_t word = words[i];
    switch (type) {
      case OperandType::bf16:
        to[2 * i] = from_bits(word << 16);
        to[2 * i + 1] = from_bits(word & 0xffff0000u);
        break;
      case OperandType::f16:
        to[2 * i] = halves.values[word & 0xffff];
        to[2 * i + 1] = halves.values[word >> 16];
        break;
      case OperandType::tf32:
        to[i] = from_bits(word & 0xffffe000u);
    }
  }
}

void multiply(const Warp& warp) {
  const int per_word = warp.type == OperandType::tf32 ? 1 : 2, depth = 8 * per_word;
  float a[16][16], b[16][8], acc[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i)
      decode(warp.type, &warp.a[lane].words[i], 1, &a[g + i % 2 * 8][(t + i / 2 * 4) * per_word]);
    for (int i = 0; i < 2; ++i) {
      float pair[2];
      decode(warp.type, &warp.b[lane][i], 1, pair);
      for (int j = 0; j < per_word; ++j) b[(t + 4 * i) * per_word + j][g] = pair[j];
    }
    for (int i = 0; i < 4; ++i) acc[g + i / 2 * 8][2 * t + i % 2] = warp.acc[lane][i];
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < depth; ++k)
      for (int column = 0; column < 8; ++column) acc[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) warp.acc[lane][i] = acc[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

}  // namespace

Thread::Thread(Block* block, int index)
    : block(block), index(index), fiber([](void* machine) { static_cast<Machine*>(machine)->run(); }, block->machine) {}

void fail(const char* message) { current->block->machine->fail(message); }
bool coin() { return current->block->machine->below(2); }
int thread_count() { return current->block->machine->task().threads; }
int block_index() { return current->block->index; }
int block_count() { return current->block->machine->task().blocks; }
char* shared_memory() { return current->block->shared.get(); }

void poll() {
  current->block->polling.push_back(current);
  current->block->machine->go_on();
}

void wrote_flag() { current->block->machine->wrote_flag(); }
void sync() { current->block->machine->sync(current->block); }

void exchange_rows(const Words& row, uint32_t (&matrices)[4]) {
  warp_operation(
      Operation::exchange,
      [&](Warp& warp, int lane) {
        warp.a[lane] = row;
        warp.matrices[lane] = matrices;
      },
      [](Warp& warp) {
        for (int lane = 0; lane < 32; ++lane)
          for (int i = 0; i < 4; ++i) warp.matrices[lane][i] = warp.a[8 * i + lane / 4].words[lane % 4];
      });
}

void multiply_tile(OperandType type, float* acc, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  warp_operation(
      Operation::multiply,
      [&](Warp& warp, int lane) {
        warp.type = type;
        std::copy(a, a + 4, warp.a[lane].words);
        warp.b[lane][0] = b0;
        warp.b[lane][1] = b1;
        warp.acc[lane] = acc;
      },
      [](Warp& warp) { multiply(warp); });
}

void multiply_rows(OperandType type, float* acc, const Words (&a)[2][2], const Words (*b)[2][2], int tiles) {
  float rows[2][16], column[16];
  for (int i = 0; i < 2; ++i) decode(type, a[i][0].words, 8, rows[i]);
  for (int tile = 0; tile < tiles; ++tile)
    for (int i = 0; i < 2; ++i) {
      decode(type, b[tile][i][0].words, 8, column);
      for (int row = 0; row < 2; ++row) {
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += rows[row][k] * column[k];
        acc[4 * tile + 2 * row + i] += sum;
      }
    }
}

void wrote_shared(const void* to) {
  Block& block = *current->block;
  const int64_t offset = static_cast<const char*>(to) - block.shared.get();
  require(offset >= 0 && offset + 16 <= block.machine->task().smem_bytes, "a store outside shared memory");
  block.written[offset / 16] = {current, current->fences};
}

bool fenced(const void* from) {
  Block& block = *current->block;
  const int64_t offset = static_cast<const char*>(from) - block.shared.get();
  require(offset >= 0 && offset + 16 <= block.machine->task().smem_bytes, "a product reads outside shared memory");
  const auto& [thread, fences] = block.written[offset / 16];
  return !thread || thread->fences != fences;
}

float half_to_float(uint16_t half) { return halves.values[half]; }

uint16_t float_to_half(float value) {
  uint16_t half;
  selfcheck::encode(lwrn_fast::Dtype::f16, value, &half, 0);
  return half;
}

const char* launch(const Launch& launch) {
  static thread_local Machine machine;
  return machine.launch(launch);
}

}  // namespace emulator
