// Helpers of the call headers. A call header checks the arguments of one op, allocates what the op returns and fills
// the plain structs that the kernels take. An error is one line, which Python shows as it is.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "large_pages.h"
#include "types.h"

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

template <class Sizes>
std::string shape_text(const Sizes& sizes) {
  std::string text;
  for (int64_t size : sizes) text += (text.empty() ? "(" : ", ") + std::to_string(size);
  return text.empty() ? "()" : text + ")";
}

inline std::string shape_of(const Tensor& tensor) { return shape_text(tensor.sizes()); }

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
  require(tensor.dim() == 4, op, ": ", name, " must be (batch, channels, height, width), got ", shape_of(tensor));
  require(tensor.size(1) > 0 && tensor.size(2) > 0 && tensor.size(3) > 0, op, ": ", name,
          " must have channels, height and width of at least 1, got ", shape_of(tensor));
}

// sizes: (batch, channels, height, width).
inline void require_shape(const char* op, const std::string& name, const Tensor& map,
                          const std::vector<int64_t>& sizes) {
  bool equal = map.dim() == 4;
  for (int64_t i = 0; equal && i < 4; ++i) equal = map.size(i) == sizes[static_cast<size_t>(i)];
  require(equal, op, ": ", name, " must be ", shape_text(sizes), ", got ", shape_of(map));
}

inline void require_needs(const char* op, const std::vector<bool>& needs, size_t tensors) {
  require(needs.size() == tensors, op, ": needs must be ", tensors, " values, got ", needs.size());
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

// Memory of the shape of a map or a 1x1 weight, channels-last, or of a bias.
inline Tensor empty_as(const Tensor& tensor) {
  if (tensor.dim() == 4)
    return channels_last_empty(tensor, tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3));
  const int64_t size = tensor.size(0);
  return torch::stable::empty({&size, 1}, tensor.scalar_type(), std::nullopt, tensor.device());
}

// Each weight with the memory of a contiguous (out_channels, in_channels[i]) matrix.
inline std::vector<Tensor> weight_matrices(const char* op, const std::vector<Tensor>& weights, int64_t out_channels,
                                           const std::vector<int64_t>& in_channels, const Tensor& first,
                                           const char* first_name) {
  std::vector<Tensor> matrices;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& weight = weights[i];
    require(weight.dim() == 4 && weight.size(0) == out_channels && weight.size(1) == in_channels[i] &&
                weight.size(2) == 1 && weight.size(3) == 1,
            op, ": ", item("weights", i), " must be (", out_channels, ", ", in_channels[i], ", 1, 1), got ",
            shape_of(weight));
    require_like(op, item("weights", i), weight, first, first_name);
    const bool dense =
        (weight.size(1) == 1 || weight.stride(1) == 1) && (weight.size(0) == 1 || weight.stride(0) == weight.size(1));
    matrices.push_back(dense ? weight : torch::stable::contiguous(weight));
  }
  return matrices;
}

// Each bias contiguous.
inline std::vector<Tensor> bias_vectors(const char* op, const std::vector<Tensor>& biases, size_t count,
                                        int64_t channels, const Tensor& first, const char* first_name) {
  require(biases.empty() || biases.size() == count, op, ": biases must be empty or ", count, " tensors, got ",
          biases.size());
  std::vector<Tensor> vectors;
  for (size_t i = 0; i < biases.size(); ++i) {
    require(biases[i].dim() == 1 && biases[i].size(0) == channels, op, ": ", item("biases", i), " must be (", channels,
            "), got ", shape_of(biases[i]));
    require_like(op, item("biases", i), biases[i], first, first_name);
    vectors.push_back(torch::stable::contiguous(biases[i]));
  }
  return vectors;
}

// Allocate the gradients of `tensors` that needs[first], needs[first + 1], ... ask for and append them to `grads`.
// Return `count` pointers to their memory, null where there is no tensor or no need.
inline std::vector<void*> allocate_grads(const std::vector<Tensor>& tensors, size_t count,
                                         const std::vector<bool>& needs, size_t first, std::vector<Tensor>* grads) {
  std::vector<void*> data(count, nullptr);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!needs[first + i]) continue;
    grads->push_back(empty_as(tensors[i]));
    data[i] = grads->back().mutable_data_ptr();
  }
  return data;
}

// Scratch memory that begins at a multiple of `alignment` bytes.
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

// An array of the tensors' pointers.
class Pointers {
 public:
  explicit Pointers(const std::vector<Tensor>& tensors) {
    for (const Tensor& tensor : tensors) data_.push_back(tensor.const_data_ptr());
  }
  const void* const* get() const { return data_.empty() ? nullptr : data_.data(); }

 private:
  std::vector<const void*> data_;
};

// An array of the views of maps with adjacent channels.
class Views {
 public:
  explicit Views(const std::vector<Tensor>& maps) {
    for (const Tensor& map : maps) views_.push_back(view_of(map));
  }
  const MapView* get() const { return views_.data(); }

 private:
  std::vector<MapView> views_;
};

}  // namespace lwrn_fast
