// What the backward passes check and allocate before a kernel runs, as checks.h does for the ops.
#pragma once
#include <optional>

#include "checks.h"

namespace lwrn_fast {

// The gradients that a call of crp needs, with memory for them; forward.out is that of x.
struct CrpBackwardCall {
  CrpCall forward;
  Tensor grad;
  std::vector<bool> needs;  // of x, the weights and the biases
  std::vector<Tensor> stages;
  std::vector<MapView> pooled;                // x and the stages
  std::vector<Tensor> parameter_grads;        // those that are needed
  std::vector<void*> weight_data, bias_data;  // one for each stage, null where not needed

  void pool(const std::vector<Tensor>& maps) {
    stages = maps;
    for (const Tensor& map : maps) pooled.push_back(view_of(map));
  }

  CrpBackwardArgs args(const Pointers& weights) const {
    return {forward.dtype,   view_of(grad), static_cast<int64_t>(forward.weights.size()),        forward.depthwise,
            pooled.data(),   weights.get(), needs[0] ? forward.out.mutable_data_ptr() : nullptr, weight_data.data(),
            bias_data.data()};
  }

  std::vector<Tensor> grads() const {
    std::vector<Tensor> result;
    if (needs[0]) result.push_back(forward.out);
    result.insert(result.end(), parameter_grads.begin(), parameter_grads.end());
    return result;
  }

  // Where there is nothing to compute: no pixels, or no stages.
  std::vector<Tensor> trivial() const {
    std::vector<Tensor> result = grads();
    for (size_t i = 0; i < result.size(); ++i) {
      if (i == 0 && needs[0])
        torch::stable::copy_(result[i], grad);
      else
        torch::stable::zero_(result[i]);
    }
    return result;
  }
};

// A map of the size and kind of x, with its channels adjacent.
template <class Copy>
Tensor map_like_x(const std::string& name, const Tensor& map, const Tensor& x, const Copy& channels_last) {
  require_like("crp", name, map, x, "x");
  require(shape_of(map) == shape_of(x), "crp: ", name, " must be ", shape_of(x), ", got ", shape_of(map));
  return channels_adjacent(map) ? map : channels_last(map, dtype_of("crp", "x", x));
}

template <class Copy>
CrpBackwardCall crp_backward_call(const Tensor& grad, const Tensor& x, const std::vector<Tensor>& stages,
                                  const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int64_t groups,
                                  const std::vector<bool>& needs, const Copy& channels_last) {
  const CrpCall forward = crp_call(x, weights, biases, groups, channels_last);
  const size_t count = weights.size(), tensors = 1 + count + biases.size();
  require(needs.size() == tensors, "crp: needs must be ", tensors, " values, got ", needs.size());
  require(stages.empty() || stages.size() + 1 == count, "crp: stages must be empty or ", count - 1, " tensors, got ",
          stages.size());
  CrpBackwardCall call{forward, map_like_x("grad", grad, x, channels_last), needs, {}, {view_of(forward.x)}, {}, {},
                       {}};
  std::vector<Tensor> maps;
  for (size_t i = 0; i < stages.size(); ++i) maps.push_back(map_like_x(item("stages", i), stages[i], x, channels_last));
  call.pool(maps);
  call.weight_data.resize(count);
  call.bias_data.resize(count);
  for (size_t i = 0; i < count; ++i) {
    if (!needs[1 + i]) continue;
    call.parameter_grads.push_back(channels_last_empty(x, x.size(1), weights[i].size(1), 1, 1));
    call.weight_data[i] = call.parameter_grads.back().mutable_data_ptr();
  }
  for (size_t i = 0; i < biases.size(); ++i) {
    if (!needs[1 + count + i]) continue;
    const int64_t channels = x.size(1);
    call.parameter_grads.push_back(torch::stable::empty({&channels, 1}, x.scalar_type(), std::nullopt, x.device()));
    call.bias_data[i] = call.parameter_grads.back().mutable_data_ptr();
  }
  return call;
}

// The gradients that a call of fusion needs, with memory for them.
struct FusionBackwardCall : FusionOperands {
  Tensor grad;
  std::optional<Tensor> out;                              // where there is an activation
  std::vector<Tensor> grads;                              // those that are needed
  std::vector<void*> input_data, weight_data, bias_data;  // one for each input, null where not needed

  FusionBackwardArgs args(const Pointers& weights) const {
    return {dtype,
            view_of(grad),
            out ? view_of(*out) : MapView{},
            inputs(),
            views.data(),
            weights.get(),
            activation,
            align_corners,
            input_data.data(),
            weight_data.data(),
            bias_data.data()};
  }

  // The pointer to a gradient's memory, null where it is not needed.
  template <class Allocate>
  void* add(bool needed, const Allocate& allocate) {
    if (!needed) return nullptr;
    grads.push_back(allocate());
    return grads.back().mutable_data_ptr();
  }
};

// A map of the size and kind of the result, with its channels adjacent.
template <class Copy>
Tensor map_like_result(const char* name, const Tensor& map, const FusionOperands& operands, const Copy& channels_last) {
  const MapView& first = operands.views[0];
  require_like("fusion", name, map, operands.maps[0], "inputs[0]");
  require(map.dim() == 4 && map.size(0) == first.batch && map.size(1) == operands.weights[0].size(0) &&
              map.size(2) == first.height && map.size(3) == first.width,
          "fusion: ", name, " must be (", first.batch, ", ", operands.weights[0].size(0), ", ", first.height, ", ",
          first.width, "), got ", shape_of(map));
  return channels_adjacent(map) ? map : channels_last(map, operands.dtype);
}

template <class Copy>
FusionBackwardCall fusion_backward_call(const Tensor& grad, const std::optional<Tensor>& out,
                                        const std::vector<Tensor>& inputs, const std::vector<Tensor>& weights,
                                        const std::vector<Tensor>& biases, Activation activation, bool align_corners,
                                        const std::vector<bool>& needs, const Copy& channels_last) {
  const FusionOperands operands = fusion_operands(inputs, weights, biases, activation, align_corners, channels_last);
  const size_t count = inputs.size(), tensors = 2 * count + biases.size();
  require(needs.size() == tensors, "fusion: needs must be ", tensors, " values, got ", needs.size());
  FusionBackwardCall call{operands, map_like_result("grad", grad, operands, channels_last), {}, {}, {}, {}, {}};
  if (call.activation != Activation::none) {
    require(out.has_value(), "fusion: out must be the result, for there is an activation, got None");
    call.out = map_like_result("out", *out, operands, channels_last);
  }
  for (size_t i = 0; i < count; ++i)
    call.input_data.push_back(call.add(needs[i], [&] {
      const Tensor& x = inputs[i];
      return channels_last_empty(x, x.size(0), x.size(1), x.size(2), x.size(3));
    }));
  for (size_t i = 0; i < count; ++i)
    call.weight_data.push_back(call.add(needs[count + i], [&] {
      return channels_last_empty(weights[i], weights[i].size(0), weights[i].size(1), 1, 1);
    }));
  for (size_t i = 0; i < count; ++i)
    call.bias_data.push_back(call.add(!biases.empty() && needs[2 * count + i], [&] {
      const int64_t channels = biases[i].size(0);
      return torch::stable::empty({&channels, 1}, grad.scalar_type(), std::nullopt, grad.device());
    }));
  return call;
}

}  // namespace lwrn_fast
