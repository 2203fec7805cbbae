// The ops as PyTorch sees them: schemas, argument checks, memory, and the choice of the CPU engine.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/engine.h"
#include "packed_cache.h"

namespace lwrn_fast {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The parts make one line, which Python shows as it is.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

Threads torch_threads() {
  return {static_cast<int64_t>(torch::stable::get_num_threads()),
          [](int64_t count, void* context, void (*body)(void*, int64_t)) {
            torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
              for (int64_t worker = begin; worker < end; ++worker) body(context, worker);
            });
          }};
}

Dtype dtype_of(const char* op, const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    case ScalarType::Half:
      return Dtype::f16;
    default:
      throw std::runtime_error(std::string(op) + ": " + name + " must be float32, bfloat16 or float16");
  }
}

std::string shape_of(const Tensor& tensor) {
  std::string text;
  for (int64_t size : tensor.sizes()) text += (text.empty() ? "(" : ", ") + std::to_string(size);
  return text.empty() ? "()" : text + ")";
}

std::string item(const char* name, size_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

MapView view_of(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.size(0),   tensor.size(1),   tensor.size(2),
          tensor.size(3),          tensor.stride(0), tensor.stride(2), tensor.stride(3)};
}

Tensor channels_last_empty(const Tensor& like, int64_t batch, int64_t planes, int64_t height, int64_t width) {
  const int64_t sizes[] = {batch, planes, height, width};
  return torch::stable::empty({sizes, 4}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              MemoryFormat::ChannelsLast);
}

// `tensor` with its planes adjacent in memory: itself where they are, else a channels-last copy.
Tensor planes_adjacent(const char* op, const std::string& name, const Tensor& tensor, Dtype dtype) {
  require(tensor.dim() == 4, op, ": ", name, " must be (batch, planes, height, width), got ", shape_of(tensor));
  require(tensor.size(1) > 0 && tensor.size(2) > 0 && tensor.size(3) > 0, op, ": ", name,
          " must have planes, height and width of at least 1, got ", shape_of(tensor));
  if (tensor.stride(1) == 1 || tensor.size(1) == 1) return tensor;
  if (tensor.stride(3) != 1) return torch::stable::contiguous(tensor, MemoryFormat::ChannelsLast);
  Tensor copy = channels_last_empty(tensor, tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3));
  engine(current_isa())
      .channels_last({dtype, view_of(tensor), tensor.stride(1), copy.mutable_data_ptr()}, torch_threads());
  return copy;
}

// Checks each weight's shape and dtype, and returns it with the memory of a contiguous matrix.
std::vector<Tensor> matrices(const char* op, const std::vector<Tensor>& weights, int64_t out_planes,
                             const std::vector<int64_t>& in_planes, ScalarType type) {
  std::vector<Tensor> result;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& weight = weights[i];
    require(weight.dim() == 4 && weight.size(0) == out_planes && weight.size(1) == in_planes[i] &&
                weight.size(2) == 1 && weight.size(3) == 1,
            op, ": ", item("weights", i), " must be (", out_planes, ", ", in_planes[i], ", 1, 1), got ",
            shape_of(weight));
    require(weight.scalar_type() == type, op, ": ", item("weights", i), " must have the dtype of the input");
    require(weight.is_cpu(), op, ": ", item("weights", i), " must be on the CPU");
    const bool dense =
        (weight.size(1) == 1 || weight.stride(1) == 1) && (weight.size(0) == 1 || weight.stride(0) == weight.size(1));
    result.push_back(dense ? weight : torch::stable::contiguous(weight));
  }
  return result;
}

std::vector<Tensor> checked_biases(const char* op, const std::vector<Tensor>& biases, size_t count, int64_t planes,
                                   ScalarType type) {
  require(biases.empty() || biases.size() == count, op, ": biases must be empty or ", count, " tensors, got ",
          biases.size());
  std::vector<Tensor> result;
  for (size_t i = 0; i < biases.size(); ++i) {
    require(biases[i].dim() == 1 && biases[i].size(0) == planes, op, ": ", item("biases", i), " must be (", planes,
            "), got ", shape_of(biases[i]));
    require(biases[i].scalar_type() == type, op, ": ", item("biases", i), " must have the dtype of the input");
    require(biases[i].is_cpu(), op, ": ", item("biases", i), " must be on the CPU");
    result.push_back(torch::stable::contiguous(biases[i]));
  }
  return result;
}

std::vector<const void*> pointers(const std::vector<Tensor>& tensors) {
  std::vector<const void*> result;
  for (const Tensor& tensor : tensors) result.push_back(tensor.const_data_ptr());
  return result;
}

// Scratch memory whose start is aligned to a cache line.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) {
    const int64_t padded = bytes + 64;
    tensor_ = torch::stable::empty({&padded, 1}, ScalarType::Byte);
  }
  void* get() const {
    const auto address = reinterpret_cast<uintptr_t>(tensor_.mutable_data_ptr());
    return reinterpret_cast<void*>((address + 63) / 64 * 64);
  }

 private:
  Tensor tensor_;
};

Tensor crp(const Tensor& input, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int64_t groups) {
  const Dtype dtype = dtype_of("crp", "x", input);
  const Tensor x = planes_adjacent("crp", "x", input, dtype);
  const int64_t planes = x.size(1);
  require(groups == 1 || groups == planes, "crp: groups must be 1 or the number of planes (", planes, "), got ",
          groups);
  require(static_cast<int64_t>(weights.size()) <= kMostStages, "crp: weights must be at most ", kMostStages,
          " tensors, got ", weights.size());
  const bool depthwise = groups > 1;
  const std::vector<int64_t> in_planes(weights.size(), depthwise ? 1 : planes);
  const auto dense = matrices("crp", weights, planes, in_planes, x.scalar_type());
  const auto added = checked_biases("crp", biases, weights.size(), planes, x.scalar_type());
  Tensor out = channels_last_empty(x, x.size(0), planes, x.size(2), x.size(3));
  if (x.size(0) == 0) return out;
  if (weights.empty()) return torch::stable::copy_(out, x);

  const Isa isa = current_isa();
  const Threads threads = torch_threads();
  const auto packed = depthwise ? dense : packed_weights(dense, dtype, isa, threads);
  const auto weight_data = pointers(packed), bias_data = pointers(added);
  const CrpArgs args{dtype,
                     view_of(x),
                     static_cast<int64_t>(weights.size()),
                     depthwise,
                     weight_data.data(),
                     added.empty() ? nullptr : bias_data.data(),
                     out.mutable_data_ptr()};
  const Workspace workspace(engine(isa).crp_workspace_bytes(args, threads.count));
  engine(isa).crp(args, workspace.get(), threads);
  return out;
}

Activation activation_of(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  require(name == "relu6", "fusion: activation must be 'relu', 'relu6' or 'none', got '", name, "'");
  return Activation::relu6;
}

Tensor fusion(const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
              const std::string& activation, bool align_corners) {
  require(!inputs.empty(), "fusion: inputs must hold at least one tensor");
  require(weights.size() == inputs.size(), "fusion: weights must be ", inputs.size(),
          " tensors, one for each input, got ", weights.size());
  require(weights[0].dim() == 4, "fusion: weights[0] must be (out, in, 1, 1), got ", shape_of(weights[0]));
  const Dtype dtype = dtype_of("fusion", "inputs[0]", inputs[0]);
  const ScalarType type = inputs[0].scalar_type();
  std::vector<Tensor> maps;
  std::vector<MapView> views;
  std::vector<int64_t> in_planes;
  for (size_t i = 0; i < inputs.size(); ++i) {
    require(inputs[i].scalar_type() == type, "fusion: ", item("inputs", i), " must have the dtype of inputs[0]");
    require(inputs[i].is_cpu(), "fusion: ", item("inputs", i), " must be on the CPU");
    maps.push_back(planes_adjacent("fusion", item("inputs", i), inputs[i], dtype));
    require(inputs[i].size(0) == inputs[0].size(0), "fusion: ", item("inputs", i), " must have batch ",
            inputs[0].size(0), ", got ", inputs[i].size(0));
    views.push_back(view_of(maps.back()));
    in_planes.push_back(inputs[i].size(1));
  }
  const int64_t out_planes = weights[0].size(0);
  const auto dense = matrices("fusion", weights, out_planes, in_planes, type);
  const auto added = checked_biases("fusion", biases, weights.size(), out_planes, type);
  const MapView& first = views[0];
  Tensor out = channels_last_empty(maps[0], first.batch, out_planes, first.height, first.width);
  const Activation act = activation_of(activation);
  if (out.numel() == 0) return out;

  const Isa isa = current_isa();
  const Threads threads = torch_threads();
  const auto packed = packed_weights(dense, dtype, isa, threads);
  const auto weight_data = pointers(packed), bias_data = pointers(added);
  const FusionArgs args{dtype,
                        static_cast<int64_t>(views.size()),
                        views.data(),
                        weight_data.data(),
                        added.empty() ? nullptr : bias_data.data(),
                        out_planes,
                        act,
                        align_corners,
                        out.mutable_data_ptr()};
  const Workspace workspace(engine(isa).fusion_workspace_bytes(args, threads.count));
  engine(isa).fusion(args, workspace.get(), threads);
  return out;
}

Tensor upsample_argmax(const Tensor& logits, int64_t height, int64_t width, bool align_corners) {
  const Dtype dtype = dtype_of("upsample_argmax", "logits", logits);
  require(logits.dim() == 4 && logits.size(1) > 0 && logits.size(2) > 0 && logits.size(3) > 0,
          "upsample_argmax: logits must be (batch, classes, height, width), none of the last three empty, got ",
          shape_of(logits));
  require(logits.size(1) <= 256, "upsample_argmax: logits must have at most 256 classes, for labels are uint8, got ",
          logits.size(1));
  require(height > 0 && width > 0, "upsample_argmax: size must be at least (1, 1), got (", height, ", ", width, ")");
  const int64_t sizes[] = {logits.size(0), height, width};
  Tensor labels = torch::stable::empty({sizes, 3}, ScalarType::Byte, std::nullopt, logits.device());
  if (labels.numel() == 0) return labels;

  const Isa isa = current_isa();
  const Threads threads = torch_threads();
  const UpsampleArgmaxArgs args{dtype,
                                view_of(logits),
                                logits.stride(1),
                                height,
                                width,
                                align_corners,
                                static_cast<uint8_t*>(labels.mutable_data_ptr())};
  const Workspace workspace(engine(isa).upsample_argmax_workspace_bytes(args, threads.count));
  engine(isa).upsample_argmax(args, workspace.get(), threads);
  return labels;
}

}  // namespace
}  // namespace lwrn_fast

STABLE_TORCH_LIBRARY(lwrn_fast, m) {
  m.def("crp(Tensor x, Tensor[] weights, Tensor[] biases, int groups) -> Tensor");
  m.def("fusion(Tensor[] inputs, Tensor[] weights, Tensor[] biases, str activation, bool align_corners) -> Tensor");
  m.def("upsample_argmax(Tensor logits, SymInt height, SymInt width, bool align_corners) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lwrn_fast, CPU, m) {
  m.impl("crp", TORCH_BOX(&lwrn_fast::crp));
  m.impl("fusion", TORCH_BOX(&lwrn_fast::fusion));
  m.impl("upsample_argmax", TORCH_BOX(&lwrn_fast::upsample_argmax));
}
