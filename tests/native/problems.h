// Random small problems of the ops, and the comparison of a result with reference.h.
#pragma once
#include <memory>
#include <string>

#include "../../csrc/crp.h"
#include "../../csrc/fusion.h"
#include "../../csrc/normalise.h"
#include "../../csrc/upsample_argmax.h"
#include "reference.h"

namespace selfcheck {

using namespace lwrn_fast;

// The values of a problem. uniform: between -1 and 1. whole: integers whose sums are exact, so the result must be exact
// too. special: with NaN and infinities.
enum class Values { uniform, whole, special };
enum class Layout { contiguous, gaps, wide_gaps, same_rows, same_pixels, nchw };

constexpr Dtype kDtypes[] = {Dtype::f32, Dtype::bf16, Dtype::f16};
constexpr Values kValues[] = {Values::uniform, Values::uniform, Values::whole, Values::whole, Values::special};
constexpr Layout kLayouts[] = {Layout::contiguous, Layout::contiguous, Layout::gaps,
                               Layout::wide_gaps,  Layout::same_rows,  Layout::same_pixels};
// Heights, widths and channel counts to choose from.
constexpr int64_t kSizes[] = {1, 2, 5, 8, 17, 33}, kChannels[] = {1, 7, 16, 21, 33, 48, 64, 70, 150};

inline double value(Values values, Random* random) {
  if (values == Values::whole) return static_cast<double>(random->below(9) - 4);
  if (values == Values::special && random->below(97) == 0)
    return random->below(3) == 0 ? NAN : random->below(2) == 0 ? INFINITY : -INFINITY;
  return random->uniform();
}

// A map and its memory. Gaps between pixels, rows and images are multiples of 16 elements if wide. scale: a factor on
// its values.
struct Input {
  MapView view;
  int64_t stride_c = 1;
  std::unique_ptr<Buffer> memory;
  Map map;

  Input(Dtype dtype, int64_t batch, int64_t channels, int64_t height, int64_t width, Layout layout, Values values,
        Random* random, double scale = 1)
      : view{nullptr, batch, channels, height, width, 0, 0, channels}, map(0, 0, 0, 0) {
    const int64_t gap = layout == Layout::gaps ? 1 : layout == Layout::wide_gaps ? 16 : 0;
    view.stride_w += 3 * gap;
    if (layout == Layout::same_pixels) view.stride_w = 0;
    view.stride_h = width * view.stride_w + 5 * gap;
    if (layout == Layout::same_rows) view.stride_h = 0;
    view.stride_n = height * view.stride_h + 7 * gap;
    if (layout == Layout::nchw) {
      view.stride_w = 1;
      view.stride_h = width;
      stride_c = height * width;
      view.stride_n = channels * stride_c;
    }
    const int64_t last = (batch - 1) * view.stride_n + (height - 1) * view.stride_h + (width - 1) * view.stride_w +
                         (channels - 1) * stride_c;
    memory = std::make_unique<Buffer>((last + 1) * bytes_of(dtype));
    view.data = memory->get();
    for (int64_t n = 0; n < batch; ++n)
      for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x)
          for (int64_t c = 0; c < channels; ++c)
            encode(dtype, scale * value(values, random), memory->get(),
                   n * view.stride_n + y * view.stride_h + x * view.stride_w + c * stride_c);
    map = read(dtype, view, stride_c);
  }
};

// The values of a parameter, in `dtype` for the engine and in double for the reference.
struct Parameter {
  std::unique_ptr<Buffer> memory;
  std::vector<double> values;

  Parameter(Dtype dtype, std::vector<double> numbers) : values(std::move(numbers)) {
    memory = std::make_unique<Buffer>(static_cast<int64_t>(values.size()) * bytes_of(dtype));
    for (size_t i = 0; i < values.size(); ++i) {
      encode(dtype, values[i], memory->get(), i);
      values[i] = decode(dtype, memory->get(), i);
    }
  }
};

// Return a random weight. Whole weights have at most two entries of 1 or -1 per row, so that sums stay small enough to
// be exact in every dtype.
inline Parameter weight(Dtype dtype, int64_t out_channels, int64_t in_channels, Values values, Random* random) {
  std::vector<double> numbers(out_channels * in_channels);
  if (values == Values::whole)
    for (int64_t i = 0; i < 2 * out_channels; ++i)
      numbers[i / 2 * in_channels + random->below(in_channels)] = random->below(2) ? 1 : -1;
  else
    for (double& number : numbers) number = 2 * random->uniform() / static_cast<double>(in_channels);
  return Parameter(dtype, std::move(numbers));
}

inline Parameter bias(Dtype dtype, int64_t channels, Values values, Random* random) {
  std::vector<double> numbers(channels);
  for (double& number : numbers) number = values == Values::whole ? random->below(3) - 1 : random->uniform();
  return Parameter(dtype, std::move(numbers));
}

inline std::vector<const void*> pointers(const std::vector<Parameter>& parameters) {
  std::vector<const void*> result;
  for (const Parameter& parameter : parameters) result.push_back(parameter.memory->get());
  return result;
}

inline std::vector<std::vector<double>> numbers(const std::vector<Parameter>& parameters) {
  std::vector<std::vector<double>> result;
  for (const Parameter& parameter : parameters) result.push_back(parameter.values);
  return result;
}

struct CrpProblem {
  Values values;
  Input x;
  bool depthwise, biased;
  std::vector<Parameter> weights, biases;
  std::vector<const void*> weight_data, bias_data;
  Buffer out;
  CrpArgs args;

  CrpProblem(Dtype dtype, Values values, int64_t stages, bool depthwise, Layout layout, int64_t batch, int64_t channels,
             int64_t height, int64_t width, Random* random)
      : values(values),
        x(dtype, batch, channels, height, width, layout, values, random),
        depthwise(depthwise),
        biased(random->below(2)),
        out(batch * channels * height * width * bytes_of(dtype)) {
    for (int64_t i = 0; i < stages; ++i) {
      weights.push_back(weight(dtype, channels, depthwise ? 1 : channels, values, random));
      if (biased) biases.push_back(bias(dtype, channels, values, random));
    }
    weight_data = pointers(weights);
    bias_data = pointers(biases);
    args = {dtype,     x.view, stages, depthwise, weight_data.data(), biased ? bias_data.data() : nullptr,
            out.get(), nullptr};
  }

  // rounding: as for convolved().
  Map exact(double rounding = 0) const {
    return selfcheck::crp(args.dtype, x.map, numbers(weights), numbers(biases), depthwise, rounding);
  }
};

struct FusionProblem {
  Values values;
  std::vector<Input> inputs;
  std::vector<Parameter> weights, biases;
  std::vector<const void*> weight_data, bias_data;
  std::vector<MapView> views;
  std::unique_ptr<Buffer> out;
  FusionArgs args;

  explicit FusionProblem(Random* random, const Dtype dtype) : values(random->pick(kValues)) {
    const bool align_corners = random->below(2), biased = random->below(2);
    const int64_t batch = 1 + random->below(2), out_channels = random->pick(kChannels), count = 1 + random->below(3);
    // Pairs of these sizes give interpolation weights that are multiples of 1/16.
    constexpr int64_t corners[] = {3, 5, 9, 17, 33}, centres[] = {1, 2, 4, 8, 16};
    int64_t size[2];
    for (int64_t k = 0; k < count; ++k) {
      const bool full = k == 0 || random->below(3) == 0;
      for (int side = 0; side < 2; ++side) {
        if (k > 0 && full) continue;
        const int64_t i = full ? 2 + random->below(3) : random->below(3);
        size[side] = values != Values::whole ? random->pick(kSizes) : align_corners ? corners[i] : centres[i];
      }
      const int64_t height = full && k > 0 ? inputs[0].map.height : size[0];
      const int64_t width = full && k > 0 ? inputs[0].map.width : size[1];
      inputs.emplace_back(dtype, batch, random->pick(kChannels), height, width, random->pick(kLayouts), values, random);
      weights.push_back(weight(dtype, out_channels, inputs[k].map.channels, values, random));
      if (biased) biases.push_back(bias(dtype, out_channels, values, random));
      views.push_back(inputs[k].view);
    }
    constexpr Activation activations[] = {Activation::none, Activation::relu, Activation::relu6};
    weight_data = pointers(weights);
    bias_data = pointers(biases);
    out = std::make_unique<Buffer>(batch * out_channels * views[0].height * views[0].width * bytes_of(dtype));
    args = {dtype,
            count,
            views.data(),
            weight_data.data(),
            biased ? bias_data.data() : nullptr,
            out_channels,
            random->pick(activations),
            align_corners,
            out->get()};
  }

  // rounding: as for convolved(); interpolated_rounding is added for inputs of another size than the result's.
  Map exact(double rounding = 0, double interpolated_rounding = 0) const {
    std::vector<Map> maps;
    for (const Input& input : inputs) maps.push_back(input.map);
    const Activation activation = args.activation;
    return selfcheck::fusion(maps, numbers(weights), numbers(biases), args.out_channels, args.align_corners,
                             activation == Activation::none ? -INFINITY : 0,
                             activation == Activation::relu6 ? 6 : INFINITY, rounding, interpolated_rounding);
  }
};

struct UpsampleArgmaxProblem {
  Values values;
  int64_t size[4];  // height and width of the logits and of the labels
  bool align_corners;
  std::unique_ptr<Input> logits;
  std::unique_ptr<Buffer> labels;
  UpsampleArgmaxArgs args;

  UpsampleArgmaxProblem(Random* random, Dtype dtype) : values(random->pick(kValues)), align_corners(random->below(2)) {
    const bool nchw = random->below(3) == 0;
    constexpr int64_t classes[] = {1, 2, 7, 16, 21, 33, 48, 256}, sizes[] = {1, 2, 5, 8, 17, 33, 70, 131};
    constexpr int64_t corners[] = {3, 5, 9, 17, 33, 65}, centres[] = {1, 2, 4, 8, 16, 32};
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t step = i < 2 ? random->below(3) : 2 + random->below(4);
      size[i] = values != Values::whole ? random->pick(sizes) : align_corners ? corners[step] : centres[step];
    }
    logits = std::make_unique<Input>(dtype, 1 + random->below(2), random->pick(classes), size[0], size[1],
                                     nchw ? Layout::nchw : random->pick(kLayouts), values, random);
    labels = std::make_unique<Buffer>(logits->map.batch * size[2] * size[3]);
    args = {dtype, logits->view, logits->stride_c, size[2], size[3], align_corners, labels->get()};
  }

  Map exact() const { return resized(logits->map, size[2], size[3], align_corners); }
};

struct NormaliseProblem {
  int64_t batch;
  std::vector<uint8_t> pixels;
  std::unique_ptr<Buffer> images, out;
  NormaliseArgs args;

  NormaliseProblem(Random* random, Dtype dtype) : batch(1 + random->below(2)) {
    constexpr int64_t sizes[] = {1, 2, 5, 8, 17, 33, 70};
    const int64_t source_height = random->pick(sizes), source_width = random->pick(sizes);
    const int64_t height = random->below(3) ? random->pick(sizes) : source_height;
    const int64_t width = random->below(3) ? random->pick(sizes) : source_width;
    const int64_t stride_h = kColours * source_width + 5 * random->below(2);
    const int64_t stride_n = source_height * stride_h + 7 * random->below(2);
    const int64_t last = (batch - 1) * stride_n + (source_height - 1) * stride_h + kColours * source_width;
    images = std::make_unique<Buffer>(last);
    pixels.resize(last);
    for (uint8_t& pixel : pixels) pixel = static_cast<uint8_t>(random->below(256));
    std::memcpy(images->get(), pixels.data(), pixels.size());
    out = std::make_unique<Buffer>(batch * height * width * kColours * bytes_of(dtype));
    args = {static_cast<const uint8_t*>(images->get()),
            batch,
            source_height,
            source_width,
            stride_n,
            stride_h,
            height,
            width,
            {124, 116, 104},
            {58, 57, 57.5},
            dtype,
            out->get()};
  }

  // Return the weights of the source pixels: a triangle around the centre of the output pixel, as wide as two of the
  // larger pixels.
  static std::vector<double> covered(int64_t i, int64_t source_size, int64_t size) {
    const double scale = static_cast<double>(source_size) / static_cast<double>(size), reach = std::max(scale, 1.0);
    std::vector<double> weights(source_size);
    double sum = 0;
    for (int64_t j = 0; j < source_size; ++j)
      sum += weights[j] = std::max(0.0, 1 - std::fabs(j + 0.5 - scale * (i + 0.5)) / reach);
    for (double& weight : weights) weight /= sum;
    return weights;
  }

  Map exact() const {
    Map map(batch, kColours, args.height, args.width);
    for (int64_t n = 0; n < batch; ++n)
      for (int64_t y = 0; y < args.height; ++y)
        for (int64_t x = 0; x < args.width; ++x)
          for (int64_t c = 0; c < kColours; ++c) {
            const auto rows = covered(y, args.source_height, args.height);
            const auto columns = covered(x, args.source_width, args.width);
            double sum = 0;
            for (int64_t v = 0; v < args.source_height; ++v)
              for (int64_t u = 0; u < args.source_width && rows[v] > 0; ++u)
                sum += rows[v] * columns[u] * pixels[n * args.stride_n + v * args.stride_h + kColours * u + c];
            map.value[map.at(n, y, x, c)] = (sum - args.mean[c]) / args.deviation[c];
            map.error[map.at(n, y, x, c)] = 4e-6;
          }
    return map;
  }
};

// Counts failures and prints them.
class Checks {
 public:
  int64_t failures = 0;

 protected:
  void describe(const char* op, uint64_t seed, Dtype dtype, const Map& map) {
    where_ = std::string(op) + " " + std::to_string(seed) + ", " + name_of(dtype);
    for (int64_t size : {map.batch, map.channels, map.height, map.width}) where_ += " " + std::to_string(size);
  }

  void expect(bool ok, const std::string& message) {
    if (ok) return;
    if (++failures <= 10) std::printf("%s: %s\n", where_.c_str(), message.c_str());
  }

  void compare(Dtype dtype, const Buffer& out, Map exact, Values values) {
    exact.add_rounding_error(dtype);
    int64_t mismatches = 0;
    std::string first;
    for (size_t i = 0; i < exact.value.size(); ++i) {
      const double got = decode(dtype, out.get(), i), expected = exact.value[i];
      bool ok = std::fabs(got - expected) <= exact.error[i];
      if (std::isnan(expected)) ok = std::isnan(got);
      if (std::isinf(expected)) ok = got == expected;
      if (values == Values::whole) ok = got == rounded(dtype, expected);
      if (ok) continue;
      if (++mismatches == 1)
        first = "element " + std::to_string(i) + " is " + std::to_string(got) + ", not " + std::to_string(expected) +
                " within " + std::to_string(values == Values::whole ? 0 : exact.error[i]);
    }
    expect(mismatches == 0,
           std::to_string(mismatches) + " of " + std::to_string(exact.value.size()) + " are wrong: " + first);
  }

  // Compare labels with the argmax: the first NaN, else the first maximum. Accept another class only where rounding may
  // have decided.
  void compare_labels(const Buffer& labels, const Map& exact, Values values) {
    int64_t mismatches = 0;
    std::string first;
    const int64_t pixels = static_cast<int64_t>(exact.value.size()) / exact.channels;
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      const double *logit = &exact.value[pixel * exact.channels], *error = &exact.error[pixel * exact.channels];
      int64_t best = 0;
      for (int64_t c = 1; c < exact.channels; ++c)
        if (!(logit[c] <= logit[best]) && !std::isnan(logit[best])) best = c;
      const int64_t label = labels.get()[pixel];
      const bool close = values != Values::whole && label < exact.channels && std::isfinite(logit[best]) &&
                         logit[label] + error[label] + error[best] >= logit[best];
      if (label == best || close) continue;
      if (++mismatches == 1)
        first = "label " + std::to_string(pixel) + " is " + std::to_string(label) + " with logit " +
                std::to_string(logit[label % exact.channels]) + ", not " + std::to_string(best) + " with " +
                std::to_string(logit[best]);
    }
    expect(mismatches == 0, std::to_string(mismatches) + " of " + std::to_string(pixels) + " are wrong: " + first);
  }

  std::string where_;
};

}  // namespace selfcheck
