// Calls of upsample_argmax: arguments checked, labels allocated, the struct of upsample_argmax.h filled.
#pragma once
#include "call.h"
#include "upsample_argmax.h"

namespace lwrn_fast {

struct UpsampleArgmaxCall {
  Dtype dtype;
  Tensor logits;  // of any strides
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

}  // namespace lwrn_fast
