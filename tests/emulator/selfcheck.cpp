// Runs the GPU's kernels on small problems, over the machine of this folder, and compares with reference.h.
// selfcheck CASES [NAME...]: so many for each kernel, or only for the ops, kernels and kinds of numbers that are named,
// as "crp", "crp large" and "bf16"; prints a line for each. A kernel's first wrong result
// ends its trial, and makes the exit status 1.
#include <engine.h>

#include <cstdint>

#include "../native/problems.h"
#include "machine.h"

namespace selfcheck {
namespace {

using cuda::Device;
using cuda::Multiply;

struct Kind {
  const char* name;
  Dtype dtype;
  Multiply multiply;
  double rounding;  // of both factors of a product, as a fraction
};

constexpr Kind kKinds[] = {{"bf16", Dtype::bf16, Multiply::exact, 0},
                           {"f16", Dtype::f16, Multiply::exact, 0},
                           {"f32", Dtype::f32, Multiply::exact, 0},
                           {"tf32", Dtype::f32, Multiply::tf32, 0x1.01p-10}};

class Check : public Checks {
 public:
  explicit Check(std::vector<Kind> kinds) : kinds_(std::move(kinds)) {}
  int64_t problems = 0;

  // only: the kernel that must run; null: the one that is chosen.
  void crp(uint64_t seed, const char* only) {
    Random random(seed);
    const Kind kind = choose(&random);
    const bool resident = only && std::strstr(only, "resident"), depthwise = only && !std::strcmp(only, "depthwise");
    const bool wide = random.below(8) == 0;  // more planes than one pass over the weights results in
    const int64_t stages = (resident ? 2 : 1) + random.below(wide ? 2 : 4), batch = 1 + random.below(wide       ? 1
                                                                                                     : resident ? 2
                                                                                                                : 3);
    constexpr int64_t whole_vectors[] = {8, 16, 40, 64, 136};
    const int64_t planes = wide       ? 128 + 64 * random.below(3)
                           : resident ? random.pick(whole_vectors)
                                      : random.pick(kChannels);
    // All tiles run at once, and each thread may be one to a sanitizer: not too many.
    const int64_t most = resident ? 17 : 33;
    const int64_t height = std::min(random.pick(kSizes), most), width = std::min(random.pick(kSizes), most);
    const CrpProblem problem(kind.dtype, random.pick(kValues), stages, only ? depthwise : random.below(3) == 0,
                             resident ? Layout::wide_gaps : random.pick(kLayouts), batch, planes, height, width,
                             &random);
    Device device = machine(only, &random);
    if (resident) device.multiprocessors += batch * ((height + 7) / 8) * ((width + 7) / 8);
    describe("crp", seed, kind, problem.x.map, device);
    const cuda::Scratch scratch = crp_scratch(problem.args, kind.multiply, device);
    if (scratch.counters == 0) return;  // it cannot
    ++problems;
    const Buffer memory(scratch.bytes, 256);
    std::vector<int32_t> counters(scratch.counters, 0);
    succeed(cuda::crp(problem.args, kind.multiply, device, memory.get(), counters.data()));
    expect(problem.out.intact() && memory.intact(), "memory beside the result or the scratch is overwritten");
    for (int32_t counter : counters)
      if (counter != 0) return expect(false, "a counter is left at " + std::to_string(counter));
    compare(kind.dtype, problem.out, problem.exact(problem.depthwise ? 0 : kind.rounding), problem.values);
  }

  // What the kernel interpolates it rounds before it multiplies.
  void fusion(uint64_t seed, const char* only) {
    Random random(seed);
    const Kind kind = choose(&random);
    const Device device = machine(only, &random);
    const FusionProblem problem(&random, kind.dtype);
    ++problems;
    describe("fusion", seed, kind, problem.inputs[0].map, device);
    succeed(cuda::fusion(problem.args, kind.multiply, device));
    expect(problem.out->intact(), "memory beside the result is overwritten");
    const double roundoff = format_of(kind.dtype).roundoff() + 0x1p-21;
    // Whole numbers times multiples of 1/256 have 10 bits.
    const bool exact = kind.dtype != Dtype::bf16 || problem.values != Values::whole;
    compare(kind.dtype, *problem.out, problem.exact(kind.rounding, roundoff), exact ? problem.values : Values::uniform);
  }

  void upsample_argmax(uint64_t seed, const char* only) {
    Random random(seed);
    const Kind kind = choose(&random);
    const Device device = machine(only, &random);
    const UpsampleArgmaxProblem problem(&random, kind.dtype);
    ++problems;
    describe("upsample_argmax", seed, kind, problem.logits->map, device);
    succeed(cuda::upsample_argmax(problem.args, device));
    expect(problem.labels->intact(), "memory beside the result is overwritten");
    compare_labels(*problem.labels, problem.exact(), problem.values);
  }

  void normalise(uint64_t seed, const char* only) {
    Random random(seed);
    const Kind kind = choose(&random);
    const Device device = machine(only, &random);
    const NormaliseProblem problem(&random, kind.dtype);
    ++problems;
    const Map exact = problem.exact();
    describe("normalise", seed, kind, exact, device);
    succeed(cuda::normalise(problem.args, device));
    expect(problem.out->intact(), "memory beside the result is overwritten");
    compare(kind.dtype, *problem.out, exact, Values::uniform);
  }

 private:
  Kind choose(Random* random) const { return kinds_[random->below(static_cast<int64_t>(kinds_.size()))]; }

  static Device machine(const char* only, Random* random) {
    emulator::settings.seed = random->bits();
    emulator::settings.at_once = static_cast<int>(random->below(4));
    cuda::use_only(only);
    const bool hopper = (only && std::strstr(only, "sm90")) || random->below(2);
    return {0, hopper ? 90 : 80, static_cast<int>(1 + random->below(6)), 227 * 1024, nullptr};
  }

  void describe(const char* op, uint64_t seed, const Kind& kind, const Map& map, const Device& device) {
    Checks::describe(op, seed, kind.dtype, map);
    where_ += std::string(", ") + kind.name + " on " + std::to_string(device.capability) + " with " +
              std::to_string(device.multiprocessors) + " multiprocessors";
  }

  void succeed(const char* error) { expect(!error, error ? error : ""); }

  const std::vector<Kind> kinds_;
};

// What is tried: one kernel, or the one that is chosen, `share` times as often.
struct Trial {
  const char *op, *only;
  bool has_float32;
  void (Check::*run)(uint64_t seed, const char* only);
  uint64_t share;
  std::string label() const { return std::string(op) + (only ? " " : "") + (only ? only : ""); }
};

constexpr Trial kTrials[] = {{"crp", nullptr, true, &Check::crp, 2},
                             {"crp", "depthwise", true, &Check::crp, 1},
                             {"crp", "smallest", true, &Check::crp, 1},
                             {"crp", "small", true, &Check::crp, 1},
                             {"crp", "small_resident", false, &Check::crp, 1},
                             {"crp", "large", false, &Check::crp, 1},
                             {"crp", "large_resident", false, &Check::crp, 1},
                             {"crp", "large_sm90", false, &Check::crp, 1},
                             {"crp", "large_resident_sm90", false, &Check::crp, 1},
                             {"fusion", nullptr, true, &Check::fusion, 3},
                             {"fusion", "small", true, &Check::fusion, 1},
                             {"fusion", "medium", true, &Check::fusion, 1},
                             {"fusion", "large", true, &Check::fusion, 1},
                             {"fusion", "medium_sm90", false, &Check::fusion, 1},
                             {"fusion", "large_sm90", false, &Check::fusion, 1},
                             {"upsample_argmax", nullptr, true, &Check::upsample_argmax, 2},
                             {"normalise", nullptr, true, &Check::normalise, 1}};

bool passes(const Trial& trial, std::vector<Kind> kinds, uint64_t cases) {
  const auto is_wide = [](const Kind& kind) { return kind.dtype == Dtype::f32; };
  if (!trial.has_float32) kinds.erase(std::remove_if(kinds.begin(), kinds.end(), is_wide), kinds.end());
  if (kinds.empty()) return true;
  Check check(kinds);
  for (uint64_t seed = 0; seed < cases * trial.share && !check.failures; ++seed) (check.*trial.run)(seed, trial.only);
  std::printf("%s: %lld problems, %lld wrong\n", trial.label().c_str(), static_cast<long long>(check.problems),
              static_cast<long long>(check.failures));
  std::fflush(stdout);
  return check.failures == 0;
}

}  // namespace
}  // namespace selfcheck

int main(int count, char** arguments) {
  using namespace selfcheck;
  if (count < 2) return 2;
  const auto cases = static_cast<uint64_t>(std::atoll(arguments[1]));
  const std::vector<std::string> names(arguments + 2, arguments + count);
  const auto named = [&](const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  std::vector<Kind> kinds;
  for (const Kind& kind : kKinds)
    if (named(kind.name)) kinds.push_back(kind);
  const bool all = names.size() == kinds.size();
  if (kinds.empty()) kinds.assign(std::begin(kKinds), std::end(kKinds));
  bool right = true;
  for (const Trial& trial : kTrials)
    if (all || named(trial.op) || named(trial.label())) right = passes(trial, kinds, cases) && right;
  return right ? 0 : 1;
}
