// The gradients of crp and fusion, as naively in double as reference.h has the ops.
#pragma once
#include "reference.h"

namespace selfcheck {

// Each weight's gradient is a map of one pixel per output channel, each bias's one of a pixel.
struct Gradients {
  std::vector<Map> inputs, weights, biases;
};

// Adds rounding to the errors of sums of `terms` terms; `magnitude` has the sums of their absolute values.
inline void may_be_summed(Map* map, const std::vector<double>& magnitude, int64_t terms) {
  for (size_t i = 0; i < map->value.size(); ++i)
    map->error[i] = std::isfinite(map->value[i]) ? map->error[i] + magnitude[i] * sum_error(terms) : 0;
}

inline std::vector<double> transposed(const std::vector<double>& weight, int64_t in_channels) {
  const int64_t out_channels = static_cast<int64_t>(weight.size()) / in_channels;
  std::vector<double> result(weight.size());
  for (int64_t o = 0; o < out_channels; ++o)
    for (int64_t k = 0; k < in_channels; ++k) result[k * out_channels + o] = weight[o * in_channels + k];
  return result;
}

inline Map weight_grad(const Map& grad, const Map& in, bool depthwise) {
  const int64_t pixels = in.batch * in.height * in.width, columns = depthwise ? 1 : in.channels;
  Map out(1, columns, 1, grad.channels);
  std::vector<double> magnitude(out.value.size());
  for (int64_t pixel = 0; pixel < pixels; ++pixel)
    for (int64_t o = 0; o < grad.channels; ++o) {
      const double g = grad.value[pixel * grad.channels + o], error = grad.error[pixel * grad.channels + o];
      const double* x = &in.value[pixel * in.channels + (depthwise ? o : 0)];
      for (int64_t k = 0; k < columns; ++k) {
        out.value[o * columns + k] += g * x[k];
        out.error[o * columns + k] += error * std::fabs(x[k]);
        magnitude[o * columns + k] += std::fabs(g * x[k]);
      }
    }
  may_be_summed(&out, magnitude, pixels);
  return out;
}

inline Map bias_grad(const Map& grad) {
  Map out(1, grad.channels, 1, 1);
  std::vector<double> magnitude(out.value.size());
  for (size_t i = 0; i < grad.value.size(); ++i) {
    out.value[i % grad.channels] += grad.value[i];
    out.error[i % grad.channels] += grad.error[i];
    magnitude[i % grad.channels] += std::fabs(grad.value[i]);
  }
  may_be_summed(&out, magnitude, grad.batch * grad.height * grad.width);
  return out;
}

// For each window its first maximum in the order of rows, or its last NaN.
inline std::vector<size_t> winners(const Map& in) {
  std::vector<size_t> places(in.value.size());
  for (int64_t n = 0; n < in.batch; ++n)
    for (int64_t y = 0; y < in.height; ++y)
      for (int64_t x = 0; x < in.width; ++x)
        for (int64_t c = 0; c < in.channels; ++c) {
          const int64_t top = std::max<int64_t>(y - 2, 0), left = std::max<int64_t>(x - 2, 0);
          int64_t best = in.at(n, top, left, c);
          for (int64_t v = top; v <= std::min(y + 2, in.height - 1); ++v)
            for (int64_t u = left; u <= std::min(x + 2, in.width - 1); ++u) {
              const int64_t place = in.at(n, v, u, c);
              if (in.value[place] > in.value[best] || std::isnan(in.value[place])) best = place;
            }
          places[in.at(n, y, x, c)] = static_cast<size_t>(best);
        }
  return places;
}

// pooled: the maps that the stages pool.
inline Gradients crp_backward(const Map& grad, const std::vector<Map>& pooled,
                              const std::vector<std::vector<double>>& weights, bool depthwise) {
  Gradients result;
  Map stage_grad = grad;
  for (size_t i = weights.size(); i-- > 0;) {
    const std::vector<size_t> places = winners(pooled[i]);
    Map maxima = pooled[i];
    for (size_t j = 0; j < places.size(); ++j) maxima.value[j] = pooled[i].value[places[j]];
    result.weights.insert(result.weights.begin(), weight_grad(stage_grad, maxima, depthwise));
    result.biases.insert(result.biases.begin(), bias_grad(stage_grad));

    const int64_t channels = grad.channels;
    const auto weight = depthwise ? weights[i] : transposed(weights[i], channels);
    const Map product = convolved(stage_grad, weight, channels, depthwise, channels);
    stage_grad = grad;
    std::vector<double> magnitude(grad.value.size());
    for (size_t j = 0; j < places.size(); ++j) {
      stage_grad.value[places[j]] += product.value[j];
      stage_grad.error[places[j]] += product.error[j];
      magnitude[places[j]] += std::fabs(product.value[j]);
    }
    for (size_t j = 0; j < places.size(); ++j) magnitude[j] += std::fabs(grad.value[j]);
    may_be_summed(&stage_grad, magnitude, 26);
  }
  result.inputs.push_back(stage_grad);
  return result;
}

// What each pixel of a map gets back where it was interpolated to the size of grad.
inline Map resized_backward(const Map& grad, int64_t height, int64_t width, bool align_corners) {
  if (grad.height == height && grad.width == width) return grad;
  Map out(grad.batch, grad.channels, height, width);
  std::vector<double> magnitude(out.value.size());
  for (int64_t n = 0; n < grad.batch; ++n)
    for (int64_t y = 0; y < grad.height; ++y)
      for (int64_t x = 0; x < grad.width; ++x) {
        const Place v = place(y, height, grad.height, align_corners), u = place(x, width, grad.width, align_corners);
        for (int corner = 0; corner < 4; ++corner) {
          const double weight =
              (corner & 1 ? u.high_weight : 1 - u.high_weight) * (corner & 2 ? v.high_weight : 1 - v.high_weight);
          for (int64_t c = 0; c < grad.channels; ++c) {
            const int64_t to = out.at(n, corner & 2 ? v.high : v.low, corner & 1 ? u.high : u.low, c);
            const double value = grad.value[grad.at(n, y, x, c)];
            out.value[to] += weight * value;
            magnitude[to] += std::fabs(value);  // not times weight: 1 - weight cancels
          }
        }
      }
  // A pixel's terms, and the two products of each.
  may_be_summed(&out, magnitude, 4 * (grad.height / height + 2) * (grad.width / width + 2) + 2);
  return out;
}

// out: the result, which stops the gradient at or below `least` and at or above `most`.
inline Gradients fusion_backward(const Map& grad, const Map& out, const std::vector<Map>& inputs,
                                 const std::vector<std::vector<double>>& weights, bool align_corners, double least,
                                 double most) {
  Map masked = grad;
  for (size_t i = 0; i < masked.value.size(); ++i)
    if (out.value[i] <= least || out.value[i] >= most) masked.value[i] = 0;
  Gradients result;
  for (size_t k = 0; k < inputs.size(); ++k) {
    const Map low = resized_backward(masked, inputs[k].height, inputs[k].width, align_corners);
    const int64_t channels = inputs[k].channels;
    result.inputs.push_back(convolved(low, transposed(weights[k], channels), channels, false, grad.channels));
    result.weights.push_back(weight_grad(low, inputs[k], false));
    result.biases.push_back(bias_grad(masked));
  }
  return result;
}

}  // namespace selfcheck
