// Naive implementations of the gradients of crp and fusion in double; see reference.h.
#pragma once
#include "reference.h"

namespace selfcheck {

// Gradients as maps: a weight's has one pixel per output channel, a bias's a single pixel.
struct Gradients {
  std::vector<Map> inputs, weights, biases;
};

// Add the error of sums of `terms` terms; magnitude: the sums of their absolute values.
inline void add_sum_error(Map* map, const std::vector<double>& magnitude, int64_t terms) {
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
  add_sum_error(&out, magnitude, pixels);
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
  add_sum_error(&out, magnitude, grad.batch * grad.height * grad.width);
  return out;
}

// Return the index of the maximum of each window: the first in row-major order, or the last NaN.
inline std::vector<size_t> argmax(const Map& in) {
  std::vector<size_t> indices(in.value.size());
  for (int64_t n = 0; n < in.batch; ++n)
    for (int64_t y = 0; y < in.height; ++y)
      for (int64_t x = 0; x < in.width; ++x)
        for (int64_t c = 0; c < in.channels; ++c) {
          const int64_t top = std::max<int64_t>(y - 2, 0), left = std::max<int64_t>(x - 2, 0);
          int64_t best = in.at(n, top, left, c);
          for (int64_t v = top; v <= std::min(y + 2, in.height - 1); ++v)
            for (int64_t u = left; u <= std::min(x + 2, in.width - 1); ++u) {
              const int64_t index = in.at(n, v, u, c);
              if (in.value[index] > in.value[best] || std::isnan(in.value[index])) best = index;
            }
          indices[in.at(n, y, x, c)] = static_cast<size_t>(best);
        }
  return indices;
}

// pooled: the maps that the stages pool.
inline Gradients crp_backward(const Map& grad, const std::vector<Map>& pooled,
                              const std::vector<std::vector<double>>& weights, bool depthwise) {
  Gradients result;
  Map stage_grad = grad;
  for (size_t i = weights.size(); i-- > 0;) {
    const std::vector<size_t> indices = argmax(pooled[i]);
    Map maxima = pooled[i];
    for (size_t j = 0; j < indices.size(); ++j) maxima.value[j] = pooled[i].value[indices[j]];
    result.weights.insert(result.weights.begin(), weight_grad(stage_grad, maxima, depthwise));
    result.biases.insert(result.biases.begin(), bias_grad(stage_grad));

    const int64_t channels = grad.channels;
    const auto weight = depthwise ? weights[i] : transposed(weights[i], channels);
    const Map product = convolved(stage_grad, weight, channels, depthwise, channels);
    stage_grad = grad;
    std::vector<double> magnitude(grad.value.size());
    for (size_t j = 0; j < indices.size(); ++j) {
      stage_grad.value[indices[j]] += product.value[j];
      stage_grad.error[indices[j]] += product.error[j];
      magnitude[indices[j]] += std::fabs(product.value[j]);
    }
    for (size_t j = 0; j < indices.size(); ++j) magnitude[j] += std::fabs(grad.value[j]);
    add_sum_error(&stage_grad, magnitude, 26);
  }
  result.inputs.push_back(stage_grad);
  return result;
}

// Return the gradient of a map (height, width) that was interpolated to the size of grad.
inline Map resized_backward(const Map& grad, int64_t height, int64_t width, bool align_corners) {
  if (grad.height == height && grad.width == width) return grad;
  Map out(grad.batch, grad.channels, height, width);
  std::vector<double> magnitude(out.value.size());
  for (int64_t n = 0; n < grad.batch; ++n)
    for (int64_t y = 0; y < grad.height; ++y)
      for (int64_t x = 0; x < grad.width; ++x) {
        const Tap v = tap_at(y, height, grad.height, align_corners), u = tap_at(x, width, grad.width, align_corners);
        for (int corner = 0; corner < 4; ++corner) {
          const double weight =
              (corner & 1 ? u.high_weight : 1 - u.high_weight) * (corner & 2 ? v.high_weight : 1 - v.high_weight);
          for (int64_t c = 0; c < grad.channels; ++c) {
            const int64_t to = out.at(n, corner & 2 ? v.high : v.low, corner & 1 ? u.high : u.low, c);
            const double value = grad.value[grad.at(n, y, x, c)];
            out.value[to] += weight * value;
            magnitude[to] += std::fabs(value);  // without the weight: 1 - weight cancels
          }
        }
      }
  // The number of terms of a pixel, and the two products of each.
  add_sum_error(&out, magnitude, 4 * (grad.height / height + 2) * (grad.width / width + 2) + 2);
  return out;
}

// out: the result of fusion. The gradient is zero where it is at or below min_value, or at or above max_value.
inline Gradients fusion_backward(const Map& grad, const Map& out, const std::vector<Map>& inputs,
                                 const std::vector<std::vector<double>>& weights, bool align_corners, double min_value,
                                 double max_value) {
  Map masked = grad;
  for (size_t i = 0; i < masked.value.size(); ++i)
    if (out.value[i] <= min_value || out.value[i] >= max_value) masked.value[i] = 0;
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
