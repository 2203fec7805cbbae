#include "../crp.h"

#include "argmax_pool.h"
#include "kernel.h"
#include "outer.h"
#include "pool.h"
#include "wavefront.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

// Pixels of a tile. Their products are summed before they join other sums.
constexpr int64_t kTile = 128;
// Rows of a band.
constexpr int64_t kBand = 8;
// Bytes of a float32 map up to which all of it exists at once, not only a ring of its rows.
constexpr int64_t kSmallMap = 1 << 20;
// Channels that are pooled together: a cache line of float32.
constexpr int64_t kLine = 16;
// Size of the scratch memory in which a tile is pooled, in pixels and in floats.
constexpr int64_t kScratchColumns = kPoolColumns + 2 * kReach;
constexpr int64_t kScratch = (kPoolRows + 2 * kReach) * kScratchColumns * kLine;
// Tiles to work on at once; images with fewer tiles advance together.
constexpr int64_t kMinTiles = 16;

// Return the order of the tiles: from the last stage to the first, and then x's gradient. Each stage has only a ring of
// rows. The order does not depend on the number of threads, for the order of sums would.
Wavefront backward_wavefront(const CrpBackwardArgs& args) {
  const int64_t height = args.grad.height, width = args.grad.width;
  const bool small = height * width * args.grad.channels * static_cast<int64_t>(sizeof(float)) <= kSmallMap;
  const int64_t band = small ? height : min(height, kBand);
  const int64_t tile_rows = min(kPoolRows, band);
  const int64_t across = ceil_div(width, min(kPoolColumns, kTile / tile_rows));
  const int64_t tile_columns = ceil_div(width, across);
  const int64_t images = clamp(ceil_div(kMinTiles, across * ceil_div(band, tile_rows)), 1, args.grad.batch);
  return {args.stages + 1, height, width, band, images, clamp(kTile / tile_columns, 1, tile_rows), tile_columns};
}

// The gradient of a tile is gathered from the stage after it, adds to the gradients of weights and bias, and is
// multiplied by the transposed weights. A tile has a sum of its own: one for its index in the band and for even or odd
// steps, since a tile waits for all of the step before the last.
template <class T>
class CrpBackward {
 public:
  CrpBackward(const CrpBackwardArgs& args, int64_t threads, char* workspace)
      : args_(args),
        wave_(backward_wavefront(args)),
        height_(args.grad.height),
        width_(args.grad.width),
        channels_(args.grad.channels) {
    ring_rows_ = min(height_, 3 * wave_.band + 2 * kReach);
    sums_stride_ = panels(channels_) * NR;
    sums_floats_ = (weight_rows() + 1) * sums_stride_;
    const int64_t tiles = wave_.images * wave_.across() * ceil_div(wave_.band, wave_.tile_rows);
    sums_count_ = tiles * (wave_.band < height_ ? 2 : 1);
    first_stage_ = args.stages;
    for (int64_t i = args.stages; i-- > 0;)
      if (args.grad_weights[i] || args.grad_biases[i]) first_stage_ = i;
    if (args.grad_x) first_stage_ = 0;

    const int64_t pixels = args.stages * wave_.images * ring_rows_ * width_;
    Layout layout(workspace);
    progress_ = layout.take<char>(wave_.progress_bytes());
    pooled_grads_ = layout.take<float>(pixels * stride());
    positions_ = layout.take<uint8_t>(pixels * position_stride());
    sums_ = layout.take<float>(args.stages * sums_count_ * sums_floats_);
    transposed_ = layout.take<float>(args.depthwise ? 0 : args.stages * transposed_floats());
    own_ = layout.take<float>(threads * own_floats());
    workspace_bytes_ = layout.bytes();
  }

  int64_t workspace_bytes() const { return workspace_bytes_; }

  void run(const Threads& threads) const {
    each_index(threads, args_.stages * sums_count_, [&](int64_t, int64_t index) {
      std::memset(sums_ + index * sums_floats_, 0, static_cast<size_t>(sums_floats_) * sizeof(float));
    });
    if (!args_.depthwise)
      each_index(threads, args_.stages * panels(channels_),
                 [&](int64_t, int64_t index) { transpose(index / panels(channels_), index % panels(channels_)); });
    for (int64_t first = 0; first < args_.grad.batch; first += wave_.images) {
      Wavefront wave = wave_;
      wave.images = min(wave_.images, args_.grad.batch - first);
      Progress progress(wave, progress_);
      threads.each_worker([&](int64_t worker) {
        progress.work([&](int64_t turn, int64_t step, int64_t index, const Tile& tile) {
          const int64_t stage = args_.stages - 1 - turn, sums = wave_.band < height_ ? 2 * index + step % 2 : index;
          if (stage < 0)
            write_grad_x(first, tile, worker);
          else if (stage >= first_stage_)
            differentiate_tile(stage, first, tile, sums_of(stage, sums), worker);
        });
      });
    }
    each_index(threads, args_.stages * (weight_rows() + 1),
               [&](int64_t, int64_t index) { write_sums(index / (weight_rows() + 1), index % (weight_rows() + 1)); });
  }

 private:
  // Distance between two pixels of the rings and panels, in floats and in bytes.
  int64_t stride() const { return padded_channels<float>(channels_); }
  int64_t position_stride() const { return 2 * padded_channels<uint8_t>(channels_); }
  int64_t transposed_floats() const { return panels(channels_) * packed_panel<float>(channels_); }
  int64_t weight_rows() const { return args_.depthwise ? 1 : channels_; }

  // The scratch memory of a worker: the gradient of a tile, its pooled pixels, and room to pool in.
  int64_t panel_floats() const { return kTile * stride(); }
  int64_t own_floats() const { return 2 * panel_floats() + kScratch; }
  float* grad_panel(int64_t worker) const { return own_ + worker * own_floats(); }
  float* pooled_panel(int64_t worker) const { return grad_panel(worker) + panel_floats(); }
  float* scratch(int64_t worker) const { return pooled_panel(worker) + panel_floats(); }
  float* sums_of(int64_t stage, int64_t index) const { return sums_ + (stage * sums_count_ + index) * sums_floats_; }

  // Return the first pixel of a row in the rings of a stage. image: an index among those that advance together.
  int64_t ring_pixel(int64_t stage, int64_t image, int64_t row) const {
    return ((stage * wave_.images + image) * ring_rows_ + row % ring_rows_) * width_;
  }
  float* pooled_grad(int64_t stage, int64_t image, int64_t row) const {
    return pooled_grads_ + ring_pixel(stage, image, row) * stride();
  }
  uint8_t* argmax_rows(int64_t stage, int64_t image, int64_t row) const {
    return positions_ + ring_pixel(stage, image, row) * position_stride();
  }
  uint8_t* argmax_columns(int64_t stage, int64_t image, int64_t row) const {
    return argmax_rows(stage, image, row) + padded_channels<uint8_t>(channels_);
  }

  static const T* row_of(const MapView& map, int64_t image, int64_t row) {
    return static_cast<const T*>(map.data) + image * map.stride_n + row * map.stride_h;
  }

  bool needs_pooled_grad(int64_t stage) const { return stage > first_stage_ || (stage == 0 && args_.grad_x); }

  // Write a panel of the transposed weights, as pack() lays them out.
  void transpose(int64_t stage, int64_t panel) const {
    const T* weight = static_cast<const T*>(args_.weights[stage]) + panel * NR;
    float* packed = transposed_ + stage * transposed_floats() + panel * packed_panel<float>(channels_);
    const int64_t count = min(NR, channels_ - panel * NR);
    for (int64_t k = 0; k < channels_; ++k)
      for (int64_t i = 0; i < NR; ++i) *packed++ = i < count ? to_float(weight[k * channels_ + i]) : 0.0f;
  }

  void differentiate_tile(int64_t stage, int64_t first, const Tile& tile, float* sums, int64_t worker) const {
    gather_grad(stage, first, tile, worker);
    const bool earlier = needs_pooled_grad(stage);
    if (earlier || args_.grad_weights[stage]) pool(stage, first, tile, worker);
    if (args_.grad_weights[stage]) {
      if (args_.depthwise)
        add_scale_grad(tile, worker, sums);
      else
        add_weight_grad(tile, worker, sums);
    }
    if (args_.grad_biases[stage]) add_bias_grad(tile, worker, sums + sums_floats_ - sums_stride_);
    if (earlier) multiply_transposed(stage, tile, worker);
  }

  // Write the tile's part of the gradient of the result of `stage`: grad and, from the stage after it, the gradients of
  // the windows whose argmax a pixel is. Stage -1 is x.
  void gather_grad(int64_t stage, int64_t first, const Tile& tile, int64_t worker) const {
    const int64_t row_step = tile.columns * stride();
    for (int64_t row = 0; row < tile.rows; ++row) copy_grad(first, tile, row, grad_panel(worker) + row * row_step);
    if (stage + 1 == args_.stages) return;
    for (int64_t c = 0; c < channels_; c += kLine) {
      gather_rows(stage + 1, tile, c, scratch(worker));
      for (int64_t row = 0; row < tile.rows; ++row)
        add_columns(stage + 1, tile, row, c, scratch(worker), grad_panel(worker) + row * row_step + c);
    }
  }

  void copy_grad(int64_t first, const Tile& tile, int64_t row, float* to) const {
    const T* pixel = row_of(args_.grad, first + tile.image, tile.top + row) + tile.left * args_.grad.stride_w;
    for (int64_t column = 0; column < tile.columns; ++column, pixel += args_.grad.stride_w, to += stride())
      for (int64_t c = 0; c < channels_; c += kWidth) store(to + c, load_upto(pixel + c, channels_ - c));
  }

  // Write, for the columns of the tile and kReach beside it, the sum of the gradients that the windows of `stage` above
  // and below a pixel give to its row. One cache line of channels from c on.
  void gather_rows(int64_t stage, const Tile& tile, int64_t c, float* sums) const {
    const int64_t from = max(tile.left - kReach, 0), until = min(tile.left + tile.columns + kReach, width_);
    const int64_t grad_step = stride(), position_step = position_stride();
    for (int64_t row = 0; row < tile.rows; ++row) {
      const int64_t y = tile.top + row, low = first_window(y), high = last_window(y, height_);
      const float* grads[kWindow];
      const uint8_t* rows[kWindow];
      for (int64_t k = low; k <= high; ++k) {
        grads[k] = pooled_grad(stage, tile.image, y + k - kReach) + c;
        rows[k] = argmax_rows(stage, tile.image, y + k - kReach) + c;
      }
      float* to = sums + (row * kScratchColumns + from - tile.left + kReach) * kLine;
      for (int64_t x = from; x < until; ++x, to += kLine) {
        // The next channels lie too far from this pixel's neighbours for the processor to prefetch them by itself.
        for (int64_t k = row == 0 ? low : high; k <= high; ++k) __builtin_prefetch(grads[k] + x * grad_step + kLine);
        for (int64_t v = 0; v < kLine; v += kWidth)
          store(to + v, sum_where_argmax(
                            low, high, position_code(y), [&](int64_t k) { return load(grads[k] + x * grad_step + v); },
                            [&](int64_t k) { return load_codes(rows[k] + x * position_step + v); }));
      }
    }
  }

  // Add to each pixel of a row of the tile the gradients that the pixels beside it give to it.
  void add_columns(int64_t stage, const Tile& tile, int64_t row, int64_t c, const float* sums, float* to) const {
    const int64_t position_step = position_stride(), pixel_step = stride();
    const uint8_t* columns =
        argmax_columns(stage, tile.image, tile.top + row) + (tile.left - kReach) * position_step + c;
    sums += row * kScratchColumns * kLine;
    for (int64_t column = 0; column < tile.columns; ++column) {
      const int64_t x = tile.left + column, low = first_window(x), high = last_window(x, width_);
      for (int64_t v = 0; v < kLine; v += kWidth) {
        const vf sum = sum_where_argmax(
            low, high, position_code(x), [&](int64_t k) { return load(sums + (column + k) * kLine + v); },
            [&](int64_t k) { return load_codes(columns + (column + k) * position_step + v); });
        float* pixel = to + column * pixel_step + v;
        store(pixel, add(load(pixel), sum));
      }
    }
  }

  // Write the tile's pooled pixels and the positions of their argmax. Coordinates are clamped to the map: a window that
  // reaches beyond the edge has the last pixel anyway.
  void pool(int64_t stage, int64_t first, const Tile& tile, int64_t worker) const {
    int64_t ys[kPoolRows + 2 * kReach], xs[kScratchColumns];
    for (int64_t i = 0; i < tile.rows + 2 * kReach; ++i) ys[i] = clamp(tile.top + i - kReach, 0, height_ - 1);
    for (int64_t i = 0; i < tile.columns + 2 * kReach; ++i) xs[i] = clamp(tile.left + i - kReach, 0, width_ - 1);
    const int64_t position_step = position_stride(), row_step = tile.columns * stride(), pixel_step = stride();
    uint8_t* rows[kPoolRows];
    for (int64_t row = 0; row < tile.rows; ++row)
      rows[row] = argmax_rows(stage, tile.image, tile.top + row) + tile.left * position_step;
    for (int64_t c = 0; c < channels_; c += kLine) {
      if (channels_ - c >= kLine)
        pool_rows(stage, first, tile, xs, c, scratch(worker), [](const T* p, int64_t) { return load(p); });
      else
        pool_rows(stage, first, tile, xs, c, scratch(worker),
                  [&](const T* p, int64_t v) { return load_upto(p, channels_ - c - v); });
      float* to = pooled_panel(worker) + c;
      for (int64_t column = 0; column < tile.columns; ++column) {
        for (int64_t v = 0; v < kLine; v += kWidth) {
          const float* maxima = scratch(worker) + column * kLine + v;
          slide_argmax(
              tile.rows,
              [&](int64_t row) {
                const int64_t from = ys[row] - tile.top + kReach;
                return Argmax{load(maxima + from * kScratchColumns * kLine), position_code(ys[row])};
              },
              [&](int64_t row, const Argmax& argmax) {
                store(to + row * row_step + column * pixel_step + v, argmax.value);
                store_codes(rows[row] + column * position_step + c + v, argmax.position);
              });
        }
      }
    }
  }

  // Write the maxima along the rows of the tile and kReach above and below, and for the tile's own rows their columns.
  // One cache line of channels from c on. xs: the clamped columns. read(p, v) loads the vector at p, channels c + v on.
  template <class Read>
  void pool_rows(int64_t stage, int64_t first, const Tile& tile, const int64_t* xs, int64_t c, float* maxima,
                 const Read& read) const {
    const MapView& map = args_.pooled[stage];
    const int64_t pixel_step = map.stride_w, position_step = position_stride();
    const int64_t from = max(tile.top - kReach, 0), until = min(tile.top + tile.rows + kReach, height_);
    for (int64_t y = from; y < until; ++y) {
      const T* source = row_of(map, first + tile.image, y) + c;
      const bool own_row = y >= tile.top && y < tile.top + tile.rows;
      uint8_t* columns = argmax_columns(stage, tile.image, y) + tile.left * position_step + c;
      float* to = maxima + (y - tile.top + kReach) * kScratchColumns * kLine;
      for (int64_t column = 0; column < tile.columns + 2 * kReach; ++column)
        __builtin_prefetch(source + xs[column] * pixel_step + kLine);
      for (int64_t v = 0; v < kLine; v += kWidth)
        slide_argmax(
            tile.columns,
            [&](int64_t column) {
              return Argmax{read(source + xs[column] * pixel_step + v, v), position_code(xs[column])};
            },
            [&](int64_t column, const Argmax& argmax) {
              store(to + column * kLine + v, argmax.value);
              if (own_row) store_codes(columns + column * position_step + v, argmax.position);
            });
    }
  }

  void add_weight_grad(const Tile& tile, int64_t worker, float* sums) const {
    for (int64_t panel = 0; panel < panels(channels_); ++panel)
      for (int64_t row = 0; row < channels_; row += MR)
        with_rows(min(MR, channels_ - row), [&](auto rows) {
          add_outer<rows()>(grad_panel(worker) + row, stride(), pooled_panel(worker) + panel * NR, stride(),
                            tile.rows * tile.columns, true, sums + row * sums_stride_ + panel * NR, sums_stride_);
        });
  }

  void add_scale_grad(const Tile& tile, int64_t worker, float* sums) const {
    for (int64_t c = 0; c < channels_; c += kWidth) {
      vf sum = splat(0.0f);
      for (int64_t i = 0; i < tile.rows * tile.columns; ++i)
        sum = fma(load(grad_panel(worker) + i * stride() + c), load(pooled_panel(worker) + i * stride() + c), sum);
      store(sums + c, add(load(sums + c), sum));
    }
  }

  void add_bias_grad(const Tile& tile, int64_t worker, float* sums) const {
    for (int64_t c = 0; c < channels_; c += kWidth)
      store(sums + c, add(load(sums + c), sum_in_pairs(grad_panel(worker) + c, stride(), tile.rows * tile.columns)));
  }

  // Write the gradient of the tile's pooled pixels.
  void multiply_transposed(int64_t stage, const Tile& tile, int64_t worker) const {
    const auto row = [&](int64_t i, int64_t) {
      return pooled_grad(stage, tile.image, tile.top + i / tile.columns) + (tile.left + i % tile.columns) * stride();
    };
    if (!args_.depthwise) {
      const Operands<float> operands{grad_panel(worker), stride(), transposed_ + stage * transposed_floats(),
                                     packed_panel<float>(channels_), channels_};
      multiply_into(tile.rows * tile.columns, &operands, 1, channels_, row, [](int64_t, float*) {});
      return;
    }
    const T* scale = static_cast<const T*>(args_.weights[stage]);
    for (int64_t i = 0; i < tile.rows * tile.columns; ++i) {
      for (int64_t c = 0; c < channels_; c += kWidth)
        store(row(i, 0) + c, mul(load(grad_panel(worker) + i * stride() + c), load_upto(scale + c, channels_ - c)));
    }
  }

  void write_grad_x(int64_t first, const Tile& tile, int64_t worker) const {
    if (!args_.grad_x) return;
    gather_grad(-1, first, tile, worker);
    for (int64_t i = 0; i < tile.rows * tile.columns; ++i) {
      const int64_t y = tile.top + i / tile.columns, x = tile.left + i % tile.columns;
      T* to = static_cast<T*>(args_.grad_x) + (((first + tile.image) * height_ + y) * width_ + x) * channels_;
      for (int64_t c = 0; c < channels_; c += kWidth)
        store_upto(to + c, load(grad_panel(worker) + i * stride() + c), channels_ - c);
    }
  }

  // Add up all sums of a row of a weight's gradient, in order. The row after the weight's is the bias.
  void write_sums(int64_t stage, int64_t row) const {
    const bool is_bias = row == weight_rows();
    void* grad = is_bias ? args_.grad_biases[stage] : args_.grad_weights[stage];
    if (!grad) return;
    T* to = static_cast<T*>(grad) + (is_bias ? 0 : row * channels_);
    for (int64_t c = 0; c < channels_; c += kWidth) {
      vf sum = splat(0.0f);
      for (int64_t i = 0; i < sums_count_; ++i) sum = add(sum, load(sums_of(stage, i) + row * sums_stride_ + c));
      store_upto(to + c, sum, channels_ - c);
    }
  }

  const CrpBackwardArgs& args_;
  Wavefront wave_;
  int64_t height_, width_, channels_;
  int64_t ring_rows_;
  int64_t sums_count_, sums_floats_, sums_stride_;
  int64_t first_stage_;  // the first one whose gradient is needed
  int64_t workspace_bytes_;
  char* progress_;
  float* pooled_grads_;  // a ring for each stage and image
  uint8_t* positions_;   // a ring for each stage and image
  float* sums_;          // sums_count_ for each stage: the rows of the weight's gradient, then the bias's
  float* transposed_;    // packed weights
  float* own_;           // scratch memory of each worker
};

}  // namespace

int64_t crp_backward_workspace_bytes(const CrpBackwardArgs& args, int64_t threads) {
  return workspace_bytes_of<CrpBackward>(args, threads);
}

void crp_backward(const CrpBackwardArgs& args, void* workspace, const Threads& threads) {
  run_op<CrpBackward>(args, workspace, threads);
}

}  // namespace lwrn_fast::LWRN_ISA
