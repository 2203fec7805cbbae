// The ops on a GPU: arguments checked, memory and stream from PyTorch, one launch, no waiting for it.
#include <device/stream.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <utility>

#include "../checks.h"
#include "engine.h"

// The tests register the same ops elsewhere, over kernels that run on the CPU.
#ifndef LWRN_LIBRARY
#define LWRN_LIBRARY lwrn_fast
#define LWRN_KEY CUDA
#endif

namespace lwrn_fast {
namespace {

using cuda::Device;
using cuda::Multiply;

std::atomic<bool (*)()> asks_for_tf32{nullptr};

// As PyTorch is told to multiply float32 in convolutions, for which the kernels stand in. Its stable ABI does not tell,
// so Python is asked, at every call: what torch.compile traced runs without any Python of ours.
Multiply multiply_of(Dtype dtype) {
  const auto ask = asks_for_tf32.load();
  return dtype == Dtype::f32 && ask && ask() ? Multiply::tf32 : Multiply::exact;
}

Tensor channels_last(const Tensor& map, Dtype) { return torch::stable::contiguous(map, MemoryFormat::ChannelsLast); }

// The device of a tensor, current for as long as this lives, and PyTorch's stream there.
class Place {
 public:
  Place(const char* op, const Tensor& tensor) : op_(op), current_(index_of(tensor)) {
    const int index = index_of(tensor);
    succeed(cuda::describe(index, cuda::current_stream(index), &device_));
  }

  const Device& device() const { return device_; }

  void succeed(const char* error) const { require(error == nullptr, op_, ": ", error ? error : ""); }

 private:
  static int index_of(const Tensor& tensor) { return tensor.get_device_index(); }

  const char* op_;
  cuda::CurrentDevice current_;
  Device device_;
};

Tensor zeros(const Tensor& like, int64_t count) { return torch::stable::new_zeros(like, {&count, 1}, ScalarType::Int); }

// `count` int32 that are zero when the kernel starts. Kernels leave them zero, so that those of a stream, whose
// launches follow each other, serve all its calls. A graph may be replayed on any stream: it has its own, and zeroes
// them itself.
Tensor counters(const Tensor& like, int64_t count, const Device& device) {
  if (cuda::recording(device)) return zeros(like, count);
  static std::mutex mutex;
  static auto& kept = *new std::map<std::pair<int, void*>, Tensor>;  // never freed: at exit PyTorch's allocator is gone
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [found, first] = kept.try_emplace({device.index, device.stream});
  if (first || found->second.numel() < count) found->second = zeros(like, std::max<int64_t>(count, 4096));
  return found->second;
}

Tensor crp(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int64_t groups) {
  const Place place("crp", x);
  const CrpCall call = crp_call(x, weights, biases, groups, channels_last);
  Tensor out = call.out;
  if (out.numel() == 0) return out;
  if (weights.empty()) return torch::stable::copy_(out, x);

  const Pointers weight_data(call.weights), bias_data(call.biases);
  const CrpArgs args = call.args(weight_data, bias_data);
  const Multiply multiply = multiply_of(call.dtype);
  const cuda::Scratch scratch = cuda::crp_scratch(args, multiply, place.device());
  const Workspace workspace(scratch.bytes, 256, x.device());
  const Tensor counts = counters(x, scratch.counters, place.device());
  place.succeed(
      cuda::crp(args, multiply, place.device(), workspace.get(), static_cast<int32_t*>(counts.mutable_data_ptr())));
  return out;
}

Tensor fusion(const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
              StringHandle activation_name, bool align_corners) {
  const Activation activation = take_activation(activation_name);
  require(!inputs.empty() && static_cast<int64_t>(inputs.size()) <= cuda::kMaxInputs, "fusion: inputs must be 1 to ",
          cuda::kMaxInputs, " tensors, got ", inputs.size());
  const Place place("fusion", inputs[0]);
  const FusionCall call = fusion_call(inputs, weights, biases, activation, align_corners, channels_last);
  if (call.out.numel() == 0) return call.out;
  const Pointers weight_data(call.weights), bias_data(call.biases);
  place.succeed(cuda::fusion(call.args(weight_data, bias_data), multiply_of(call.dtype), place.device()));
  return call.out;
}

Tensor upsample_argmax(const Tensor& logits, int64_t height, int64_t width, bool align_corners) {
  const Place place("upsample_argmax", logits);
  const UpsampleArgmaxCall call = upsample_argmax_call(logits, height, width, align_corners);
  if (call.labels.numel() == 0) return call.labels;
  place.succeed(cuda::upsample_argmax(call.args(), place.device()));
  return call.labels;
}

Tensor normalise(const Tensor& images, int64_t height, int64_t width, const std::vector<double>& mean,
                 const std::vector<double>& deviation, ScalarType dtype) {
  const Place place("normalise", images);
  const NormaliseCall call = normalise_call(images, height, width, mean, deviation, dtype);
  if (call.out.numel() == 0) return call.out;
  place.succeed(cuda::normalise(call.args(), place.device()));
  return call.out;
}

}  // namespace
}  // namespace lwrn_fast

// For backends/cuda.py, through ctypes.
extern "C" {
__attribute__((visibility("default"))) void lwrn_fast_ask_for_tf32(bool (*asks)()) { lwrn_fast::asks_for_tf32 = asks; }

// For tests and measurements: see engine.h.
__attribute__((visibility("default"))) void lwrn_fast_use_only(const char* name) { lwrn_fast::cuda::use_only(name); }

// Return how many channels of float32, else of 16 bits, a crp may have on a device.
__attribute__((visibility("default"))) int64_t lwrn_fast_crp_max_channels(int index, bool float32) {
  try {
    const lwrn_fast::cuda::CurrentDevice current(index);
    lwrn_fast::cuda::Device device;
    if (lwrn_fast::cuda::describe(index, nullptr, &device)) return 0;
    return lwrn_fast::cuda::crp_max_channels(float32 ? lwrn_fast::Dtype::f32 : lwrn_fast::Dtype::bf16, device);
  } catch (const std::exception&) {
    return 0;
  }
}

// Null, or why no kernel can run on a device.
__attribute__((visibility("default"))) const char* lwrn_fast_why_not_on(int index) {
  try {
    const lwrn_fast::cuda::CurrentDevice current(index);
    lwrn_fast::cuda::Device device;
    return lwrn_fast::cuda::describe(index, nullptr, &device);
  } catch (const std::exception&) {
    return "PyTorch cannot make it the current device";
  }
}
}

STABLE_TORCH_LIBRARY_IMPL(LWRN_LIBRARY, LWRN_KEY, m) {
  m.impl("crp", TORCH_BOX(&lwrn_fast::crp));
  m.impl("fusion", TORCH_BOX(&lwrn_fast::fusion));
  m.impl("upsample_argmax", TORCH_BOX(&lwrn_fast::upsample_argmax));
  m.impl("normalise", TORCH_BOX(&lwrn_fast::normalise));
}
