// Runs the CUDA kernels on small problems, over the emulated machine of this folder, and compares with reference.h.
// selfcheck CASES [NAME...]: CASES problems for each kernel, or for the ops, kernels and element types that are named,
// such as "crp", "crp large" and "bf16"; prints a line for each kernel. The first failure of a kernel ends its trial
// and makes the exit status 1.
#include <engine.h>

#include <cstdint>

#include "../native/problems.h"
#include "machine.h"

namespace selfcheck {
namespace {

using cuda::Device;
using cuda::Multiply;

struct Element {
  const char* name;
  Dtype dtype;
  Multiply multiply;
  double rounding;  // relative error of each operand of a product
};

constexpr Element kElements[] = {{"bf16", Dtype::bf16, Multiply::exact, 0},
                                 {"f16", Dtype::f16, Multiply::exact, 0},
                                 {"f32", Dtype::f32, Multiply::exact, 0},
                                 {"tf32", Dtype::f32, Multiply::tf32, 0x1.01p-10}};

class Check : public Checks {
 public:
  explicit Check(std::vector<Element> elements) : elements_(std::move(elements)) {}
  int64_t problems = 0;

  // only: the kernel that must run; null: the kernel that the engine chooses.
  void crp(uint64_t seed, const char* only) {
    Random random(seed);
    const Element element = choose(&random);
    const bool resident = only && std::strstr(only, "resident"), depthwise = only && !std::strcmp(only, "depthwise");
    const bool wide = random.below(8) == 0;  // more channels than one pass computes
    const int64_t stages = (resident ? 2 : 1) + random.below(wide ? 2 : 4), batch = 1 + random.below(wide       ? 1
                                                                                                     : resident ? 2
                                                                                                                : 3);
    constexpr int64_t whole_vectors[] = {8, 16, 40, 64, 136};
    const int64_t channels = wide       ? 128 + 64 * random.below(3)
                             : resident ? random.pick(whole_vectors)
                                        : random.pick(kChannels);
    // All tiles run at once, and a sanitizer may count each thread as one of its own: limit their number.
    const int64_t max_size = resident ? 17 : 33;
    const int64_t height = std::min(random.pick(kSizes), max_size), width = std::min(random.pick(kSizes), max_size);
    const CrpProblem problem(element.dtype, random.pick(kValues), stages, only ? depthwise : random.below(3) == 0,
                             resident ? Layout::wide_gaps : random.pick(kLayouts), batch, channels, height, width,
                             &random);
    Device device = machine(only, &random);
    if (resident) device.multiprocessors += batch * ((height + 7) / 8) * ((width + 7) / 8);
    describe("crp", seed, element, problem.x.map, device);
    const cuda::Scratch scratch = crp_scratch(problem.args, element.multiply, device);
    if (scratch.counters == 0) return;  // the kernel cannot run this problem
    ++problems;
    const Buffer memory(scratch.bytes, 256);
    std::vector<int32_t> counters(scratch.counters, 0);
    require_success(cuda::crp(problem.args, element.multiply, device, memory.get(), counters.data()));
    expect(problem.out.intact() && memory.intact(), "memory outside the result or the scratch is overwritten");
    for (int32_t counter : counters)
      if (counter != 0) return expect(false, "a counter is left at " + std::to_string(counter));
    compare(element.dtype, problem.out, problem.exact(problem.depthwise ? 0 : element.rounding), problem.values);
  }

  // Check a fusion. The kernel rounds interpolated values before it multiplies them.
  void fusion(uint64_t seed, const char* only) {
    Random random(seed);
    const Element element = choose(&random);
    const Device device = machine(only, &random);
    const FusionProblem problem(&random, element.dtype);
    ++problems;
    describe("fusion", seed, element, problem.inputs[0].map, device);
    require_success(cuda::fusion(problem.args, element.multiply, device));
    expect(problem.out->intact(), "memory outside the result is overwritten");
    const double roundoff = format_of(element.dtype).roundoff() + 0x1p-21;
    // Whole numbers times multiples of 1/256 have 10 bits.
    const bool exact = element.dtype != Dtype::bf16 || problem.values != Values::whole;
    compare(element.dtype, *problem.out, problem.exact(element.rounding, roundoff),
            exact ? problem.values : Values::uniform);
  }

  void upsample_argmax(uint64_t seed, const char* only) {
    Random random(seed);
    const Element element = choose(&random);
    const Device device = machine(only, &random);
    const UpsampleArgmaxProblem problem(&random, element.dtype);
    ++problems;
    describe("upsample_argmax", seed, element, problem.logits->map, device);
    require_success(cuda::upsample_argmax(problem.args, device));
    expect(problem.labels->intact(), "memory outside the result is overwritten");
    compare_labels(*problem.labels, problem.exact(), problem.values);
  }

  void normalise(uint64_t seed, const char* only) {
    Random random(seed);
    const Element element = choose(&random);
    const Device device = machine(only, &random);
    const NormaliseProblem problem(&random, element.dtype);
    ++problems;
    const Map exact = problem.exact();
    describe("normalise", seed, element, exact, device);
    require_success(cuda::normalise(problem.args, device));
    expect(problem.out->intact(), "memory outside the result is overwritten");
    compare(element.dtype, *problem.out, exact, Values::uniform);
  }

 private:
  Element choose(Random* random) const { return elements_[random->below(static_cast<int64_t>(elements_.size()))]; }

  static Device machine(const char* only, Random* random) {
    emulator::settings.seed = random->bits();
    emulator::settings.at_once = static_cast<int>(random->below(4));
    cuda::use_only(only);
    const bool hopper = (only && std::strstr(only, "sm90")) || random->below(2);
    return {0, hopper ? 90 : 80, static_cast<int>(1 + random->below(6)), 227 * 1024, nullptr};
  }

  void describe(const char* op, uint64_t seed, const Element& element, const Map& map, const Device& device) {
    Checks::describe(op, seed, element.dtype, map);
    where_ += std::string(", ") + element.name + " on " + std::to_string(device.capability) + " with " +
              std::to_string(device.multiprocessors) + " multiprocessors";
  }

  void require_success(const char* error) { expect(!error, error ? error : ""); }

  const std::vector<Element> elements_;
};

// A trial of one kernel, or of the choice among them, with `share` times the number of cases.
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

bool passes(const Trial& trial, std::vector<Element> elements, uint64_t cases) {
  const auto is_float32 = [](const Element& element) { return element.dtype == Dtype::f32; };
  if (!trial.has_float32) elements.erase(std::remove_if(elements.begin(), elements.end(), is_float32), elements.end());
  if (elements.empty()) return true;
  Check check(elements);
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
  std::vector<Element> elements;
  for (const Element& element : kElements)
    if (named(element.name)) elements.push_back(element);
  const bool all = names.size() == elements.size();
  if (elements.empty()) elements.assign(std::begin(kElements), std::end(kElements));
  bool ok = true;
  for (const Trial& trial : kTrials)
    if (all || named(trial.op) || named(trial.label())) ok = passes(trial, elements, cases) && ok;
  return ok ? 0 : 1;
}
