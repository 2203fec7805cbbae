// Tests of the emulated machine itself and of the parts that kernels share: products, and blocks that wait for each
// other.
#include <device/flags.cuh>
#include <device/launch.cuh>
#include <product.cuh>

#include <cstdio>
#include <cstring>

#include "../native/numerics.h"

namespace lwrn_fast::cuda {
namespace {

using selfcheck::Random;

constexpr Dtype dtype_of(Bf16) { return Dtype::bf16; }
constexpr Dtype dtype_of(F16) { return Dtype::f16; }
constexpr Dtype dtype_of(F32) { return Dtype::f32; }
constexpr Dtype dtype_of(Tf32) { return Dtype::f32; }

struct ProductTask {
  const char *panel, *weights;
  float* out;  // (kPixels, kChannels)
  int depth;   // in channels
};

// Multiplies chunk by chunk, with two buffers.
template <class Element, class Product>
struct Multiply {
  using Task = ProductTask;
  static constexpr int kThreads = cuda::kThreads, kMinBlocksPerSm = 1;
  static constexpr int kBufferBytes = (Product::kPixels + Product::kChannels) * kRowBytes;

  static void load(const Task& task, char* to, int chunk) {
    const int row_bytes = task.depth * Element::kBytes;
    for (int i = thread(); i < (Product::kPixels + Product::kChannels) * kVectors; i += kThreads) {
      const int row = i / kVectors, vector = i % kVectors, column = row - Product::kPixels;
      const int first = chunk * kRowChannels<Element> + vector * kVectorChannels<Element>;
      const char* from = column < 0 ? task.panel + row * row_bytes : task.weights + column * row_bytes;
      char* matrix = column < 0 ? to : to + Product::kPixels * kRowBytes;
      copy_channels<Element>(matrix + swizzled_offset(column < 0 ? row : column, vector),
                             from + first * Element::kBytes, task.depth - first, row_bytes % 16 == 0);
    }
    commit_copies();
  }

  static void run(const Task& task) {
    float acc[Product::kAccCount] = {};
    const int chunks = (task.depth + kRowChannels<Element> - 1) / kRowChannels<Element>;
    load(task, shared_memory(), 0);
    for (int chunk = 0; chunk < chunks; ++chunk) {
      char* now = shared_memory() + chunk % 2 * kBufferBytes;
      wait_copies<0>();
      Product::publish();
      Product::template wait<0>(acc);
      sync();
      if (chunk + 1 < chunks) load(task, shared_memory() + (chunk + 1) % 2 * kBufferBytes, chunk + 1);
      Product::add(acc, now, now + Product::kPixels * kRowBytes);
    }
    Product::template wait<0>(acc);
    Product::each_pair(acc, [&](int pixel, int channel, float a, float b) {
      task.out[pixel * Product::kChannels + channel] = a;
      task.out[pixel * Product::kChannels + channel + 1] = b;
    });
  }
};

template <class Element, class Product>
int64_t count_mismatches(const char* name, int depth) {
  const Dtype dtype = dtype_of(Element());
  Random random(depth);
  const int64_t rows = Product::kPixels + Product::kChannels;
  selfcheck::Buffer matrices(rows * depth * Element::kBytes, 16);
  for (int64_t i = 0; i < rows * depth; ++i) selfcheck::encode(dtype, random.below(9) - 4, matrices.get(), i);
  std::vector<float> out(Product::kPixels * Product::kChannels, -1e9f);
  const char* panel = reinterpret_cast<const char*>(matrices.get());
  const char* weights = panel + int64_t{Product::kPixels} * depth * Element::kBytes;
  using Kernel = Multiply<Element, Product>;
  const Device device{0, 90, 1, 227 * 1024, nullptr};
  const char* error = launch<Kernel>(device, 1, 2 * Kernel::kBufferBytes, {panel, weights, out.data(), depth});
  if (error) {
    std::printf("%s: %s\n", name, error);
    return 1;
  }
  int64_t mismatches = 0;
  for (int pixel = 0; pixel < Product::kPixels; ++pixel)
    for (int channel = 0; channel < Product::kChannels; ++channel) {
      double sum = 0;
      for (int k = 0; k < depth; ++k)
        sum +=
            selfcheck::decode(dtype, panel, pixel * depth + k) * selfcheck::decode(dtype, weights, channel * depth + k);
      mismatches += sum != out[pixel * Product::kChannels + channel];
    }
  if (mismatches) std::printf("%s: %lld mismatches\n", name, static_cast<long long>(mismatches));
  return mismatches;
}

struct FlagTask {
  int* flags;
  int* values;
};

// Blocks take turns: each adds to a number that the previous one has written.
struct Relay {
  using Task = FlagTask;
  static constexpr int kThreads = 64, kMinBlocksPerSm = 4, kRounds = 20;

  static void run(const Task& task) {
    for (int round = 0; round < kRounds; ++round) {
      const int turn = round * blocks() + block();
      if (thread() == 0)
        while (load_acquire(task.flags) < turn) {
        }
      sync();
      if (thread() == 63) *task.values += turn;
      sync();
      if (thread() == 0) add_release(task.flags, 1);
    }
  }
};

// Mistakes, one per kernel, which the machine must report.
enum class Mistake {
  nobody_sets_the_flag,
  not_all_at_the_barrier,
  different_operations,
  no_vector,
  no_begin,
  no_fence
};

template <Mistake kMistake>
struct Faulty {
  using Task = FlagTask;
  static constexpr int kThreads = 128, kMinBlocksPerSm = 1;

  static void run(const Task& task) {
    char* memory = shared_memory();
    uint32_t words[4] = {};
    float acc[32] = {};
    switch (kMistake) {
      case Mistake::nobody_sets_the_flag:
        while (load_acquire(task.flags) < 1) {
        }
        break;
      case Mistake::not_all_at_the_barrier:
        if (thread() != 5) sync();
        break;
      case Mistake::different_operations:
        if (thread() == 5)
          multiply_add<Bf16>(acc, words, 0, 0);
        else
          load_matrices(words, memory + thread() * 16);
        break;
      case Mistake::no_vector:
        store_shared(memory + 4, {});
        break;
      case Mistake::no_begin:
      case Mistake::no_fence:
        for (int i = thread(); i < 128 * kVectors; i += kThreads) store_shared(memory + 16 * i, {});
        if (kMistake != Mistake::no_fence) fence_for_wgmma();
        sync();
        if (kMistake != Mistake::no_begin) begin_wgmma();
        multiply_wgmma<Bf16>(acc, memory, memory, 0);
        commit_wgmma();
        wait_wgmma<0>(acc);
    }
  }
};

bool expect(const char* error, const char* wanted) {
  const bool ok = error && std::strstr(error, wanted);
  if (!ok) std::printf("'%s' instead of '%s'\n", error ? error : "no error", wanted);
  return ok;
}

bool blocks_wait_for_each_other() {
  bool ok = true;
  for (uint64_t seed = 1; seed < 10; ++seed) {
    emulator::settings.seed = seed;
    int flag = 0, value = 0;
    const int count = 1 + static_cast<int>(seed % 5), turns = count * Relay::kRounds;
    const Device device{0, 80, 2, 227 * 1024, nullptr};
    if (const char* error = launch<Relay>(device, count, 0, {&flag, &value}, true)) std::printf("%s\n", error);
    ok = ok && flag == turns && value == turns * (turns - 1) / 2;
  }
  return ok;
}

bool mistakes_are_reported() {
  int flag = 0;
  const FlagTask task{&flag, &flag};
  const Device device{0, 90, 2, 227 * 1024, nullptr};
  constexpr int kBytes = 128 * kRowBytes;
  const char* deadlock = "deadlock: blocks wait";
  const bool results[] = {
      expect(launch<Faulty<Mistake::nobody_sets_the_flag>>(device, 2, kBytes, task), deadlock),
      expect(launch<Faulty<Mistake::not_all_at_the_barrier>>(device, 2, kBytes, task), "deadlock: threads wait"),
      expect(launch<Faulty<Mistake::different_operations>>(device, 2, kBytes, task), "different operations"),
      expect(launch<Faulty<Mistake::no_vector>>(device, 2, kBytes, task), "multiple of 16"),
      expect(launch<Faulty<Mistake::no_begin>>(device, 2, kBytes, task), "without begin_wgmma"),
      expect(launch<Faulty<Mistake::no_fence>>(device, 2, kBytes, task), "not fenced"),
      expect(launch<Relay>(device, 9, 0, task, true), "too many blocks"),
      expect(launch<Relay>(device, 1, 228 * 1024, task), "too much shared memory"),
  };
  return std::all_of(std::begin(results), std::end(results), [](bool result) { return result; });
}

}  // namespace
}  // namespace lwrn_fast::cuda

int main() {
  using namespace lwrn_fast::cuda;
  int64_t mismatches = 0;
  for (int depth : {1, 8, 40, 64, 130, 256}) {
    mismatches += count_mismatches<Bf16, WarpProduct<Bf16, AccLayout<128, 128, 2>>>("bf16", depth);
    mismatches += count_mismatches<F16, WarpProduct<F16, AccLayout<64, 64, 2>>>("f16", depth);
    mismatches += count_mismatches<Tf32, WarpProduct<Tf32, AccLayout<128, 64, 2>>>("tf32", depth);
    mismatches += count_mismatches<F32, ExactProduct<AccLayout<128, 64, 2>>>("f32", depth);
    mismatches += count_mismatches<Bf16, WarpgroupProduct<Bf16, AccLayout<128, 128, 1>>>("bf16 wgmma", depth);
    mismatches += count_mismatches<F16, WarpgroupProduct<F16, AccLayout<64, 128, 2>>>("f16 wgmma", depth);
  }
  const bool ok = mismatches == 0 && blocks_wait_for_each_other() && mistakes_are_reported();
  std::printf(ok ? "right\n" : "wrong\n");
  return ok ? 0 : 1;
}
