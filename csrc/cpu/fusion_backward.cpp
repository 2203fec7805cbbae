#include <type_traits>

#include "../fusion.h"
#include "bilinear.h"
#include "kernel.h"
#include "outer.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

// Size of a tile, in blocks and in pixels. Its products are summed before they join other sums.
constexpr int64_t kTileBlocks = 3, kTile = kTileBlocks * MC;
// Tiles of a share, and the number of shares. The blocks of every map are dealt to shares, whose number depends on the
// problem alone, for the order of sums depends on it.
constexpr int64_t kTilesOfShare = 4, kMaxShares = 32;
// Floats of all shares together.
constexpr int64_t kMaxSums = int64_t{1} << 23;

// A tile's gradient, masked by the activation and gathered from the pixels that the interpolation touched, lies in a
// panel; it is multiplied by the transposed weights, and its outer product with the input's pixels joins the sums of
// the share. The sums of the shares are added in their order.
template <class T>
class FusionBackward {
 public:
  FusionBackward(const FusionBackwardArgs& args, int64_t threads, char* workspace) : args_(args) {
    for (int64_t k = 0; k < args.inputs; ++k) {
      max_channels_ = max(max_channels_, map(k).channels);
      needs_bias_ = needs_bias_ || args.grad_biases[k];
    }
    for (int64_t k = 0; k < args.inputs; ++k) transposed_floats_ += transposed_floats(k);
    for (int64_t k = 0; k < args.inputs; ++k) share_floats_ += sums_floats(k);
    shares_ = count_shares();
    Layout layout(workspace);
    transposed_ = layout.take<float>(transposed_floats_);
    sums_ = layout.take<float>(shares_ * share_floats_);
    bias_sums_ = layout.take<float>(needs_bias_ ? ceil_div(pixels(0), MC) * bias_stride() : 0);
    own_ = layout.take<float>(threads * own_floats());
    taps_ = layout.take<Tap>(threads * full().width);
    workspace_bytes_ = layout.bytes();
  }

  int64_t workspace_bytes() const { return workspace_bytes_; }

  void run(const Threads& threads) const {
    const int64_t panels_each = panels(max_channels_);
    each_index(threads, args_.inputs * channels(),
               [&](int64_t, int64_t i) { transpose(i / channels(), i % channels()); });
    // Maps of all sizes advance together, so that a part of grad that one of them has read is still in the cache.
    each_index(threads, shares_ * args_.inputs,
               [&](int64_t worker, int64_t i) { work_share(i % args_.inputs, i / args_.inputs, worker); });
    each_index(threads, args_.inputs * panels_each + 1, [&](int64_t, int64_t i) {
      if (i == args_.inputs * panels_each)
        write_biases();
      else
        write_weight(i / panels_each, i % panels_each);
    });
  }

 private:
  // Neighbouring pixels of all images of a map, row after row.
  struct Run {
    int64_t first, count;
  };

  const MapView& map(int64_t k) const { return args_.maps[k]; }
  const MapView& full() const { return args_.grad; }
  int64_t channels() const { return args_.grad.channels; }
  int64_t pixels(int64_t k) const { return map(k).batch * map(k).height * map(k).width; }
  bool is_full(int64_t k) const { return map(k).height == full().height && map(k).width == full().width; }
  // The inputs of the full size share a panel; the first input, which is one of them, stands for them.
  int64_t leader(int64_t k) const { return is_full(k) ? 0 : k; }
  // Return whether one of the inputs that `first_input` stands for has a gradient in `grads`.
  bool needs(int64_t first_input, void* const* grads) const {
    for (int64_t k = first_input; k < args_.inputs; ++k)
      if (leader(k) == first_input && grads[k]) return true;
    return false;
  }

  int64_t transposed_floats(int64_t k) const {
    return args_.grad_inputs[k] ? panels(map(k).channels) * packed_panel<float>(channels()) : 0;
  }
  int64_t sums_floats(int64_t k) const {
    return args_.grad_weights[k] ? panels(map(k).channels) * panel_sums_floats() : 0;
  }
  int64_t panel_sums_floats() const { return strips(channels()) * MR * NR; }

  float* transposed(int64_t k) const {
    float* start = transposed_;
    for (int64_t i = 0; i < k; ++i) start += transposed_floats(i);
    return start;
  }
  // Return the sums of a share for a weight: [panel][out_channels, whole strips][NR].
  float* sums(int64_t k, int64_t share) const {
    float* start = sums_ + share * share_floats_;
    for (int64_t i = 0; i < k; ++i) start += sums_floats(i);
    return start;
  }
  int64_t bias_stride() const { return round_up(channels(), kWidth); }

  // Each worker has the gradients of a tile, a pixel that nobody reads, the packed pixels of an input, and the sums of
  // a block. Beyond the last channel, what the last strip reads of a gradient goes to sums that nobody reads.
  int64_t stride() const { return padded_channels<float>(channels()); }
  int64_t panel_floats() const { return kTile * stride(); }
  int64_t input_floats() const { return kTile * panels(max_channels_) * NR; }
  int64_t own_floats() const {
    return panel_floats() + stride() + input_floats() + sums_bytes(max_channels_) / static_cast<int64_t>(sizeof(float));
  }
  float* panel(int64_t worker) const { return own_ + worker * own_floats(); }
  float* nowhere(int64_t worker) const { return panel(worker) + panel_floats(); }
  float* packed_input(int64_t worker) const { return nowhere(worker) + stride(); }
  float* block_sums(int64_t worker) const { return packed_input(worker) + input_floats(); }
  Tap* taps(int64_t worker) const { return taps_ + worker * full().width; }

  int64_t count_shares() const {
    int64_t max_pixels = 0;
    for (int64_t k = 0; k < args_.inputs; ++k) max_pixels = max(max_pixels, pixels(k));
    const int64_t tiles = max(ceil_div(max_pixels, kTile), 1);
    if (share_floats_ == 0) return tiles;
    const int64_t shares = clamp(tiles / kTilesOfShare, min(tiles, kTilesOfShare), kMaxShares);
    return clamp(kMaxSums / share_floats_, 1, shares);
  }
  Run share_of(int64_t k, int64_t share) const {
    const int64_t blocks = ceil_div(pixels(k), MC);
    return run_of_blocks(k, share * blocks / shares_, (share + 1) * blocks / shares_);
  }
  Run run_of_blocks(int64_t k, int64_t from, int64_t until) const {
    const int64_t first = min(from * MC, pixels(k));
    return {first, min(until * MC, pixels(k)) - first};
  }

  // Pack a row of a weight into the panels that multiply_blocks() takes as the transposed weight.
  void transpose(int64_t k, int64_t row) const {
    if (!args_.grad_inputs[k]) return;
    pack_panels(static_cast<const T*>(args_.weights[k]) + row * map(k).channels, map(k).channels,
                transposed(k) + row * NR, packed_panel<float>(channels()));
  }

  void work_share(int64_t first_input, int64_t share, int64_t worker) const {
    if (leader(first_input) != first_input) return;
    const bool sums_bias = first_input == 0 && needs_bias_;
    if (!sums_bias && !needs(first_input, args_.grad_weights) && !needs(first_input, args_.grad_inputs)) return;

    const Run all = share_of(first_input, share);
    const int64_t start = all.first / MC, blocks = ceil_div(all.count, MC);
    const int64_t tiles = ceil_div(blocks, kTileBlocks);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const Run run = run_of_blocks(first_input, start + tile * blocks / tiles, start + (tile + 1) * blocks / tiles);
      if (is_full(first_input))
        mask_pixels(run, panel(worker));
      else
        gather_pixels(first_input, run, worker);
      if (sums_bias) sum_blocks(run, panel(worker));
      for (int64_t k = first_input; k < args_.inputs; ++k) {
        if (leader(k) != first_input) continue;
        if (args_.grad_weights[k]) add_weight_grad(k, run, tile > 0, worker, sums(k, share));
        if (args_.grad_inputs[k]) multiply_transposed(k, run, worker);
      }
    }
  }

  static const T* pixel_of(const MapView& map, int64_t pixel) {
    const int64_t row = pixel / map.width;
    return static_cast<const T*>(map.data) + row / map.height * map.stride_n + row % map.height * map.stride_h +
           pixel % map.width * map.stride_w;
  }

  // Return grad where the activation lets it pass, which it does where its result is NaN, and 0 elsewhere.
  template <Activation kActivation>
  vf masked(const T* grad, const T* out, int64_t c) const {
    const vf g = load_upto(grad + c, channels() - c);
    if constexpr (kActivation == Activation::none) return g;
    const vf y = load_upto(out + c, channels() - c), zero = splat(0.0f);
    const vf positive = keep(greater_or_nan(y, zero), g);
    if constexpr (kActivation == Activation::relu) return positive;
    return keep(greater_or_nan(sub(zero, y), splat(-6.0f)), positive);
  }

  // Call body(std::integral_constant<Activation, ...>) with the activation.
  template <class Body>
  void with_activation(const Body& body) const {
    switch (args_.activation) {
      case Activation::none:
        return body(std::integral_constant<Activation, Activation::none>());
      case Activation::relu:
        return body(std::integral_constant<Activation, Activation::relu>());
      case Activation::relu6:
        return body(std::integral_constant<Activation, Activation::relu6>());
    }
  }

  const T* out_pixel(int64_t pixel) const {
    return args_.activation == Activation::none ? nullptr : pixel_of(args_.out, pixel);
  }

  void mask_pixels(const Run& run, float* to) const {
    with_activation([&](auto activation) {
      for (int64_t i = 0; i < run.count; ++i) {
        const T *grad = pixel_of(args_.grad, run.first + i), *out = out_pixel(run.first + i);
        for (int64_t c = 0; c < channels(); c += kWidth)
          store(to + i * stride() + c, this->template masked<activation()>(grad, out, c));
      }
    });
  }

  // Write the gradients that the interpolation of input k gives back to the pixels of the tile, row by row.
  void gather_pixels(int64_t k, const Run& run, int64_t worker) const {
    const MapView& m = map(k);
    float* to = panel(worker);
    std::memset(to, 0, static_cast<size_t>(run.count * stride()) * sizeof(float));
    for (int64_t pixel = run.first; pixel < run.first + run.count;) {
      const int64_t left = pixel % m.width, columns = min(m.width - left, run.first + run.count - pixel);
      gather_row(k, pixel / m.width, left, columns, to, worker);
      pixel += columns;
      to += columns * stride();
    }
  }

  // row: counted over all images.
  void gather_row(int64_t k, int64_t row, int64_t left, int64_t columns, float* to, int64_t worker) const {
    const MapView& m = map(k);
    const auto tap_x = [&](int64_t x) { return tap_at(x, m.width, full().width, args_.align_corners); };
    const auto tap_y = [&](int64_t y) { return tap_at(y, m.height, full().height, args_.align_corners); };
    const int64_t first = first_where(full().width, [&](int64_t x) { return tap_x(x).high >= left; });
    const int64_t last = first_where(full().width, [&](int64_t x) { return tap_x(x).low >= left + columns; });
    for (int64_t x = first; x < last; ++x) taps(worker)[x] = tap_x(x);

    const int64_t above = row / m.height * full().height, y_low = row % m.height;
    int64_t y = first_where(full().height, [&](int64_t y) { return tap_y(y).high >= y_low; });
    for (; y < full().height; ++y) {
      const Tap tap = tap_y(y);
      if (tap.low > y_low) break;
      const int64_t pixel = (above + y) * full().width;
      if (tap.low == y_low) spread_row(pixel, tap.low_weight, first, last, left, columns, to, worker);
      if (tap.high == y_low) spread_row(pixel, tap.high_weight, first, last, left, columns, to, worker);
    }
  }

  // Return the first index below `count` from which on `holds` is true.
  template <class Holds>
  static int64_t first_where(int64_t count, const Holds& holds) {
    int64_t low = 0, high = count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (holds(middle))
        high = middle;
      else
        low = middle + 1;
    }
    return low;
  }

  // Add to `columns` pixels from `left` on the weighted gradients of the pixels first to last of the row that begins at
  // `pixel`.
  void spread_row(int64_t pixel, float weight, int64_t first, int64_t last, int64_t left, int64_t columns, float* to,
                  int64_t worker) const {
    const auto target = [&](int64_t x) {
      return x >= left && x < left + columns ? to + (x - left) * stride() : nowhere(worker);
    };
    with_activation([&](auto activation) {
      for (int64_t x = first; x < last; ++x) {
        const T *grad = pixel_of(args_.grad, pixel + x), *out = out_pixel(pixel + x);
        const Tap& tap = taps(worker)[x];
        float *low = target(tap.low), *high = target(tap.high);
        const vf low_weight = splat(weight * tap.low_weight), high_weight = splat(weight * tap.high_weight);
        for (int64_t c = 0; c < channels(); c += kWidth) {
          const vf value = this->template masked<activation()>(grad, out, c);
          store(low + c, fma(value, low_weight, load(low + c)));
          store(high + c, fma(value, high_weight, load(high + c)));
        }
      }
    });
  }

  void sum_blocks(const Run& run, const float* panel) const {
    for (int64_t i = 0; i < run.count; i += MC) {
      float* sums = bias_sums_ + (run.first + i) / MC * bias_stride();
      for (int64_t c = 0; c < channels(); c += kWidth)
        store(sums + c, sum_in_pairs(panel + i * stride() + c, stride(), min(MC, run.count - i)));
    }
  }

  void add_weight_grad(int64_t k, const Run& run, bool accumulate, int64_t worker, float* sums) const {
    const int64_t panel_stride = run.count * NR;
    for (int64_t i = 0; i < run.count; ++i)
      pack_panels(pixel_of(map(k), run.first + i), map(k).channels, packed_input(worker) + i * NR, panel_stride);
    const float* packed = packed_input(worker);
    for (int64_t i = 0; i < panels(map(k).channels); ++i, packed += panel_stride)
      for (int64_t strip = 0; strip < strips(channels()); ++strip, sums += MR * NR)
        add_outer<MR>(panel(worker) + strip * MR, stride(), packed, NR, run.count, accumulate, sums, NR);
  }

  void multiply_transposed(int64_t k, const Run& run, int64_t worker) const {
    const int64_t in_channels = map(k).channels;
    T* to = static_cast<T*>(args_.grad_inputs[k]) + run.first * in_channels;
    const Operands<float> operands{panel(worker), stride(), transposed(k), packed_panel<float>(channels()), channels()};
    multiply_blocks(run.count, &operands, 1, in_channels, block_sums(worker), [&](int64_t i, const float* sums) {
      for (int64_t c = 0; c < in_channels; c += kWidth)
        store_upto(to + i * in_channels + c, load(sums + c), in_channels - c);
    });
  }

  // Add up and write a panel of columns of a weight's gradient.
  void write_weight(int64_t k, int64_t panel) const {
    const int64_t in_channels = map(k).channels, count = min(NR, in_channels - panel * NR);
    if (!args_.grad_weights[k] || panel >= panels(in_channels)) return;
    T* to = static_cast<T*>(args_.grad_weights[k]) + panel * NR;
    float* sum = sums(k, 0) + panel * panel_sums_floats();
    add_shares(k, sum, channels() * NR);
    for (int64_t row = 0; row < channels(); ++row)
      for (int64_t v = 0; v < count; v += kWidth)
        store_upto(to + row * in_channels + v, load(sum + row * NR + v), count - v);
  }

  void write_biases() const {
    if (!needs_bias_) return;
    for (int64_t c = 0; c < channels(); c += kWidth) {
      const vf sum = sum_in_pairs(bias_sums_ + c, bias_stride(), ceil_div(pixels(0), MC));
      for (int64_t k = 0; k < args_.inputs; ++k)
        if (args_.grad_biases[k]) store_upto(static_cast<T*>(args_.grad_biases[k]) + c, sum, channels() - c);
    }
  }

  // Add to the sums of the first share, in order, those of all others that have pixels of input k.
  void add_shares(int64_t k, float* sum, int64_t count) const {
    if (share_of(k, 0).count == 0) std::memset(sum, 0, static_cast<size_t>(round_up(count, kWidth)) * sizeof(float));
    for (int64_t share = 1; share < shares_; ++share) {
      if (share_of(k, share).count == 0) continue;
      const float* other = sum + share * share_floats_;
      for (int64_t i = 0; i < count; i += kWidth) store(sum + i, add(load(sum + i), load(other + i)));
    }
  }

  const FusionBackwardArgs& args_;
  int64_t max_channels_ = 0;
  bool needs_bias_ = false;
  int64_t transposed_floats_ = 0, share_floats_ = 0, shares_;
  int64_t workspace_bytes_;
  float* transposed_;  // packed weights
  float* sums_;        // sums of each share
  float* bias_sums_;   // sums of each block of grad
  float* own_;         // scratch memory of each worker
  Tap* taps_;          // a row of taps for each worker
};

}  // namespace

int64_t fusion_backward_workspace_bytes(const FusionBackwardArgs& args, int64_t threads) {
  return workspace_bytes_of<FusionBackward>(args, threads);
}

void fusion_backward(const FusionBackwardArgs& args, void* workspace, const Threads& threads) {
  run_op<FusionBackward>(args, workspace, threads);
}

}  // namespace lwrn_fast::LWRN_ISA
