// A cache of packed weights. A weight is known by its address and by a fingerprint of its contents, so an in-place
// update by whatever route, and an address that is used again, are noticed without help from the caller.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "cpu/engine.h"

namespace lwrn_fast {

// weights[i]: (out_channels, in_channels_i, 1, 1), with the memory of a contiguous matrix. Return one packed buffer for
// each.
std::vector<torch::stable::Tensor> packed_weights(const std::vector<torch::stable::Tensor>& weights, Dtype dtype,
                                                  Isa isa, const Threads& threads);

}  // namespace lwrn_fast
