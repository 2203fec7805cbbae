// Runs the ops and the backward passes of every instruction set on small problems, and compares with reference.h.
// selfcheck [CASES [INSTRUCTION_SET...]]: prints a line for each set; exit status 1 on a mismatch. The sets are those
// that the machine reports to run, or exactly the named ones.
#include <termios.h>

#include "../../csrc/cpu/engine.h"
#include "problems_backward.h"

namespace selfcheck {
namespace {

// Maps (channels, height, width) too large for the workspace of crp() to hold whole: wide, tall and square.
constexpr int64_t kLargeMaps[][3] = {{7, 300, 260}, {12, 9001, 5}, {12, 5, 9001}, {72, 90, 85}};

class Check : public Checks {
 public:
  explicit Check(const Engine& engine) : engine_(engine) { where_ = "pack"; }

  void fingerprint(uint64_t seed) {
    Random random(seed);
    const int64_t bytes = 1 + random.below(2000);
    const Buffer data(bytes);
    for (int64_t i = 0; i < bytes; ++i) data.get()[i] = static_cast<unsigned char>(random.below(256));
    const uint64_t before = engine_.fingerprint(data.get(), bytes);
    where_ = "fingerprint " + std::to_string(seed);
    expect(engine_.fingerprint(data.get(), bytes) == before, "the same contents give another number");
    data.get()[random.below(bytes)] ^= 1 << random.below(8);
    expect(engine_.fingerprint(data.get(), bytes) != before, "a changed bit is not noticed");
  }

  void crp(uint64_t seed, bool large) {
    Random random(seed);
    const Dtype dtype = random.pick(kDtypes);
    const Values values = random.pick(kValues);
    const int64_t stages = 1 + random.below(4), batch = large ? 1 : 1 + random.below(2);
    const auto& shape = kLargeMaps[random.below(4)];
    const int64_t channels = large ? shape[0] : random.pick(kChannels);
    const int64_t height = large ? shape[1] : random.pick(kSizes), width = large ? shape[2] : random.pick(kSizes);
    CrpProblem problem(dtype, values, stages, random.below(3) == 0, random.pick(kLayouts), batch, channels, height,
                       width, &random);
    const Threads threads = workers(1 + random.below(3), random.below(2));
    std::vector<std::unique_ptr<Buffer>> packed;
    for (int64_t i = 0; i < stages && !problem.depthwise; ++i)
      problem.weight_data[i] = pack(dtype, problem.weights[i], channels, channels, threads, &packed);
    const Buffer workspace(engine_.crp.workspace_bytes(problem.args, threads.count), 64);
    engine_.crp.run(problem.args, workspace.get(), threads);

    describe("crp", seed, dtype, problem.x.map);
    expect(problem.out.intact() && workspace.intact(), "memory outside the result or the workspace is overwritten");
    compare(dtype, problem.out, problem.exact(), values);
  }

  void fusion(uint64_t seed) {
    Random random(seed);
    const Dtype dtype = random.pick(kDtypes);
    FusionProblem problem(&random, dtype);
    const Threads threads = workers(1 + random.below(3), random.below(2));
    std::vector<std::unique_ptr<Buffer>> packed;
    for (size_t k = 0; k < problem.inputs.size(); ++k)
      problem.weight_data[k] =
          pack(dtype, problem.weights[k], problem.args.out_channels, problem.views[k].channels, threads, &packed);
    const Buffer workspace(engine_.fusion.workspace_bytes(problem.args, threads.count), 64);
    engine_.fusion.run(problem.args, workspace.get(), threads);

    describe("fusion", seed, dtype, problem.inputs[0].map);
    expect(problem.out->intact() && workspace.intact(), "memory outside the result or the workspace is overwritten");
    compare(dtype, *problem.out, problem.exact(), problem.values);
  }

  void crp_backward(uint64_t seed, bool large) {
    Random random(seed);
    const Dtype dtype = random.pick(kDtypes);
    const int64_t small[] = {random.pick(kChannels), random.pick(kSizes), random.pick(kSizes)};
    const CrpBackwardProblem problem(dtype, random.pick(kValues), large ? 1 : 1 + random.below(2),
                                     large ? kLargeMaps[random.below(4)] : small, &random);
    const Threads threads = workers(1 + random.below(3), random.below(2));
    const Buffer workspace(engine_.crp_backward.workspace_bytes(problem.args, threads.count), 64);
    engine_.crp_backward.run(problem.args, workspace.get(), threads);

    describe("crp_backward", seed, dtype, problem.grad.map);
    expect(workspace.intact(), "memory outside the workspace is overwritten");
    const Gradients exact = problem.exact();
    compare_gradients(dtype, problem.x, exact.inputs, problem.values);
    compare_gradients(dtype, problem.weight_grads, exact.weights, problem.values);
    compare_gradients(dtype, problem.bias_grads, exact.biases, problem.values);
  }

  void fusion_backward(uint64_t seed) {
    Random random(seed);
    const Dtype dtype = random.pick(kDtypes);
    const FusionBackwardProblem problem(&random, dtype);
    const Threads threads = workers(1 + random.below(3), random.below(2));
    const Buffer workspace(engine_.fusion_backward.workspace_bytes(problem.args, threads.count), 64);
    engine_.fusion_backward.run(problem.args, workspace.get(), threads);

    describe("fusion_backward", seed, dtype, problem.grad.map);
    expect(workspace.intact(), "memory outside the workspace is overwritten");
    const Gradients exact = problem.exact();
    compare_gradients(dtype, problem.inputs, exact.inputs, problem.forward.values);
    compare_gradients(dtype, problem.weight_grads, exact.weights, problem.forward.values);
    compare_gradients(dtype, problem.bias_grads, exact.biases, problem.forward.values);
  }

  void upsample_argmax(uint64_t seed) {
    Random random(seed);
    const Dtype dtype = random.pick(kDtypes);
    const UpsampleArgmaxProblem problem(&random, dtype);
    const Threads threads = workers(1 + random.below(3), random.below(2));
    const Buffer workspace(engine_.upsample_argmax.workspace_bytes(problem.args, threads.count), 64);
    engine_.upsample_argmax.run(problem.args, workspace.get(), threads);

    describe("upsample_argmax", seed, dtype, problem.logits->map);
    expect(problem.labels->intact() && workspace.intact(), "memory outside the result or the workspace is overwritten");
    compare_labels(*problem.labels, problem.exact(), problem.values);
  }

  void normalise(uint64_t seed) {
    Random random(seed);
    const Dtype dtype = random.pick(kDtypes);
    const NormaliseProblem problem(&random, dtype);
    const Threads threads = workers(1 + random.below(3), random.below(2));
    const Buffer workspace(engine_.normalise.workspace_bytes(problem.args, threads.count), 64);
    engine_.normalise.run(problem.args, workspace.get(), threads);

    const Map exact = problem.exact();
    describe("normalise", seed, dtype, exact);
    expect(problem.out->intact() && workspace.intact(), "memory outside the result or the workspace is overwritten");
    compare(dtype, *problem.out, exact, Values::uniform);
  }

 private:
  void compare_gradients(Dtype dtype, const GradientBuffers& got, const std::vector<Map>& exact, Values values) {
    for (size_t i = 0; i < exact.size(); ++i) {
      expect(got.memory[i]->intact(), "memory outside a gradient is overwritten");
      if (got.data[i]) compare(dtype, *got.memory[i], exact[i], values);
    }
  }

  const void* pack(Dtype dtype, const Parameter& weight, int64_t out_channels, int64_t in_channels,
                   const Threads& threads, std::vector<std::unique_ptr<Buffer>>* packed) {
    packed->push_back(std::make_unique<Buffer>(engine_.packed_bytes(dtype, out_channels, in_channels), 64));
    engine_.pack(dtype, weight.memory->get(), out_channels, in_channels, packed->back()->get(), threads);
    expect(packed->back()->intact(), "memory outside the packed weights is overwritten");
    return packed->back()->get();
  }

  const Engine& engine_;
};

bool passes(Isa isa, int64_t cases) {
  Check check(engine(isa));
  for (int64_t i = 0; i < cases; ++i) {
    check.fingerprint(i);
    check.crp(i, i % 20 == 19);
    check.crp_backward(i, i % 20 == 19);
    check.fusion(i);
    check.fusion_backward(i);
    check.upsample_argmax(i);
    check.normalise(i);
  }
  std::printf("%s: %lld problems of each op, %lld wrong\n", isa_name(isa), static_cast<long long>(cases),
              static_cast<long long>(check.failures));
  std::fflush(stdout);
  return check.failures == 0;
}

}  // namespace
}  // namespace selfcheck

int main(int argc, char** argv) {
  const long long cases = argc > 1 ? std::atoll(argv[1]) : 300;
  bool ok = true;
  for (lwrn_fast::Isa isa : lwrn_fast::kIsasBestFirst) {
    const std::string name = lwrn_fast::isa_name(isa);
    bool named = false;
    for (int i = 2; i < argc; ++i) named = named || name == argv[i];
    if (!lwrn_fast::isa_built(isa) || (argc > 2 && !named)) continue;
    if (named || lwrn_fast::isa_runs(isa))
      ok = selfcheck::passes(isa, cases) && ok;
    else
      std::printf("%s: built, but not run by this machine\n", name.c_str());
  }
  std::fflush(stdout);
  tcdrain(STDOUT_FILENO);  // as the first process of an emulated machine, the program ends the machine with it
  return ok ? 0 : 1;
}
