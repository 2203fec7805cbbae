// Naive implementations of the ops in double. Each value has a bound on the error of a correct engine.
#pragma once
#include <algorithm>

#include "numerics.h"

namespace selfcheck {

// A map (batch, height, width, channels), contiguous. error: the maximum error of a correct engine's value.
struct Map {
  int64_t batch, channels, height, width;
  std::vector<double> value, error;

  Map(int64_t batch, int64_t channels, int64_t height, int64_t width)
      : batch(batch),
        channels(channels),
        height(height),
        width(width),
        value(batch * channels * height * width),
        error(value) {}
  int64_t at(int64_t n, int64_t y, int64_t x, int64_t c) const { return ((n * height + y) * width + x) * channels + c; }

  // Add the error of rounding to `dtype`: half a unit in the last place.
  void add_rounding_error(Dtype dtype) {
    const Format format = format_of(dtype);
    for (size_t i = 0; i < value.size(); ++i)
      if (std::isfinite(value[i]))
        error[i] += (std::fabs(value[i]) + error[i]) * format.roundoff() + format.min_subnormal();
  }
};

// Return the error bound of a sum of `terms` products in float32, in any order, relative to the sum of their
// magnitudes.
inline double sum_error(int64_t terms) { return static_cast<double>(terms + 4) * std::ldexp(1.0, -23); }

inline Map read(Dtype dtype, const MapView& view, int64_t stride_c) {
  Map map(view.batch, view.channels, view.height, view.width);
  for (int64_t n = 0; n < map.batch; ++n)
    for (int64_t y = 0; y < map.height; ++y)
      for (int64_t x = 0; x < map.width; ++x)
        for (int64_t c = 0; c < map.channels; ++c)
          map.value[map.at(n, y, x, c)] =
              decode(dtype, view.data, n * view.stride_n + y * view.stride_h + x * view.stride_w + c * stride_c);
  return map;
}

// Return the maxima of 5x5 windows, NaN where one is NaN. The largest error of a window bounds the error of its
// maximum.
inline Map pooled(const Map& in) {
  Map out(in.batch, in.channels, in.height, in.width);
  for (int64_t n = 0; n < in.batch; ++n)
    for (int64_t y = 0; y < in.height; ++y)
      for (int64_t x = 0; x < in.width; ++x)
        for (int64_t c = 0; c < in.channels; ++c) {
          double best = -std::numeric_limits<double>::infinity(), error = 0;
          for (int64_t v = std::max<int64_t>(y - 2, 0); v <= std::min(y + 2, in.height - 1); ++v)
            for (int64_t u = std::max<int64_t>(x - 2, 0); u <= std::min(x + 2, in.width - 1); ++u) {
              const double value = in.value[in.at(n, v, u, c)];
              if (!(value <= best) && !std::isnan(best)) best = value;
              error = std::max(error, in.error[in.at(n, v, u, c)]);
            }
          out.value[out.at(n, y, x, c)] = best;
          out.error[out.at(n, y, x, c)] = std::isfinite(best) ? error : 0;
        }
  return out;
}

// weight: (out_channels, in.channels), or (in.channels) where depthwise. terms: terms of the sum that the products are
// part of. rounding: relative error of a product whose operands are rounded first.
inline Map convolved(const Map& in, const std::vector<double>& weight, int64_t out_channels, bool depthwise,
                     int64_t terms, double rounding = 0) {
  Map out(in.batch, out_channels, in.height, in.width);
  const int64_t pixels = in.batch * in.height * in.width;
  for (int64_t pixel = 0; pixel < pixels; ++pixel)
    for (int64_t o = 0; o < out_channels; ++o) {
      double sum = 0, magnitude = 0, error = 0;
      for (int64_t k = depthwise ? o : 0; k < (depthwise ? o + 1 : in.channels); ++k) {
        const double w = depthwise ? weight[o] : weight[o * in.channels + k], x = in.value[pixel * in.channels + k];
        sum += w * x;
        magnitude += std::fabs(w * x);
        error += std::fabs(w) * in.error[pixel * in.channels + k];
      }
      out.value[pixel * out_channels + o] = sum;
      out.error[pixel * out_channels + o] = std::isfinite(sum) ? error + magnitude * (sum_error(terms) + rounding) : 0;
    }
  return out;
}

// bias: (channels), or empty.
inline void add_bias(Map* map, const std::vector<double>& bias) {
  if (bias.empty()) return;
  for (size_t i = 0; i < map->value.size(); ++i) {
    map->value[i] += bias[i % map->channels];
    map->error[i] =
        std::isfinite(map->value[i])
            ? map->error[i] + (std::fabs(map->value[i]) + 2 * std::fabs(bias[i % map->channels])) * sum_error(0)
            : 0;
  }
}

inline void add_to(Map* sum, const Map& term) {
  for (size_t i = 0; i < sum->value.size(); ++i) {
    const double magnitude = std::fabs(sum->value[i]) + std::fabs(term.value[i]);
    sum->value[i] += term.value[i];
    sum->error[i] = std::isfinite(sum->value[i]) ? sum->error[i] + term.error[i] + magnitude * sum_error(0) : 0;
  }
}

inline Map crp(Dtype dtype, const Map& x, const std::vector<std::vector<double>>& weights,
               const std::vector<std::vector<double>>& biases, bool depthwise, double rounding) {
  Map sum = x, top = x;
  for (size_t i = 0; i < weights.size(); ++i) {
    top = convolved(pooled(top), weights[i], x.channels, depthwise, x.channels, rounding);
    if (!biases.empty()) add_bias(&top, biases[i]);
    top.add_rounding_error(dtype);
    add_to(&sum, top);
  }
  return sum;
}

struct Tap {
  int64_t low, high;
  double high_weight;
};

inline Tap tap_at(int64_t index, int64_t from, int64_t to, bool align_corners) {
  double at = (index + 0.5) * from / to - 0.5;
  if (align_corners) at = to > 1 ? static_cast<double>(index) * (from - 1) / (to - 1) : 0.0;
  at = std::max(at, 0.0);
  const int64_t low = std::min(static_cast<int64_t>(at), from - 1);
  return {low, std::min(low + 1, from - 1), at - low};
}

inline Map resized(const Map& in, int64_t height, int64_t width, bool align_corners) {
  if (in.height == height && in.width == width) return in;
  Map out(in.batch, in.channels, height, width);
  for (int64_t n = 0; n < out.batch; ++n)
    for (int64_t y = 0; y < height; ++y)
      for (int64_t x = 0; x < width; ++x)
        for (int64_t c = 0; c < out.channels; ++c) {
          const Tap v = tap_at(y, in.height, height, align_corners), u = tap_at(x, in.width, width, align_corners);
          double sum = 0, magnitude = 0, error = 0;
          for (int corner = 0; corner < 4; ++corner) {
            const double weight =
                (corner & 1 ? u.high_weight : 1 - u.high_weight) * (corner & 2 ? v.high_weight : 1 - v.high_weight);
            const int64_t i = in.at(n, corner & 2 ? v.high : v.low, corner & 1 ? u.high : u.low, c);
            sum += weight * in.value[i];
            magnitude += std::fabs(in.value[i]);  // without the weight: 1 - weight cancels
            error += weight * in.error[i];
          }
          out.value[out.at(n, y, x, c)] = sum;
          out.error[out.at(n, y, x, c)] = std::isfinite(sum) ? error + magnitude * sum_error(2) : 0;
        }
  return out;
}

// min_value, max_value: limits of the activation; minus infinity to infinity without one.
inline Map fusion(const std::vector<Map>& inputs, const std::vector<std::vector<double>>& weights,
                  const std::vector<std::vector<double>>& biases, int64_t out_channels, bool align_corners,
                  double min_value, double max_value, double rounding, double interpolated_rounding) {
  int64_t terms = 0;
  for (const Map& input : inputs) terms += input.channels + 8;
  Map sum(inputs[0].batch, out_channels, inputs[0].height, inputs[0].width);
  for (size_t k = 0; k < inputs.size(); ++k) {
    const bool interpolated = inputs[k].height != sum.height || inputs[k].width != sum.width;
    const Map product = convolved(inputs[k], weights[k], out_channels, false, terms,
                                  rounding + (interpolated ? interpolated_rounding : 0));
    add_to(&sum, resized(product, sum.height, sum.width, align_corners));
    if (!biases.empty()) add_bias(&sum, biases[k]);
  }
  for (double& value : sum.value) value = std::isnan(value) ? value : std::min(std::max(value, min_value), max_value);
  return sum;
}

}  // namespace selfcheck
