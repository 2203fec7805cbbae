// Calls of fusion and its backward pass: arguments checked, results allocated, the structs of fusion.h filled.
#pragma once
#include <optional>

#include "call.h"
#include "fusion.h"

namespace lwrn_fast {

// Read the string argument `activation` and free it. As std::string, every call would leak one (pytorch issue 191340).
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

// The arguments of fusion. Before args(), the caller converts the maps to adjacent channels.
struct FusionCall {
  Dtype dtype;
  std::vector<Tensor> maps;
  std::vector<Tensor> weights;  // contiguous matrices
  std::vector<Tensor> biases;
  Activation activation;
  bool align_corners;

  int64_t inputs() const { return static_cast<int64_t>(maps.size()); }
  int64_t out_channels() const { return weights[0].size(0); }

  Tensor empty_result() const {
    const Tensor& first = maps[0];
    return channels_last_empty(first, first.size(0), out_channels(), first.size(2), first.size(3));
  }

  // views: of `maps`. weight_data: `weights`, packed or as they are.
  FusionArgs args(const Views& views, const Pointers& weight_data, const Pointers& bias_data, const Tensor& out) const {
    return {dtype,          inputs(),   views.get(),   weight_data.get(),     bias_data.get(),
            out_channels(), activation, align_corners, out.mutable_data_ptr()};
  }
};

inline FusionCall fusion_call(const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights,
                              const std::vector<Tensor>& biases, Activation activation, bool align_corners) {
  require(!inputs.empty(), "fusion: inputs must hold at least one tensor");
  require(weights.size() == inputs.size(), "fusion: weights must be ", inputs.size(),
          " tensors, one for each input, got ", weights.size());
  require(weights[0].dim() == 4, "fusion: weights[0] must be (out, in, 1, 1), got ", shape_of(weights[0]));
  const Tensor& first = inputs[0];
  const Dtype dtype = dtype_of("fusion", "inputs[0]", first);
  std::vector<int64_t> in_channels;
  for (size_t i = 0; i < inputs.size(); ++i) {
    require_like("fusion", item("inputs", i), inputs[i], first, "inputs[0]");
    require_map("fusion", item("inputs", i), inputs[i]);
    require(inputs[i].size(0) == first.size(0), "fusion: ", item("inputs", i), " must have batch ", first.size(0),
            ", got ", inputs[i].size(0));
    in_channels.push_back(inputs[i].size(1));
  }
  const int64_t out_channels = weights[0].size(0);
  return {dtype,
          inputs,
          weight_matrices("fusion", weights, out_channels, in_channels, first, "inputs[0]"),
          bias_vectors("fusion", biases, weights.size(), out_channels, first, "inputs[0]"),
          activation,
          align_corners};
}

// The arguments of fusion_backward, and the gradients that are needed. Before args(), the caller converts forward.maps,
// grad and out to adjacent channels.
struct FusionBackwardCall {
  FusionCall forward;
  Tensor grad;
  std::optional<Tensor> out;                              // present where there is an activation
  std::vector<Tensor> grads;                              // of inputs, weights and biases, without those not needed
  std::vector<void*> input_data, weight_data, bias_data;  // one for each input, null where not needed

  // views: of forward.maps.
  FusionBackwardArgs args(const Views& views, const Pointers& weights) const {
    return {forward.dtype,   view_of(grad),      out ? view_of(*out) : MapView{}, forward.inputs(),  views.get(),
            weights.get(),   forward.activation, forward.align_corners,           input_data.data(), weight_data.data(),
            bias_data.data()};
  }
};

inline void require_like_result(const char* name, const Tensor& map, const FusionCall& forward) {
  const Tensor& first = forward.maps[0];
  require_like("fusion", name, map, first, "inputs[0]");
  require_shape("fusion", name, map, {first.size(0), forward.out_channels(), first.size(2), first.size(3)});
}

inline FusionBackwardCall fusion_backward_call(const Tensor& grad, const std::optional<Tensor>& out,
                                               const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights,
                                               const std::vector<Tensor>& biases, Activation activation,
                                               bool align_corners, const std::vector<bool>& needs) {
  FusionBackwardCall call{
      fusion_call(inputs, weights, biases, activation, align_corners), grad, std::nullopt, {}, {}, {}, {}};
  const size_t count = inputs.size();
  require_needs("fusion", needs, 2 * count + biases.size());
  require_like_result("grad", grad, call.forward);
  if (activation != Activation::none) {
    require(out.has_value(), "fusion: out must be the result, for there is an activation, got None");
    require_like_result("out", *out, call.forward);
    call.out = out;
  }
  call.input_data = allocate_grads(inputs, count, needs, 0, &call.grads);
  call.weight_data = allocate_grads(weights, count, needs, count, &call.grads);
  call.bias_data = allocate_grads(biases, count, needs, 2 * count, &call.grads);
  return call;
}

}  // namespace lwrn_fast
