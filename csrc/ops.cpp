// The ops as PyTorch sees them: their schemas, and the functions that run them on a CPU.
#include <optional>
#include <tuple>

#include "cpu/engine.h"
#include "crp_call.h"
#include "fusion_call.h"
#include "normalise_call.h"
#include "packed_cache.h"
#include "upsample_argmax_call.h"

namespace lwrn_fast {
namespace {

Threads torch_threads() {
  return {static_cast<int64_t>(torch::stable::get_num_threads()),
          [](int64_t count, void* context, void (*body)(void*, int64_t)) {
            torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
              for (int64_t worker = begin; worker < end; ++worker) body(context, worker);
            });
          }};
}

Tensor channels_last(const Tensor& map, Dtype dtype) {
  if (map.stride(3) != 1) return torch::stable::contiguous(map, MemoryFormat::ChannelsLast);
  Tensor copy = empty_as(map);
  engine(current_isa()).channels_last({dtype, view_of(map), map.stride(1), copy.mutable_data_ptr()}, torch_threads());
  return copy;
}

// Copy a map whose channels are not adjacent in memory; return another as it is.
Tensor adjacent(const Tensor& map, Dtype dtype) { return channels_adjacent(map) ? map : channels_last(map, dtype); }

std::vector<Tensor> adjacent(const std::vector<Tensor>& maps, Dtype dtype) {
  std::vector<Tensor> result;
  for (const Tensor& map : maps) result.push_back(adjacent(map, dtype));
  return result;
}

template <class Args>
void run_kernel(const Kernel<Args>& kernel, const Args& args, const Threads& threads) {
  // 64: a cache line
  const Workspace workspace(kernel.workspace_bytes(args, threads.count), 64, torch::headeronly::DeviceType::CPU);
  kernel.run(args, workspace.get(), threads);
}

// Write the result to `out`, unless it is null; return t_1, ..., t_`count`.
std::vector<Tensor> run_crp(const CrpCall& call, size_t count, const Tensor* out) {
  const Isa isa = current_isa();
  const Threads threads = torch_threads();
  const auto packed = call.depthwise ? call.weights : packed_weights(call.weights, call.dtype, isa, threads);
  const Pointers weight_data(packed), bias_data(call.biases);
  std::vector<Tensor> kept;
  std::vector<void*> kept_data;
  for (size_t i = 0; i < count; ++i) {
    kept.push_back(empty_as(call.x));
    kept_data.push_back(kept.back().mutable_data_ptr());
  }
  CrpArgs args = call.args(weight_data, bias_data, out ? out->mutable_data_ptr() : nullptr);
  if (!out) args.stages = static_cast<int64_t>(count);
  args.kept = kept.empty() ? nullptr : kept_data.data();
  run_kernel(engine(isa).crp, args, threads);
  return kept;
}

Tensor crp(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int64_t groups) {
  CrpCall call = crp_call(x, weights, biases, groups);
  Tensor out = empty_as(x);
  if (out.numel() == 0) return out;
  if (weights.empty()) return torch::stable::copy_(out, x);
  call.x = adjacent(call.x, call.dtype);
  run_crp(call, 0, &out);
  return out;
}

std::tuple<Tensor, std::vector<Tensor>> crp_training(const Tensor& x, const std::vector<Tensor>& weights,
                                                     const std::vector<Tensor>& biases, int64_t groups) {
  CrpCall call = crp_call(x, weights, biases, groups);
  Tensor out = empty_as(x);
  if (weights.empty()) return {torch::stable::copy_(out, x), {}};
  if (out.numel() == 0) return {out, std::vector<Tensor>(weights.size() - 1, torch::stable::empty_like(out))};
  call.x = adjacent(call.x, call.dtype);
  return {out, run_crp(call, weights.size() - 1, &out)};
}

std::vector<Tensor> crp_backward(const Tensor& grad, const Tensor& x, const std::vector<Tensor>& stages,
                                 const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int64_t groups,
                                 const std::vector<bool>& needs) {
  CrpBackwardCall call = crp_backward_call(grad, x, stages, weights, biases, groups, needs);
  if (x.numel() == 0 || weights.empty()) return call.trivial_grads();
  const Dtype dtype = call.forward.dtype;
  call.forward.x = adjacent(call.forward.x, dtype);
  call.grad = adjacent(call.grad, dtype);
  call.stages = adjacent(call.stages, dtype);
  if (stages.empty() && weights.size() > 1) call.stages = run_crp(call.forward, weights.size() - 1, nullptr);

  const Views pooled(call.pooled());
  const Pointers weight_data(call.forward.weights);
  run_kernel(engine(current_isa()).crp_backward, call.args(pooled, weight_data), torch_threads());
  return call.grads;
}

Tensor fusion(const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
              StringHandle activation_name, bool align_corners) {
  const Activation activation = take_activation(activation_name);
  FusionCall call = fusion_call(inputs, weights, biases, activation, align_corners);
  const Tensor out = call.empty_result();
  if (out.numel() == 0) return out;
  call.maps = adjacent(call.maps, call.dtype);

  const Isa isa = current_isa();
  const Threads threads = torch_threads();
  const auto packed = packed_weights(call.weights, call.dtype, isa, threads);
  const Views views(call.maps);
  const Pointers weight_data(packed), bias_data(call.biases);
  run_kernel(engine(isa).fusion, call.args(views, weight_data, bias_data, out), threads);
  return out;
}

std::vector<Tensor> fusion_backward(const Tensor& grad, const std::optional<Tensor>& out,
                                    const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights,
                                    const std::vector<Tensor>& biases, StringHandle activation_name, bool align_corners,
                                    const std::vector<bool>& needs) {
  const Activation activation = take_activation(activation_name);
  FusionBackwardCall call = fusion_backward_call(grad, out, inputs, weights, biases, activation, align_corners, needs);
  if (grad.numel() == 0) {
    for (Tensor each : call.grads) torch::stable::zero_(each);
    return call.grads;
  }
  const Dtype dtype = call.forward.dtype;
  call.forward.maps = adjacent(call.forward.maps, dtype);
  call.grad = adjacent(call.grad, dtype);
  if (call.out) call.out = adjacent(*call.out, dtype);

  const Views views(call.forward.maps);
  const Pointers weight_data(call.forward.weights);
  run_kernel(engine(current_isa()).fusion_backward, call.args(views, weight_data), torch_threads());
  return call.grads;
}

Tensor upsample_argmax(const Tensor& logits, int64_t height, int64_t width, bool align_corners) {
  const UpsampleArgmaxCall call = upsample_argmax_call(logits, height, width, align_corners);
  if (call.labels.numel() > 0) run_kernel(engine(current_isa()).upsample_argmax, call.args(), torch_threads());
  return call.labels;
}

Tensor normalise(const Tensor& images, int64_t height, int64_t width, const std::vector<double>& mean,
                 const std::vector<double>& deviation, ScalarType dtype) {
  const NormaliseCall call = normalise_call(images, height, width, mean, deviation, dtype);
  if (call.out.numel() > 0) run_kernel(engine(current_isa()).normalise, call.args(), torch_threads());
  return call.out;
}

// Check the input of an AOTInductor package and copy it to channels-last memory. The package's own code takes every
// input for one of the example's size, strides and dtype, and reads whatever lies there. size: -1 for any.
Tensor package_input(const Tensor& x, const std::vector<int64_t>& size, ScalarType dtype) {
  bool fits = x.dim() == 4 && size.size() == 4 && x.numel() > 0;
  std::string expected;
  for (size_t i = 0; i < size.size(); ++i) {
    fits = fits && (size[i] < 0 || x.size(static_cast<int64_t>(i)) == size[i]);
    expected += (i ? ", " : "(") + (size[i] < 0 ? "any" : std::to_string(size[i]));
  }
  require(fits, "the package's input must be ", expected, "), got ", shape_of(x));
  require(x.scalar_type() == dtype, "the package's input must be of the dtype it was exported with");
  if (!channels_adjacent(x) && x.stride(3) == 1) return channels_last(x, dtype_of("package_input", "x", x));
  Tensor copy = empty_as(x);
  return torch::stable::copy_(copy, x);
}

}  // namespace
}  // namespace lwrn_fast

STABLE_TORCH_LIBRARY(lwrn_fast, m) {
  m.def("crp(Tensor x, Tensor[] weights, Tensor[] biases, int groups) -> Tensor");
  m.def("crp_training(Tensor x, Tensor[] weights, Tensor[] biases, int groups) -> (Tensor, Tensor[])");
  m.def(
      "crp_backward(Tensor grad, Tensor x, Tensor[] stages, Tensor[] weights, Tensor[] biases, int groups, "
      "bool[] needs) -> Tensor[]");
  m.def("fusion(Tensor[] inputs, Tensor[] weights, Tensor[] biases, str activation, bool align_corners) -> Tensor");
  m.def(
      "fusion_backward(Tensor grad, Tensor? out, Tensor[] inputs, Tensor[] weights, Tensor[] biases, str activation, "
      "bool align_corners, bool[] needs) -> Tensor[]");
  m.def("upsample_argmax(Tensor logits, SymInt height, SymInt width, bool align_corners) -> Tensor");
  m.def("normalise(Tensor images, SymInt height, SymInt width, float[] mean, float[] std, ScalarType dtype) -> Tensor");
  m.def("package_input(Tensor x, int[] size, ScalarType dtype) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lwrn_fast, CPU, m) {
  m.impl("crp", TORCH_BOX(&lwrn_fast::crp));
  m.impl("crp_training", TORCH_BOX(&lwrn_fast::crp_training));
  m.impl("crp_backward", TORCH_BOX(&lwrn_fast::crp_backward));
  m.impl("fusion", TORCH_BOX(&lwrn_fast::fusion));
  m.impl("fusion_backward", TORCH_BOX(&lwrn_fast::fusion_backward));
  m.impl("upsample_argmax", TORCH_BOX(&lwrn_fast::upsample_argmax));
  m.impl("normalise", TORCH_BOX(&lwrn_fast::normalise));
  m.impl("package_input", TORCH_BOX(&lwrn_fast::package_input));
}
