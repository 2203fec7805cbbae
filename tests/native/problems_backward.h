// Random small problems of the backward passes.
#pragma once
#include "../../csrc/crp.h"
#include "../../csrc/fusion.h"
#include "problems.h"
#include "reference_backward.h"

namespace selfcheck {

// Memory for gradients, each of which is requested with a chance of two in three.
struct GradientBuffers {
  std::vector<std::unique_ptr<Buffer>> memory;
  std::vector<void*> data;

  void add(int64_t bytes, Random* random) {
    memory.push_back(std::make_unique<Buffer>(bytes));
    data.push_back(random->below(3) > 0 ? memory.back()->get() : nullptr);
  }
};

inline int64_t bytes_of(Dtype dtype, const Parameter& parameter) {
  return static_cast<int64_t>(parameter.values.size()) * lwrn_fast::bytes_of(dtype);
}
inline int64_t bytes_of(Dtype dtype, const Map& map) {
  return static_cast<int64_t>(map.value.size()) * lwrn_fast::bytes_of(dtype);
}

struct CrpBackwardProblem {
  Values values;
  bool depthwise;
  Input grad;
  std::vector<Input> pooled;
  std::vector<MapView> pooled_views;
  std::vector<Parameter> weights;
  std::vector<const void*> weight_data;
  GradientBuffers x, weight_grads, bias_grads;
  CrpBackwardArgs args;

  // shape: channels, height and width.
  CrpBackwardProblem(Dtype dtype, Values values, int64_t batch, const int64_t (&shape)[3], Random* random)
      : values(values),
        depthwise(random->below(3) == 0),
        grad(dtype, batch, shape[0], shape[1], shape[2], random->pick(kLayouts), values, random) {
    const int64_t stages = 1 + random->below(3), channels = shape[0];
    for (int64_t i = 0; i < stages; ++i) {
      pooled.emplace_back(dtype, batch, channels, shape[1], shape[2], random->pick(kLayouts), values, random);
      pooled_views.push_back(pooled.back().view);
      weights.push_back(weight(dtype, channels, depthwise ? 1 : channels, values, random));
      weight_grads.add(bytes_of(dtype, weights.back()), random);
      bias_grads.add(channels * lwrn_fast::bytes_of(dtype), random);
    }
    x.add(bytes_of(dtype, grad.map), random);
    weight_data = pointers(weights);
    args = {dtype,
            grad.view,
            stages,
            depthwise,
            pooled_views.data(),
            weight_data.data(),
            x.data[0],
            weight_grads.data.data(),
            bias_grads.data.data()};
  }

  Gradients exact() const {
    std::vector<Map> maps;
    for (const Input& input : pooled) maps.push_back(input.map);
    return selfcheck::crp_backward(grad.map, maps, numbers(weights), depthwise);
  }
};

struct FusionBackwardProblem {
  FusionProblem forward;
  Input grad, out;
  GradientBuffers inputs, weight_grads, bias_grads;
  FusionBackwardArgs args;

  FusionBackwardProblem(Random* random, Dtype dtype)
      : forward(random, dtype), grad(like_result(random)), out(like_result(random, 2)) {
    const int64_t bias_bytes = forward.args.out_channels * lwrn_fast::bytes_of(dtype);
    for (size_t k = 0; k < forward.inputs.size(); ++k) {
      forward.weight_data[k] = forward.weights[k].memory->get();
      inputs.add(bytes_of(dtype, forward.inputs[k].map), random);
      weight_grads.add(bytes_of(dtype, forward.weights[k]), random);
      bias_grads.add(bias_bytes, random);
    }
    const FusionArgs& given = forward.args;
    args = {dtype,
            grad.view,
            out.view,
            given.inputs,
            forward.views.data(),
            forward.weight_data.data(),
            given.activation,
            given.align_corners,
            inputs.data.data(),
            weight_grads.data.data(),
            bias_grads.data.data()};
  }

  // Return a random map like the result. scale: large enough to reach the upper bound of relu6.
  Input like_result(Random* random, double scale = 1) const {
    const Map& first = forward.inputs[0].map;
    return Input(forward.args.dtype, first.batch, forward.args.out_channels, first.height, first.width,
                 random->pick(kLayouts), scale == 1 ? forward.values : Values::whole, random, scale);
  }

  Gradients exact() const {
    std::vector<Map> maps;
    for (const Input& input : forward.inputs) maps.push_back(input.map);
    return selfcheck::fusion_backward(grad.map, out.map, maps, numbers(forward.weights), args.align_corners,
                                      args.activation == Activation::none ? -INFINITY : 0,
                                      args.activation == Activation::relu6 ? 6 : INFINITY);
  }
};

}  // namespace selfcheck
