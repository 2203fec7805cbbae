// The ops on a GPU: check the arguments, take memory and stream from PyTorch, launch one kernel and do not wait for it.
#include <device/stream.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <utility>

#include "../crp_call.h"
#include "../fusion_call.h"
#include "../normalise_call.h"
#include "../upsample_argmax_call.h"
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

// Return how PyTorch is set to multiply float32 in convolutions, for which the kernels stand in. Its stable ABI does
// not tell, so Python is asked, at every call: a program that torch.compile traced runs without any Python of this
// package.
Multiply multiply_of(Dtype dtype) {
  const auto ask = asks_for_tf32.load();
  return dtype == Dtype::f32 && ask && ask() ? Multiply::tf32 : Multiply::exact;
}

// Copy a map whose channels are not adjacent in memory; return another as it is.
Tensor adjacent(const Tensor& map) {
  return channels_adjacent(map) ? map : torch::stable::contiguous(map, MemoryFormat::ChannelsLast);
}

// Makes the device of a tensor the current one while this lives, and takes PyTorch's stream there.
class DeviceScope {
 public:
  DeviceScope(const char* op, const Tensor& tensor) : op_(op), current_(index_of(tensor)) {
    const int index = index_of(tensor);
    require_success(cuda::describe(index, cuda::current_stream(index), &device_));
  }

  const Device& device() const { return device_; }

  void require_success(const char* error) const { require(error == nullptr, op_, ": ", error ? error : ""); }

 private:
  static int index_of(const Tensor& tensor) { return tensor.get_device_index(); }

  const char* op_;
  cuda::CurrentDevice current_;
  Device device_;
};

Tensor zeros(const Tensor& like, int64_t count) { return torch::stable::new_zeros(like, {&count, 1}, ScalarType::Int); }

// Return `count` int32 that are zero when the kernel starts. Kernels leave them zero, so that those of a stream, whose
// launches follow each other, serve all its calls. A graph may be replayed on any stream: it has its own counters, and
// zeroes them itself.
Tensor counters(const Tensor& like, int64_t count, const Device& device) {
  if (cuda::recording(device)) return zeros(like, count);
  static std::mutex mutex;
  // Never freed: at exit PyTorch's allocator is gone.
  static auto& buffers = *new std::map<std::pair<int, void*>, Tensor>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, added] = buffers.try_emplace({device.index, device.stream});
  if (added || entry->second.numel() < count) entry->second = zeros(like, std::max<int64_t>(count, 4096));
  return entry->second;
}

Tensor crp(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int64_t groups) {
  const DeviceScope scope("crp", x);
  CrpCall call = crp_call(x, weights, biases, groups);
  Tensor out = empty_as(x);
  if (out.numel() == 0) return out;
  if (weights.empty()) return torch::stable::copy_(out, x);

  call.x = adjacent(call.x);
  const Pointers weight_data(call.weights), bias_data(call.biases);
  const CrpArgs args = call.args(weight_data, bias_data, out.mutable_data_ptr());
  const Multiply multiply = multiply_of(call.dtype);
  const cuda::Scratch scratch = cuda::crp_scratch(args, multiply, scope.device());
  const Workspace workspace(scratch.bytes, 256, x.device());
  const Tensor counts = counters(x, scratch.counters, scope.device());
  scope.require_success(
      cuda::crp(args, multiply, scope.device(), workspace.get(), static_cast<int32_t*>(counts.mutable_data_ptr())));
  return out;
}

Tensor fusion(const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
              StringHandle activation_name, bool align_corners) {
  const Activation activation = take_activation(activation_name);
  require(!inputs.empty() && static_cast<int64_t>(inputs.size()) <= cuda::kMaxInputs, "fusion: inputs must be 1 to ",
          cuda::kMaxInputs, " tensors, got ", inputs.size());
  const DeviceScope scope("fusion", inputs[0]);
  FusionCall call = fusion_call(inputs, weights, biases, activation, align_corners);
  const Tensor out = call.empty_result();
  if (out.numel() == 0) return out;

  for (Tensor& map : call.maps) map = adjacent(map);
  const Views views(call.maps);
  const Pointers weight_data(call.weights), bias_data(call.biases);
  const FusionArgs args = call.args(views, weight_data, bias_data, out);
  scope.require_success(cuda::fusion(args, multiply_of(call.dtype), scope.device()));
  return out;
}

Tensor upsample_argmax(const Tensor& logits, int64_t height, int64_t width, bool align_corners) {
  const DeviceScope scope("upsample_argmax", logits);
  const UpsampleArgmaxCall call = upsample_argmax_call(logits, height, width, align_corners);
  if (call.labels.numel() > 0) scope.require_success(cuda::upsample_argmax(call.args(), scope.device()));
  return call.labels;
}

Tensor normalise(const Tensor& images, int64_t height, int64_t width, const std::vector<double>& mean,
                 const std::vector<double>& deviation, ScalarType dtype) {
  const DeviceScope scope("normalise", images);
  const NormaliseCall call = normalise_call(images, height, width, mean, deviation, dtype);
  if (call.out.numel() > 0) scope.require_success(cuda::normalise(call.args(), scope.device()));
  return call.out;
}

}  // namespace
}  // namespace lwrn_fast

// Called by backends/cuda.py through ctypes.
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

// Return null, or why no kernel can run on a device.
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
