// Calls of crp and its backward pass: arguments checked, results allocated, the structs of crp.h filled.
#pragma once
#include "call.h"
#include "crp.h"

namespace lwrn_fast {

// The arguments of crp. Before args(), the caller converts x to adjacent channels.
struct CrpCall {
  Dtype dtype;
  Tensor x;
  bool depthwise;
  std::vector<Tensor> weights;  // contiguous matrices
  std::vector<Tensor> biases;

  // weight_data: `weights`, packed or as they are. out: null where only stages are kept.
  CrpArgs args(const Pointers& weight_data, const Pointers& bias_data, void* out) const {
    return {dtype, view_of(x), static_cast<int64_t>(weights.size()), depthwise, weight_data.get(), bias_data.get(),
            out,   nullptr};
  }
};

inline CrpCall crp_call(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                        int64_t groups) {
  const Dtype dtype = dtype_of("crp", "x", x);
  require_map("crp", "x", x);
  const int64_t channels = x.size(1);
  require(groups == 1 || groups == channels, "crp: groups must be 1 or the number of channels (", channels, "), got ",
          groups);
  require(static_cast<int64_t>(weights.size()) <= kMaxStages, "crp: weights must be at most ", kMaxStages,
          " tensors, got ", weights.size());
  const bool depthwise = groups > 1;
  const std::vector<int64_t> in_channels(weights.size(), depthwise ? 1 : channels);
  return {dtype, x, depthwise, weight_matrices("crp", weights, channels, in_channels, x, "x"),
          bias_vectors("crp", biases, weights.size(), channels, x, "x")};
}

// The arguments of crp_backward, and the gradients that are needed. Before args(), the caller converts forward.x, grad
// and stages to adjacent channels, and computes the stages that were not given.
struct CrpBackwardCall {
  CrpCall forward;
  Tensor grad;
  std::vector<Tensor> stages;  // t_1, ..., of all stages but the last; or empty
  bool needs_x;
  std::vector<Tensor> grads;                  // of x, the weights and the biases, without those that are not needed
  void* x_data;                               // null where not needed
  std::vector<void*> weight_data, bias_data;  // one for each stage, null where not needed

  // The maps that the stages pool.
  std::vector<Tensor> pooled() const {
    std::vector<Tensor> maps{forward.x};
    maps.insert(maps.end(), stages.begin(), stages.end());
    return maps;
  }

  CrpBackwardArgs args(const Views& pooled, const Pointers& weights) const {
    return {forward.dtype,
            view_of(grad),
            static_cast<int64_t>(forward.weights.size()),
            forward.depthwise,
            pooled.get(),
            weights.get(),
            x_data,
            weight_data.data(),
            bias_data.data()};
  }

  // Fill the gradients where there is nothing to compute: no pixels, or no stages.
  std::vector<Tensor> trivial_grads() const {
    for (size_t i = 0; i < grads.size(); ++i) {
      Tensor each = grads[i];
      if (i == 0 && needs_x)
        torch::stable::copy_(each, grad);
      else
        torch::stable::zero_(each);
    }
    return grads;
  }
};

inline void require_like_x(const std::string& name, const Tensor& map, const Tensor& x) {
  require_like("crp", name, map, x, "x");
  require_shape("crp", name, map, {x.size(0), x.size(1), x.size(2), x.size(3)});
}

inline CrpBackwardCall crp_backward_call(const Tensor& grad, const Tensor& x, const std::vector<Tensor>& stages,
                                         const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                                         int64_t groups, const std::vector<bool>& needs) {
  CrpBackwardCall call{crp_call(x, weights, biases, groups), grad, stages, false, {}, nullptr, {}, {}};
  const size_t count = weights.size();
  require_needs("crp", needs, 1 + count + biases.size());
  require(stages.empty() || stages.size() + 1 == count, "crp: stages must be empty or ", count - 1, " tensors, got ",
          stages.size());
  require_like_x("grad", grad, x);
  for (size_t i = 0; i < stages.size(); ++i) require_like_x(item("stages", i), stages[i], x);
  call.needs_x = needs[0];
  call.x_data = allocate_grads({x}, 1, needs, 0, &call.grads)[0];
  call.weight_data = allocate_grads(weights, count, needs, 1, &call.grads);
  call.bias_data = allocate_grads(biases, count, needs, 1 + count, &call.grads);
  return call;
}

}  // namespace lwrn_fast
