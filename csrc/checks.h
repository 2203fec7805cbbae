// What the ops of every device check and allocate before a kernel runs. An error is one line, which Python shows as it
// is.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "crp.h"
#include "fusion.h"
#include "large_pages.h"
#include "normalise.h"
#include "upsample_argmax.h"

namespace lwrn_fast {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

inline std::string item(const char* name, size_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

inline std::string shape_of(const Tensor& tensor) {
  std::string text;
  for (int64_t size : tensor.sizes()) text += (text.empty() ? "(" : ", ") + std::to_string(size);
  return text.empty() ? "()" : text + ")";
}

inline Dtype dtype_of(const char* op, const char* name, const Tensor& tensor) {
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

inline void require_like(const char* op, const std::string& name, const Tensor& tensor, const Tensor& first,
                         const char* first_name) {
  require(tensor.scalar_type() == first.scalar_type(), op, ": ", name, " must have the dtype of ", first_name);
  require(tensor.device() == first.device(), op, ": ", name, " must be on the device of ", first_name);
}

inline void require_map(const char* op, const std::string& name, const Tensor& tensor) {
  require(tensor.dim() == 4, op, ": ", name, " must be (batch, planes, height, width), got ", shape_of(tensor));
  require(tensor.size(1) > 0 && tensor.size(2) > 0 && tensor.size(3) > 0, op, ": ", name,
          " must have planes, height and width of at least 1, got ", shape_of(tensor));
}

inline bool channels_adjacent(const Tensor& map) { return map.stride(1) == 1 || map.size(1) == 1; }

inline MapView view_of(const Tensor& map) {
  return {map.const_data_ptr(), map.size(0),   map.size(1),   map.size(2),
          map.size(3),          map.stride(0), map.stride(2), map.stride(3)};
}

inline Tensor channels_last_empty(const Tensor& like, int64_t batch, int64_t channels, int64_t height, int64_t width) {
  const int64_t sizes[] = {batch, channels, height, width};
  Tensor map = torch::stable::empty({sizes, 4}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                                    MemoryFormat::ChannelsLast);
  if (map.is_cpu()) ask_for_large_pages(map.const_data_ptr(), map.numel() * map.element_size());
  return map;
}

// Each weight with the memory of a contiguous (out_channels, in_channels[i]) matrix.
inline std::vector<Tensor> matrices(const char* op, const std::vector<Tensor>& weights, int64_t out_channels,
                                    const std::vector<int64_t>& in_channels, const Tensor& first,
                                    const char* first_name) {
  std::vector<Tensor> result;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& weight = weights[i];
    require(weight.dim() == 4 && weight.size(0) == out_channels && weight.size(1) == in_channels[i] &&
                weight.size(2) == 1 && weight.size(3) == 1,
            op, ": ", item("weights", i), " must be (", out_channels, ", ", in_channels[i], ", 1, 1), got ",
            shape_of(weight));
    require_like(op, item("weights", i), weight, first, first_name);
    const bool dense =
        (weight.size(1) == 1 || weight.stride(1) == 1) && (weight.size(0) == 1 || weight.stride(0) == weight.size(1));
    result.push_back(dense ? weight : torch::stable::contiguous(weight));
  }
  return result;
}

inline std::vector<Tensor> vectors(const char* op, const std::vector<Tensor>& biases, size_t count, int64_t channels,
                                   const Tensor& first, const char* first_name) {
  require(biases.empty() || biases.size() == count, op, ": biases must be empty or ", count, " tensors, got ",
          biases.size());
  std::vector<Tensor> result;
  for (size_t i = 0; i < biases.size(); ++i) {
    require(biases[i].dim() == 1 && biases[i].size(0) == channels, op, ": ", item("biases", i), " must be (", channels,
            "), got ", shape_of(biases[i]));
    require_like(op, item("biases", i), biases[i], first, first_name);
    result.push_back(torch::stable::contiguous(biases[i]));
  }
  return result;
}

// Scratch memory, its start aligned as asked for.
class Workspace {
 public:
  Workspace(int64_t bytes, uintptr_t alignment, const torch::stable::Device& device) : alignment_(alignment) {
    const int64_t padded = bytes + static_cast<int64_t>(alignment);
    tensor_ = torch::stable::empty({&padded, 1}, ScalarType::Byte, std::nullopt, device);
    if (tensor_.is_cpu()) ask_for_large_pages(tensor_.const_data_ptr(), padded);
  }
  void* get() const {
    const auto address = reinterpret_cast<uintptr_t>(tensor_.mutable_data_ptr());
    return reinterpret_cast<void*>((address + alignment_ - 1) / alignment_ * alignment_);
  }

 private:
  uintptr_t alignment_;
  Tensor tensor_;
};

// The pointers of tensors, for as long as this lives.
class Pointers {
 public:
  explicit Pointers(const std::vector<Tensor>& tensors) {
    for (const Tensor& tensor : tensors) data_.push_back(tensor.const_data_ptr());
  }
  const void* const* get() const { return data_.empty() ? nullptr : data_.data(); }

 private:
  std::vector<const void*> data_;
};

// A call whose arguments fit together, with memory for its result. Its maps have adjacent channels, its weights are
// contiguous matrices.
struct CrpCall {
  Dtype dtype;
  Tensor x;
  bool depthwise;
  std::vector<Tensor> weights, biases;
  Tensor out;

  // weights: this call's, packed or not.
  CrpArgs args(const Pointers& weight_data, const Pointers& bias_data) const {
    return {dtype,
            view_of(x),
            static_cast<int64_t>(weights.size()),
            depthwise,
            weight_data.get(),
            bias_data.get(),
            out.mutable_data_ptr(),
            nullptr};
  }
};

// channels_last: copies a map of this dtype to channels-last memory.
template <class Copy>
CrpCall crp_call(const Tensor& input, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                 int64_t groups, const Copy& channels_last) {
  const Dtype dtype = dtype_of("crp", "x", input);
  require_map("crp", "x", input);
  const int64_t channels = input.size(1);
  require(groups == 1 || groups == channels, "crp: groups must be 1 or the number of planes (", channels, "), got ",
          groups);
  require(static_cast<int64_t>(weights.size()) <= kMaxStages, "crp: weights must be at most ", kMaxStages,
          " tensors, got ", weights.size());
  const bool depthwise = groups > 1;
  const std::vector<int64_t> in_channels(weights.size(), depthwise ? 1 : channels);
  return {dtype,
          channels_adjacent(input) ? input : channels_last(input, dtype),
          depthwise,
          matrices("crp", weights, channels, in_channels, input, "x"),
          vectors("crp", biases, weights.size(), channels, input, "x"),
          channels_last_empty(input, input.size(0), channels, input.size(2), input.size(3))};
}

// Of a string argument of an op, which it frees. As std::string, every call would leak one (pytorch issue 191340).
inline Activation take_activation(StringHandle handle) {
  size_t length = 0;
  const char* characters = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &characters));
  const std::string name(characters, length);
  STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  require(name == "relu6", "fusion: activation must be 'relu', 'relu6' or 'none', got '", name, "'");
  return Activation::relu6;
}

// What fusion and its backward pass read: maps with adjacent channels, weights that are contiguous matrices.
struct FusionOperands {
  Dtype dtype;
  std::vector<Tensor> maps;
  std::vector<MapView> views;
  std::vector<Tensor> weights, biases;
  Activation activation;
  bool align_corners;

  int64_t inputs() const { return static_cast<int64_t>(views.size()); }
};

struct FusionCall : FusionOperands {
  Tensor out;

  FusionArgs args(const Pointers& weight_data, const Pointers& bias_data) const {
    return {dtype,       inputs(),   views.data(),  weight_data.get(),     bias_data.get(),
            out.size(1), activation, align_corners, out.mutable_data_ptr()};
  }
};

template <class Copy>
FusionOperands fusion_operands(const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights,
                               const std::vector<Tensor>& biases, Activation activation, bool align_corners,
                               const Copy& channels_last) {
  require(!inputs.empty(), "fusion: inputs must hold at least one tensor");
  require(weights.size() == inputs.size(), "fusion: weights must be ", inputs.size(),
          " tensors, one for each input, got ", weights.size());
  require(weights[0].dim() == 4, "fusion: weights[0] must be (out, in, 1, 1), got ", shape_of(weights[0]));
  const Tensor& first = inputs[0];
  const Dtype dtype = dtype_of("fusion", "inputs[0]", first);
  std::vector<Tensor> maps;
  std::vector<MapView> views;
  std::vector<int64_t> in_channels;
  for (size_t i = 0; i < inputs.size(); ++i) {
    require_like("fusion", item("inputs", i), inputs[i], first, "inputs[0]");
    require_map("fusion", item("inputs", i), inputs[i]);
    require(inputs[i].size(0) == first.size(0), "fusion: ", item("inputs", i), " must have batch ", first.size(0),
            ", got ", inputs[i].size(0));
    maps.push_back(channels_adjacent(inputs[i]) ? inputs[i] : channels_last(inputs[i], dtype));
    views.push_back(view_of(maps.back()));
    in_channels.push_back(inputs[i].size(1));
  }
  const int64_t out_channels = weights[0].size(0);
  return {dtype,
          maps,
          views,
          matrices("fusion", weights, out_channels, in_channels, first, "inputs[0]"),
          vectors("fusion", biases, weights.size(), out_channels, first, "inputs[0]"),
          activation,
          align_corners};
}

template <class Copy>
FusionCall fusion_call(const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights,
                       const std::vector<Tensor>& biases, Activation activation, bool align_corners,
                       const Copy& channels_last) {
  const FusionOperands operands = fusion_operands(inputs, weights, biases, activation, align_corners, channels_last);
  const Tensor& first = inputs[0];
  return {operands, channels_last_empty(first, first.size(0), weights[0].size(0), first.size(2), first.size(3))};
}

struct UpsampleArgmaxCall {
  Dtype dtype;
  Tensor logits;
  bool align_corners;
  Tensor labels;

  UpsampleArgmaxArgs args() const {
    return {dtype,
            view_of(logits),
            logits.stride(1),
            labels.size(1),
            labels.size(2),
            align_corners,
            static_cast<uint8_t*>(labels.mutable_data_ptr())};
  }
};

inline UpsampleArgmaxCall upsample_argmax_call(const Tensor& logits, int64_t height, int64_t width,
                                               bool align_corners) {
  const Dtype dtype = dtype_of("upsample_argmax", "logits", logits);
  require(logits.dim() == 4 && logits.size(1) > 0 && logits.size(2) > 0 && logits.size(3) > 0,
          "upsample_argmax: logits must be (batch, classes, height, width), none of the last three empty, got ",
          shape_of(logits));
  require(logits.size(1) <= 256, "upsample_argmax: logits must have at most 256 classes, for labels are uint8, got ",
          logits.size(1));
  require(height > 0 && width > 0, "upsample_argmax: size must be at least (1, 1), got (", height, ", ", width, ")");
  const int64_t sizes[] = {logits.size(0), height, width};
  Tensor labels = torch::stable::empty({sizes, 3}, ScalarType::Byte, std::nullopt, logits.device());
  return {dtype, logits, align_corners, labels};
}

struct NormaliseCall {
  Dtype dtype;
  Tensor images;
  std::vector<double> mean, deviation;
  Tensor out;

  NormaliseArgs args() const {
    NormaliseArgs args = {};
    args.images = static_cast<const uint8_t*>(images.const_data_ptr());
    args.batch = images.size(0);
    args.source_height = images.size(1);
    args.source_width = images.size(2);
    args.stride_n = images.stride(0);
    args.stride_h = images.stride(1);
    args.height = out.size(2);
    args.width = out.size(3);
    for (size_t i = 0; i < kColours; ++i) {
      args.mean[i] = static_cast<float>(255 * mean[i]);
      args.deviation[i] = static_cast<float>(255 * deviation[i]);
    }
    args.dtype = dtype;
    args.out = out.mutable_data_ptr();
    return args;
  }
};

inline NormaliseCall normalise_call(const Tensor& images, int64_t height, int64_t width,
                                    const std::vector<double>& mean, const std::vector<double>& deviation,
                                    ScalarType dtype) {
  require(images.scalar_type() == ScalarType::Byte, "normalise: images must be uint8");
  require(images.dim() == 4 && images.size(1) > 0 && images.size(2) > 0 && images.size(3) == kColours,
          "normalise: images must be (batch, height, width, 3), height and width at least 1, got ", shape_of(images));
  require(height > 0 && width > 0, "normalise: size must be at least (1, 1), got (", height, ", ", width, ")");
  require(mean.size() == kColours && deviation.size() == kColours, "normalise: mean and std must be 3 numbers, got ",
          mean.size(), " and ", deviation.size());
  const int64_t sizes[] = {images.size(0), kColours, height, width};
  Tensor out =
      torch::stable::empty({sizes, 4}, dtype, std::nullopt, images.device(), std::nullopt, MemoryFormat::ChannelsLast);
  const bool adjacent = images.stride(3) == 1 && (images.stride(2) == kColours || images.size(2) == 1);
  return {dtype_of("normalise", "dtype", out), adjacent ? images : torch::stable::contiguous(images), mean, deviation,
          out};
}

}  // namespace lwrn_fast
