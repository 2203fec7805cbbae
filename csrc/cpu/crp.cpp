#include "../crp.h"

#include <atomic>

#include "pool.h"

// All stages advance together, band by band: in one step, stage i works on the band that lies one band and two rows
// behind that of stage i - 1, whose rows it needs were written in earlier steps. So the tiles of a step depend on none
// of each other, and only a ring of rows of each stage exists.
namespace lwrn_fast::LWRN_ISA {
namespace {

constexpr int kTile = 128;  // pixels
constexpr int64_t kSmallMap = 1 << 20;  // bytes of one stage's map that may as well exist whole

struct Plan {
  int64_t stages, height, band;  // band: rows that a stage advances in one step
  int64_t skew;                  // rows that a stage lags behind the one before, beyond one band

  Plan(const CrpArgs& args, int64_t threads) : stages(args.stages), height(args.x.height) {
    const bool small = args.x.height * args.x.width * args.x.planes * bytes_of(args.dtype) <= kSmallMap;
    band = small ? height : smaller(height, 4 * ceil_div(threads * kTile, 4 * args.x.width));
    skew = band < height ? 2 : 0;
  }
  int64_t steps() const { return ceil_div(height + skew * (stages - 1), band) + stages - 1; }
  int64_t top(int64_t stage, int64_t step) const { return clamp((step - stage) * band - skew * stage, 0, height); }
  int64_t bottom(int64_t stage, int64_t step) const { return top(stage, step + 1); }
  // Rows of a stage's output that the next stage's pooling and the last stage's sum still read.
  int64_t ring_rows(int64_t stage) const {
    if (band == height) return height;
    const int64_t pooled = 2 * band + 4, summed = (stages - stage) * band + skew * (stages - 1 - stage);
    return smaller(height, larger(pooled, summed));
  }
};

struct Tile {
  int64_t image, top, left, rows, columns;
};

// The tiles of all stages in one step, numbered stage by stage.
struct Step {
  const Plan& plan;
  int64_t step, first_image, images, width, tile_rows, tile_columns;

  int64_t rows(int64_t stage) const { return plan.bottom(stage, step) - plan.top(stage, step); }
  int64_t down(int64_t stage) const { return ceil_div(rows(stage), tile_rows); }
  int64_t across() const { return ceil_div(width, tile_columns); }
  int64_t tiles(int64_t stage) const { return images * down(stage) * across(); }
  Tile tile(int64_t stage, int64_t index) const {
    const int64_t column = index % across(), row = index / across() % down(stage);
    const int64_t image = first_image + index / across() / down(stage);
    const int64_t top = row * rows(stage) / down(stage), left = column * width / across();
    return {image, plan.top(stage, step) + top, left, (row + 1) * rows(stage) / down(stage) - top,
            (column + 1) * width / across() - left};
  }
};

template <class T>
class Crp {
  using P = typename Operand<T>::type;

 public:
  Crp(const CrpArgs& args, int64_t threads, char* workspace)
      : args_(args), plan_(args, threads), threads_(threads), workspace_(workspace) {
    const int64_t wanted = larger(kTile / smaller(kPoolRows, plan_.band), 1);
    const int64_t across = ceil_div(args.x.width, smaller(kPoolColumns, wanted));
    tile_columns_ = ceil_div(args.x.width, across);
    tile_rows_ = clamp(kTile / tile_columns_, 1, smaller(kPoolRows, plan_.band));
    // Images of few tiles advance together, for else most threads would wait.
    const int64_t tiles = across * ceil_div(plan_.band, tile_rows_);
    images_ = clamp(ceil_div(4 * threads, tiles), 1, larger(args.x.batch, 1));
  }

  int64_t workspace_bytes() const { return images_ * image_bytes() + threads_ * worker_bytes(); }

  void run(const Threads& threads) {
    for (int64_t image = 0; image < args_.x.batch; image += images_) {
      const int64_t images = smaller(images_, args_.x.batch - image);
      for (int64_t step = 0; step < plan_.steps(); ++step) {
        const Step tiles{plan_, step, image, images, args_.x.width, tile_rows_, tile_columns_};
        std::atomic<int64_t> next{0};
        threads.each_worker([&](int64_t worker) { run_tiles(tiles, worker, next); });
      }
    }
  }

 private:
  int64_t planes() const { return args_.x.planes; }
  int64_t row_elements() const { return args_.x.width * planes(); }
  int64_t ring_offset(int64_t stage) const {
    int64_t bytes = 0;
    for (int64_t i = 0; i < stage; ++i)
      bytes += round_up(plan_.ring_rows(i) * row_elements() * static_cast<int64_t>(sizeof(T)), 64);
    return bytes;
  }
  int64_t image_bytes() const { return ring_offset(args_.stages - 1); }
  // Each worker has a panel of pooled pixels, room to pool in, and the sums of a block.
  int64_t panel_bytes() const { return kTile * panel_stride(planes()) * static_cast<int64_t>(sizeof(P)); }
  static constexpr int64_t kScratchBytes = kPoolScratch * sizeof(float);
  int64_t worker_bytes() const { return panel_bytes() + kScratchBytes + sums_bytes(planes()); }
  char* own(int64_t worker) const {
    return workspace_ + images_ * image_bytes() + worker * worker_bytes();
  }
  P* panel(int64_t worker) const { return reinterpret_cast<P*>(own(worker)); }
  float* scratch(int64_t worker) const { return reinterpret_cast<float*>(own(worker) + panel_bytes()); }
  float* sums(int64_t worker) const { return scratch(worker) + kPoolScratch; }

  // Row of the map that `stage` writes; stage -1 is x.
  T* row_of(int64_t stage, int64_t image, int64_t row) const {
    if (stage < 0) {
      const T* x = static_cast<const T*>(args_.x.data);
      return const_cast<T*>(x + image * args_.x.stride_n + row * args_.x.stride_h);
    }
    T* ring = reinterpret_cast<T*>(workspace_ + image % images_ * image_bytes() + ring_offset(stage));
    return ring + row % plan_.ring_rows(stage) * row_elements();
  }
  int64_t pixel_stride(int64_t stage) const { return stage < 0 ? args_.x.stride_w : planes(); }

  void run_tiles(const Step& step, int64_t worker, std::atomic<int64_t>& next) const {
    int64_t index = next.fetch_add(1, std::memory_order_relaxed), before = 0;
    for (int64_t stage = 0; stage < args_.stages; ++stage) {
      for (; index < before + step.tiles(stage); index = next.fetch_add(1, std::memory_order_relaxed))
        run_tile(stage, step.tile(stage, index - before), worker);
      before += step.tiles(stage);
    }
  }

  void run_tile(int64_t stage, const Tile& tile, int64_t worker) const {
    const T* source[kPoolRows + 4];
    for (int64_t i = 0; i < tile.rows + 4; ++i)
      source[i] = row_of(stage - 1, tile.image, clamp(tile.top + i - 2, 0, args_.x.height - 1));
    PoolTile<T, P>{source,    pixel_stride(stage - 1), args_.x.width,   planes(),     tile.rows,
                   tile.left, tile.columns,            scratch(worker), panel(worker)}
        .run();

    const auto finish = [&](int64_t pixel, const float* sums) {
      const int64_t row = tile.top + pixel / tile.columns, column = tile.left + pixel % tile.columns;
      if (stage + 1 < args_.stages)
        write_pixel(sums, stage, row_of(stage, tile.image, row) + column * planes());
      else
        sum_pixel(sums, tile.image, row, column);
    };
    if (args_.depthwise)
      scale_pixels(stage, tile.rows * tile.columns, worker, finish);
    else
      convolve(stage, tile.rows * tile.columns, worker, finish);
  }

  template <class Finish>
  void convolve(int64_t stage, int64_t pixels, int64_t worker, const Finish& finish) const {
    const Factor<P> factor{panel(worker), panel_stride(planes()), static_cast<const P*>(args_.weights[stage]),
                           packed_panel<T>(planes()), planes()};
    multiply_blocks(pixels, &factor, 1, planes(), sums(worker), finish);
  }

  template <class Finish>
  void scale_pixels(int64_t stage, int64_t pixels, int64_t worker, const Finish& finish) const {
    const T* scale = static_cast<const T*>(args_.weights[stage]);
    float* products = sums(worker);
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      const P* from = panel(worker) + pixel * panel_stride(planes());
      for (int64_t c = 0; c < planes(); c += kWidth)
        store(products + c, mul(load(from + c), load_upto(scale + c, planes() - c)));
      finish(pixel, products);
    }
  }

  vf with_bias(int64_t stage, int64_t channel, vf value) const {
    if (!args_.biases) return value;
    return add(value, load_upto(static_cast<const T*>(args_.biases[stage]) + channel, planes() - channel));
  }

  void write_pixel(const float* sums, int64_t stage, T* to) const {
    for (int64_t c = 0; c < planes(); c += kWidth)
      store_upto(to + c, with_bias(stage, c, load(sums + c)), planes() - c);
  }

  // The last stage: x and all earlier stages are added to it, in the order in which they are written down.
  void sum_pixel(const float* sums, int64_t image, int64_t row, int64_t column) const {
    const int64_t last = args_.stages - 1;
    const T* x = row_of(-1, image, row) + column * pixel_stride(-1);
    const T* before[kMostStages];
    for (int64_t i = 0; i < last; ++i) before[i] = row_of(i, image, row) + column * planes();
    T* out = static_cast<T*>(args_.out) + ((image * args_.x.height + row) * args_.x.width + column) * planes();
    for (int64_t c = 0; c < planes(); c += kWidth) {
      const int64_t left_over = planes() - c;
      vf sum = load_upto(x + c, left_over);
      for (int64_t i = 0; i < last; ++i) sum = add(sum, load_upto(before[i] + c, left_over));
      store_upto(out + c, add(sum, with_bias(last, c, load(sums + c))), left_over);
    }
  }

  const CrpArgs& args_;
  Plan plan_;
  int64_t threads_, tile_rows_, tile_columns_, images_;
  char* workspace_;
};

}  // namespace

int64_t crp_workspace_bytes(const CrpArgs& args, int64_t threads) {
  int64_t bytes = 0;
  with_type(args.dtype, [&](auto type) { bytes = Crp<decltype(type)>(args, threads, nullptr).workspace_bytes(); });
  return bytes;
}

void crp(const CrpArgs& args, void* workspace, const Threads& threads) {
  with_type(args.dtype, [&](auto type) {
    Crp<decltype(type)>(args, threads.count, static_cast<char*>(workspace)).run(threads);
  });
}

}  // namespace lwrn_fast::LWRN_ISA
