#include "../crp.h"

#include "kernel.h"
#include "pool.h"
#include "wavefront.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

// Pixels of a tile.
constexpr int64_t kTile = 128;
// Bytes of a stage's map up to which all of it exists at once, not only a ring of its rows.
constexpr int64_t kSmallMap = 1 << 20;

Wavefront wavefront(const CrpArgs& args, int64_t threads) {
  const int64_t height = args.x.height, width = args.x.width;
  const bool small = height * width * args.x.channels * bytes_of(args.dtype) <= kSmallMap;
  const int64_t band = small ? height : min(height, 4 * ceil_div(threads * kTile, 4 * width));
  const int64_t tile_rows = min(kPoolRows, band);
  const int64_t across = ceil_div(width, min(kPoolColumns, kTile / tile_rows));
  const int64_t tile_columns = ceil_div(width, across);
  // Images of few tiles advance together; otherwise most threads would wait.
  const int64_t tiles = across * ceil_div(band, tile_rows);
  const int64_t images = clamp(ceil_div(4 * threads, tiles), 1, max(args.x.batch, 1));
  return {args.stages, height, width, band, images, clamp(kTile / tile_columns, 1, tile_rows), tile_columns};
}

template <class T>
class Crp {
  using P = Operand<T>;

 public:
  Crp(const CrpArgs& args, int64_t threads, char* workspace)
      : args_(args), wave_(wavefront(args, threads)), threads_(threads), workspace_(workspace) {
    image_bytes_ = 0;
    for (int64_t i = 0; i + 1 < args.stages && !args.kept; ++i) {
      ring_rows_[i] = wave_.ring_rows(i);
      ring_offset_[i] = image_bytes_;
      image_bytes_ += round_up(ring_rows_[i] * ring_row() * static_cast<int64_t>(sizeof(T)), 64);
    }
  }

  int64_t workspace_bytes() const {
    return wave_.progress_bytes() + wave_.images * image_bytes_ + threads_ * worker_bytes();
  }

  void run(const Threads& threads) {
    for (int64_t first = 0; first < args_.x.batch; first += wave_.images) {
      Wavefront wave = wave_;
      wave.images = min(wave_.images, args_.x.batch - first);
      Progress progress(wave, workspace_);
      threads.each_worker([&](int64_t worker) {
        progress.work([&](int64_t stage, int64_t, int64_t, Tile tile) {
          tile.image += first;
          run_tile(stage, tile, worker);
        });
      });
    }
  }

 private:
  int64_t channels() const { return args_.x.channels; }
  int64_t ring_row() const { return args_.x.width * padded_channels<T>(channels()); }  // elements
  char* rings() const { return workspace_ + wave_.progress_bytes(); }
  // The scratch memory of a worker: a panel of pooled pixels, room to pool in, and the sums of a block.
  int64_t panel_bytes() const { return kTile * padded_channels<P>(channels()) * static_cast<int64_t>(sizeof(P)); }
  static constexpr int64_t kScratchBytes = kPoolScratch * sizeof(float);
  int64_t worker_bytes() const { return panel_bytes() + kScratchBytes + sums_bytes(channels()); }
  char* own(int64_t worker) const { return rings() + wave_.images * image_bytes_ + worker * worker_bytes(); }
  P* panel(int64_t worker) const { return reinterpret_cast<P*>(own(worker)); }
  float* scratch(int64_t worker) const { return reinterpret_cast<float*>(own(worker) + panel_bytes()); }
  float* sums(int64_t worker) const { return scratch(worker) + kPoolScratch; }

  // Return a row of the map that `stage` writes; stage -1 is x.
  T* row_of(int64_t stage, int64_t image, int64_t row) const {
    if (stage < 0) {
      const T* x = static_cast<const T*>(args_.x.data);
      return const_cast<T*>(x + image * args_.x.stride_n + row * args_.x.stride_h);
    }
    if (args_.kept)
      return static_cast<T*>(args_.kept[stage]) + (image * args_.x.height + row) * args_.x.width * channels();
    T* ring = reinterpret_cast<T*>(rings() + image % wave_.images * image_bytes_ + ring_offset_[stage]);
    return ring + row % ring_rows_[stage] * ring_row();
  }
  int64_t pixel_stride(int64_t stage) const {
    return stage < 0 ? args_.x.stride_w : args_.kept ? channels() : padded_channels<T>(channels());
  }

  void run_tile(int64_t stage, const Tile& tile, int64_t worker) const {
    const T* source[kPoolRows + 4];
    for (int64_t i = 0; i < tile.rows + 4; ++i)
      source[i] = row_of(stage - 1, tile.image, clamp(tile.top + i - 2, 0, args_.x.height - 1));
    using Pool = PoolTile<T, P>;
    Pool{source,        pixel_stride(stage - 1),
         args_.x.width, channels(),
         tile.rows,     tile.left,
         tile.columns,  reinterpret_cast<typename Pool::Cell*>(scratch(worker)),
         panel(worker)}
        .run();

    const auto finish = [&](int64_t pixel, const float* sums) {
      const int64_t row = tile.top + pixel / tile.columns, column = tile.left + pixel % tile.columns;
      if (stage + 1 < args_.stages || !args_.out)
        write_pixel(sums, stage, row_of(stage, tile.image, row) + column * pixel_stride(stage));
      else
        sum_pixel(sums, tile.image, row, column);
    };
    if (args_.depthwise)
      scale_pixels(stage, tile.rows * tile.columns, worker, finish);
    else if (sums_are_ring(stage))
      convolve_into_ring(stage, tile, worker);
    else
      convolve(stage, tile.rows * tile.columns, worker, finish);
  }

  // Return whether the ring of a stage takes the sums as they are: float32 without biases.
  bool sums_are_ring(int64_t stage) const {
    return std::is_same_v<T, float> && stage + 1 < args_.stages && !args_.kept && !args_.biases;
  }

  Operands<P> operands(int64_t stage, int64_t worker) const {
    return {panel(worker), padded_channels<P>(channels()), static_cast<const P*>(args_.weights[stage]),
            packed_panel<T>(channels()), channels()};
  }

  template <class Finish>
  void convolve(int64_t stage, int64_t pixels, int64_t worker, const Finish& finish) const {
    const Operands<P> only = operands(stage, worker);
    multiply_blocks(pixels, &only, 1, channels(), sums(worker), finish);
  }

  // Multiply into the ring: its pixels have room for whole panels.
  void convolve_into_ring(int64_t stage, const Tile& tile, int64_t worker) const {
    const Operands<P> only = operands(stage, worker);
    const auto row = [&](int64_t pixel, int64_t) {
      T* first = row_of(stage, tile.image, tile.top + pixel / tile.columns);
      return reinterpret_cast<float*>(first) + (tile.left + pixel % tile.columns) * pixel_stride(stage);
    };
    multiply_into(tile.rows * tile.columns, &only, 1, channels(), row, [](int64_t, float*) {});
  }

  template <class Finish>
  void scale_pixels(int64_t stage, int64_t pixels, int64_t worker, const Finish& finish) const {
    const T* scale = static_cast<const T*>(args_.weights[stage]);
    float* products = sums(worker);
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      const P* from = panel(worker) + pixel * padded_channels<P>(channels());
      for (int64_t c = 0; c < channels(); c += kWidth)
        store(products + c, mul(load(from + c), load_upto(scale + c, channels() - c)));
      finish(pixel, products);
    }
  }

  vf with_bias(int64_t stage, int64_t channel, vf value) const {
    if (!args_.biases) return value;
    return add(value, load_upto(static_cast<const T*>(args_.biases[stage]) + channel, channels() - channel));
  }

  void write_pixel(const float* sums, int64_t stage, T* to) const {
    for (int64_t c = 0; c < channels(); c += kWidth)
      store_upto(to + c, with_bias(stage, c, load(sums + c)), channels() - c);
  }

  // Add x, all earlier stages and the last one, in this order, and write the result.
  void sum_pixel(const float* sums, int64_t image, int64_t row, int64_t column) const {
    const int64_t last = args_.stages - 1;
    const T* x = row_of(-1, image, row) + column * pixel_stride(-1);
    const T* before[kMaxStages];
    for (int64_t i = 0; i < last; ++i) before[i] = row_of(i, image, row) + column * pixel_stride(i);
    T* out = static_cast<T*>(args_.out) + ((image * args_.x.height + row) * args_.x.width + column) * channels();
    for (int64_t c = 0; c < channels(); c += kWidth) {
      const int64_t rest = channels() - c;
      vf sum = load_upto(x + c, rest);
      for (int64_t i = 0; i < last; ++i) sum = add(sum, load_upto(before[i] + c, rest));
      store_upto(out + c, add(sum, with_bias(last, c, load(sums + c))), rest);
    }
  }

  const CrpArgs& args_;
  Wavefront wave_;
  int64_t threads_;
  char* workspace_;  // progress, rings of each image, scratch memory of each worker
  int64_t image_bytes_, ring_rows_[kMaxStages], ring_offset_[kMaxStages];
};

}  // namespace

int64_t crp_workspace_bytes(const CrpArgs& args, int64_t threads) { return workspace_bytes_of<Crp>(args, threads); }

void crp(const CrpArgs& args, void* workspace, const Threads& threads) { run_op<Crp>(args, workspace, threads); }

}  // namespace lwrn_fast::LWRN_ISA
