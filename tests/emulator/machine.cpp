// Compiled without sanitizers even where the kernels have one: their memory accesses are in the kernels and in
// device/*.cuh, and what is exchanged here orders none of them.
#include "machine.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "../native/values.h"

namespace emulator {

Settings settings;
__thread Thread* current;

namespace {

constexpr int kPatience = 10000;  // rounds in which all who wait look at their flags and none has changed

// Quick, for it is asked at every step.
struct Dice {
  uint64_t state;
  uint32_t below(uint32_t count) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return static_cast<uint32_t>((state >> 32) * count >> 32);
  }
};

enum class Together { nothing, exchange, multiply };

// What the threads of a warp brought to what they do together, by lane.
struct Warp {
  int count = 0;
  Together doing = Together::nothing;
  Number number;
  Words a[32];
  uint32_t b[32][2];
  uint32_t* matrices[32];
  float* sums[32];
};

}  // namespace

class Machine;

class Block {
 public:
  Block(Machine* machine, int thread_count) : machine(machine) {
    for (int i = 0; i < thread_count; ++i) threads.push_back(std::make_unique<Thread>(this, i));
    warps.resize((thread_count + 31) / 32);
    ready.reserve(thread_count);  // no fiber allocates what others use: ThreadSanitizer sees that
    polling.reserve(thread_count);
  }

  Machine* const machine;
  int index = 0, left = 0, waiting = 0;
  int64_t phase = 0;  // of barriers
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  std::vector<Thread*> ready, polling;  // the last of `ready` runs next
  std::unique_ptr<char, decltype(&std::free)> shared{nullptr, &std::free};
  // Who stored to each 16 bytes of shared memory, and its fences before that.
  std::vector<std::pair<const Thread*, uint32_t>> written;
  char barriers[2] = {};  // objects that release() and acquire() name
};

class Machine {
 public:
  const char* launch(const Launch& task) {
    if (!home_) home_ = std::make_unique<Fiber>();
    task_ = &task;
    message_ = nullptr;
    favourite_ = left_ = nullptr;
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
      if (left_) {  // a block has ended
        live_.erase(std::find(live_.begin(), live_.end(), left_));
        if (started_ < task.blocks) start(left_);
        left_ = nullptr;
      }
    }
    current = nullptr;
    if (message_) abandon();
    return message_;
  }

  const Launch& task() const { return *task_; }
  uint32_t below(uint32_t count) { return dice_.below(count); }

  // What every thread does, launch after launch.
  void run() {
    Thread* self = current;
    for (;;) {
      acquire(&begin_);
      task_->run(task_->task);
      release(&end_);
      rounds_ = 0;
      if (--self->block->left == 0) {
        left_ = self->block;
        self->fiber.switch_to(*home_);
      } else {
        go_on();
      }
      // Here it begins anew.
    }
  }

  // Leaves the running thread, which has put itself where it will be found.
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
      if (below(8) == 0) favourite_ = nullptr;  // others overtake
    }
    go_on();
    acquire(barrier);
  }

 private:
  // Forgets all threads, which are somewhere in the kernel.
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
    const auto bytes = static_cast<size_t>(std::max(task_->shared_bytes, 1));
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

  // Who runs next: of the same block where possible. Null with a message where none can.
  Thread* choose() {
    for (;;) {
      if (!favourite_ || favourite_->ready.empty()) favourite_ = find_ready();
      if (favourite_) {
        Thread* next = favourite_->ready.back();
        favourite_->ready.pop_back();
        return next;
      }
      bool polls = false;
      for (Block* block : live_) {
        polls = polls || !block->polling.empty();
        wake(block);
      }
      if (polls && ++rounds_ < kPatience) continue;
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
  Block *favourite_ = nullptr, *left_ = nullptr;
  const Launch* task_ = nullptr;
  const char* message_ = nullptr;
  int started_ = 0, rounds_ = 0;
  Dice dice_{1};
  char begin_ = 0, end_ = 0;
};

namespace {

// Of what all threads of a warp do, the last to come does the work; then all go on, in another order.
template <class Bring, class Work>
void together(Together doing, const Bring& bring, const Work& work) {
  Block* block = current->block;
  Machine* machine = block->machine;
  const int lane = current->index % 32, first = current->index - lane;
  Warp& warp = block->warps[first / 32];
  if (warp.count == 0) warp.doing = doing;
  require(warp.doing == doing, "the threads of a warp do different things together");
  bring(warp, lane);
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

// The numbers in some words. A tensor core does not see the last 13 bits of a float32.
void decode(Number number, const uint32_t* words, int count, float* to) {
  for (int i = 0; i < count; ++i) {
    const uint32_t word = words[i];
    switch (number) {
      case Number::bf16:
        to[2 * i] = from_bits(word << 16);
        to[2 * i + 1] = from_bits(word & 0xffff0000u);
        break;
      case Number::f16:
        to[2 * i] = halves.values[word & 0xffff];
        to[2 * i + 1] = halves.values[word >> 16];
        break;
      case Number::tf32:
        to[i] = from_bits(word & 0xffffe000u);
    }
  }
}

void multiply(const Warp& warp) {
  const int per_word = warp.number == Number::tf32 ? 1 : 2, depth = 8 * per_word;
  float a[16][16], b[16][8], sums[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i)
      decode(warp.number, &warp.a[lane].words[i], 1, &a[g + i % 2 * 8][(t + i / 2 * 4) * per_word]);
    for (int i = 0; i < 2; ++i) {
      float pair[2];
      decode(warp.number, &warp.b[lane][i], 1, pair);
      for (int j = 0; j < per_word; ++j) b[(t + 4 * i) * per_word + j][g] = pair[j];
    }
    for (int i = 0; i < 4; ++i) sums[g + i / 2 * 8][2 * t + i % 2] = warp.sums[lane][i];
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < depth; ++k)
      for (int column = 0; column < 8; ++column) sums[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) warp.sums[lane][i] = sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
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
  together(
      Together::exchange,
      [&](Warp& warp, int lane) {
        warp.a[lane] = row;
        warp.matrices[lane] = matrices;
      },
      [](Warp& warp) {
        for (int lane = 0; lane < 32; ++lane)
          for (int i = 0; i < 4; ++i) warp.matrices[lane][i] = warp.a[8 * i + lane / 4].words[lane % 4];
      });
}

void multiply_tile(Number number, float* sums, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  together(
      Together::multiply,
      [&](Warp& warp, int lane) {
        warp.number = number;
        std::copy(a, a + 4, warp.a[lane].words);
        warp.b[lane][0] = b0;
        warp.b[lane][1] = b1;
        warp.sums[lane] = sums;
      },
      [](Warp& warp) { multiply(warp); });
}

void multiply_rows(Number number, float* sums, const Words (&a)[2][2], const Words (*b)[2][2], int tiles) {
  float rows[2][16], column[16];
  for (int i = 0; i < 2; ++i) decode(number, a[i][0].words, 8, rows[i]);
  for (int tile = 0; tile < tiles; ++tile)
    for (int i = 0; i < 2; ++i) {
      decode(number, b[tile][i][0].words, 8, column);
      for (int row = 0; row < 2; ++row) {
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += rows[row][k] * column[k];
        sums[4 * tile + 2 * row + i] += sum;
      }
    }
}

void wrote_shared(const void* to) {
  Block& block = *current->block;
  const int64_t place = static_cast<const char*>(to) - block.shared.get();
  require(place >= 0 && place + 16 <= block.machine->task().shared_bytes, "a store beside shared memory");
  block.written[place / 16] = {current, current->fences};
}

bool fenced(const void* from) {
  Block& block = *current->block;
  const int64_t place = static_cast<const char*>(from) - block.shared.get();
  require(place >= 0 && place + 16 <= block.machine->task().shared_bytes, "a product of what is not in shared memory");
  const auto& [thread, fences] = block.written[place / 16];
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
