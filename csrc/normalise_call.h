// Calls of normalise: arguments checked, the result allocated, the struct of normalise.h filled.
#pragma once
#include "call.h"
#include "normalise.h"

namespace lwrn_fast {

struct NormaliseCall {
  Dtype dtype;
  Tensor images;  // pixels adjacent in a row
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
