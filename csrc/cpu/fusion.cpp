#include "../fusion.h"

#include "bilinear.h"
#include "gemm.h"
#include "kernel.h"

// A 1x1 convolution and the interpolation commute: inputs of another size are convolved as they are, into float32 maps
// in scratch memory, and interpolated where the convolution of the inputs of the output's size is finished.
namespace lwrn_fast::LWRN_ISA {
namespace {

// Pixels of a tile. Gathered maps are copied into a panel that must stay in the nearer caches. Other tiles are longer:
// the pixels at the beginning of a tile are not prefetched.
constexpr int64_t kTile = 384, kGatheredTile = 128;

template <class T>
class Fusion {
  using P = Operand<T>;

 public:
  Fusion(const FusionArgs& args, int64_t threads, char* workspace)
      : args_(args), threads_(threads), tile_(kTile), workspace_(workspace) {
    for (int64_t k = 0; k < args.inputs; ++k)
      if (is_gathered(k)) tile_ = kGatheredTile;
    // Images of few tiles are worked on together; otherwise most threads would wait.
    images_ = clamp(ceil_div(4 * threads * kGatheredTile, pixels_of(0)), 1, max(map(0).batch, 1));
  }

  int64_t workspace_bytes() const { return images_ * image_bytes() + threads_ * worker_bytes(); }

  void run(const Threads& threads) {
    for (int64_t image = 0; image < map(0).batch; image += images_) {
      const int64_t images = min(images_, map(0).batch - image);
      for (int64_t k = 0; k < args_.inputs; ++k) {
        if (is_full(k)) continue;
        each_tile(threads, image, images, pixels_of(k),
                  [&](int64_t worker, const Run& run) { convolve_low(k, worker, run); });
      }
      each_tile(threads, image, images, pixels_of(0), [&](int64_t worker, const Run& run) { finish_run(worker, run); });
    }
  }

 private:
  const MapView& map(int64_t k) const { return args_.maps[k]; }
  int64_t pixels_of(int64_t k) const { return map(k).height * map(k).width; }
  bool is_full(int64_t k) const { return map(k).height == map(0).height && map(k).width == map(0).width; }

  // Return whether the pixels of a map must be copied into a panel first, for their type or their order.
  bool is_gathered(int64_t k) const {
    const MapView& m = map(k);
    const bool in_order = m.height == 1 || m.stride_h == m.width * m.stride_w;
    return sizeof(T) != sizeof(P) || !in_order || m.channels % KR<P> != 0;
  }

  // Return where the convolved map of input k begins, in bytes: it has a row of floats for each pixel.
  int64_t low_offset(int64_t k) const {
    int64_t floats = 0;
    for (int64_t i = 0; i < k; ++i)
      if (!is_full(i)) floats += pixels_of(i) * sums_stride(args_.out_channels);
    return floats * static_cast<int64_t>(sizeof(float));
  }
  int64_t image_bytes() const { return low_offset(args_.inputs); }
  float* low_map(int64_t k, int64_t image) const {
    return reinterpret_cast<float*>(workspace_ + image % images_ * image_bytes() + low_offset(k));
  }

  // The scratch memory of a worker: the sums of a block, and for every input a panel of gathered pixels, the taps of
  // each pixel, and the operands of the product or the map to interpolate.
  struct PixelTaps {
    int64_t offset[4];  // floats
    float weight[4];
  };
  struct Low {
    const float* map;
    const PixelTaps* taps;
  };
  int64_t panel_bytes() const {
    int64_t channels = 0;
    for (int64_t k = 0; k < args_.inputs; ++k)
      if (is_gathered(k)) channels = max(channels, map(k).channels);
    return channels == 0 ? 0 : tile_ * padded_channels<P>(channels) * static_cast<int64_t>(sizeof(P));
  }
  int64_t taps_bytes() const { return tile_ * static_cast<int64_t>(sizeof(PixelTaps)); }
  int64_t worker_bytes() const {
    const int64_t each = panel_bytes() + taps_bytes() + static_cast<int64_t>(sizeof(Operands<P>) + sizeof(Low));
    return sums_bytes(args_.out_channels) + round_up(args_.inputs * each, 64);
  }
  float* sums(int64_t worker) const { return reinterpret_cast<float*>(own(worker)); }
  char* per_input(int64_t worker) const { return own(worker) + sums_bytes(args_.out_channels); }
  P* panel(int64_t worker, int64_t k) const { return reinterpret_cast<P*>(per_input(worker) + k * panel_bytes()); }
  PixelTaps* taps(int64_t worker, int64_t k) const {
    return reinterpret_cast<PixelTaps*>(per_input(worker) + args_.inputs * panel_bytes() + k * taps_bytes());
  }
  Operands<P>* operands(int64_t worker) const {
    return reinterpret_cast<Operands<P>*>(per_input(worker) + args_.inputs * (panel_bytes() + taps_bytes()));
  }
  Low* lows(int64_t worker) const { return reinterpret_cast<Low*>(operands(worker) + args_.inputs); }
  char* own(int64_t worker) const { return workspace_ + images_ * image_bytes() + worker * worker_bytes(); }

  // Neighbouring pixels of an image, row after row.
  struct Run {
    int64_t image, first, count;
  };

  template <class Body>
  void each_tile(const Threads& threads, int64_t first_image, int64_t images, int64_t pixels, const Body& body) const {
    int64_t tiles = ceil_div(pixels, tile_);
    if (images * tiles < 16 * threads.count)
      tiles = min(round_up(tiles, threads.count), pixels);  // an equal share for each thread
    each_index(threads, images * tiles, [&](int64_t worker, int64_t i) {
      const int64_t first = i % tiles * pixels / tiles;
      body(worker, Run{first_image + i / tiles, first, (i % tiles + 1) * pixels / tiles - first});
    });
  }

  // Return the pixels of a tile, gathered into `panel` where they must be, and their weights.
  Operands<P> operands_of(int64_t k, const Run& run, P* panel) const {
    const MapView& m = map(k);
    const T* pixels = static_cast<const T*>(m.data) + run.image * m.stride_n;
    Operands<P> result{panel, padded_channels<P>(m.channels), static_cast<const P*>(args_.weights[k]),
                       packed_panel<T>(m.channels), m.channels};
    if (!is_gathered(k)) {
      result.pixels = reinterpret_cast<const P*>(pixels + run.first * m.stride_w);
      result.pixel_stride = m.stride_w;
      return result;
    }
    for (int64_t i = 0; i < run.count; ++i) {
      const int64_t pixel = run.first + i;
      const T* from = pixels + pixel / m.width * m.stride_h + pixel % m.width * m.stride_w;
      P* to = panel + i * result.pixel_stride;
      for (int64_t c = 0; c < m.channels; c += kWidth) store(to + c, load_upto(from + c, m.channels - c));
    }
    return result;
  }

  void convolve_low(int64_t k, int64_t worker, const Run& run) const {
    const Operands<P> only = operands_of(k, run, panel(worker, k));
    const int64_t stride = sums_stride(args_.out_channels);
    float* to = low_map(k, run.image) + run.first * stride;
    multiply_into(
        run.count, &only, 1, args_.out_channels, [&](int64_t i, int64_t) { return to + i * stride; },
        [](int64_t, float*) {});
  }

  void fill_taps(int64_t k, const Run& run, PixelTaps* taps) const {
    const MapView &m = map(k), &full = map(0);
    const int64_t stride = sums_stride(args_.out_channels);
    for (int64_t i = 0; i < run.count; ++i) {
      const Tap y = tap_at((run.first + i) / full.width, m.height, full.height, args_.align_corners);
      const Tap x = tap_at((run.first + i) % full.width, m.width, full.width, args_.align_corners);
      taps[i] = {{(y.low * m.width + x.low) * stride, (y.low * m.width + x.high) * stride,
                  (y.high * m.width + x.low) * stride, (y.high * m.width + x.high) * stride},
                 {y.low_weight * x.low_weight, y.low_weight * x.high_weight, y.high_weight * x.low_weight,
                  y.high_weight * x.high_weight}};
    }
  }

  vf activate(vf x) const {  // NaN stays NaN
    if (args_.activation == Activation::none) return x;
    x = max_second(splat(0.0f), x);
    return args_.activation == Activation::relu ? x : min_second(splat(6.0f), x);
  }

  void finish_run(int64_t worker, const Run& run) const {
    int64_t full = 0, low = 0;
    for (int64_t k = 0; k < args_.inputs; ++k) {
      if (is_full(k)) {
        operands(worker)[full++] = operands_of(k, run, panel(worker, k));
      } else {
        fill_taps(k, run, taps(worker, k));
        lows(worker)[low++] = {low_map(k, run.image), taps(worker, k)};
      }
    }
    T* out = static_cast<T*>(args_.out) + (run.image * pixels_of(0) + run.first) * args_.out_channels;
    multiply_blocks(run.count, operands(worker), full, args_.out_channels, sums(worker), [&](int64_t i, float* sums) {
      finish_pixel(i, sums, lows(worker), low, out + i * args_.out_channels);
    });
  }

  void finish_pixel(int64_t pixel, float* sums, const Low* lows, int64_t low_count, T* out) const {
    const auto sum = [&](int64_t c) { return load(sums + c); };
    if (low_count == 0) return write_pixel(sum, out);
    for (int64_t k = 0; k + 1 < low_count; ++k) {
      const Interpolation low(lows[k].map, lows[k].taps[pixel]);
      for (int64_t c = 0; c < args_.out_channels; c += kWidth) store(sums + c, add(sum(c), low.at(c)));
    }
    const Interpolation last(lows[low_count - 1].map, lows[low_count - 1].taps[pixel]);
    write_pixel([&](int64_t c) { return add(sum(c), last.at(c)); }, out);
  }

  struct Interpolation {
    const float *a, *b, *c, *d;
    vf wa, wb, wc, wd;

    Interpolation(const float* low, const PixelTaps& taps)
        : a(low + taps.offset[0]),
          b(low + taps.offset[1]),
          c(low + taps.offset[2]),
          d(low + taps.offset[3]),
          wa(splat(taps.weight[0])),
          wb(splat(taps.weight[1])),
          wc(splat(taps.weight[2])),
          wd(splat(taps.weight[3])) {}

    vf at(int64_t i) const {
      const vf upper = fma(load(b + i), wb, mul(load(a + i), wa));
      const vf lower = fma(load(d + i), wd, mul(load(c + i), wc));
      return add(upper, lower);
    }
  };

  template <class Value>
  void write_pixel(const Value& value, T* out) const {
    for (int64_t c = 0; c < args_.out_channels; c += kWidth) {
      const int64_t rest = args_.out_channels - c;
      vf sum = value(c);
      if (args_.biases)
        for (int64_t k = 0; k < args_.inputs; ++k)
          sum = add(sum, load_upto(static_cast<const T*>(args_.biases[k]) + c, rest));
      store_upto(out + c, activate(sum), rest);
    }
  }

  const FusionArgs& args_;
  int64_t threads_, images_, tile_;
  char* workspace_;
};

}  // namespace

int64_t fusion_workspace_bytes(const FusionArgs& args, int64_t threads) {
  return workspace_bytes_of<Fusion>(args, threads);
}

void fusion(const FusionArgs& args, void* workspace, const Threads& threads) {
  run_op<Fusion>(args, workspace, threads);
}

}  // namespace lwrn_fast::LWRN_ISA
