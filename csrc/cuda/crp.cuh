// Chained residual pooling in one launch: t_0 = x, t_i = W_i * maxpool5x5(t_{i-1}) + b_i, result x + sum t_i.
//
// A block of threads copies a tile with the two pixels around it to shared memory, chunks of planes (128 bytes of each
// pixel) one after another, pools it into a panel, and multiplies the panel by the weights, which arrive meanwhile.
//   Streaming: a block works on one item of the schedule after another. Stages are kept in global memory; the last adds
//   them up.
//   Resident: all blocks run at once and each keeps its tile, so that only what neighbours read goes through global
//   memory, two pixels along the tile's edge. The running sum is in registers.
#pragma once
#include "../crp.h"
#include "product.cuh"
#include "schedule.cuh"

namespace lwrn_fast::cuda {

struct CrpTask {
  Schedule schedule;
  const char* x;                    // planes adjacent
  int64_t x_image, x_row, x_pixel;  // its strides, in bytes
  char* out;                        // (batch, height, width, planes)
  char* kept;                       // (stages - 1, batch, height, width, planes)
  const char* weights[kMaxStages];  // (planes, planes), or (planes) if depthwise
  const char* biases[kMaxStages];   // (planes)
  int height, width, planes;
  int passes;  // blocks of weights that an item is multiplied by, one after another
  int held;    // chunks of the tile that are in shared memory at once
  bool aligned, biased;
};

// In place of a product: one scale per plane.
template <class Kind, int kPixels_>
struct Depthwise {
  static constexpr int kPixels = kPixels_, kPlanes = kRowPlanes<Kind>;
  static constexpr double kCycles = 0;
};

template <class Product>
constexpr bool kScales = false;
template <class Kind, int kPixels>
constexpr bool kScales<Depthwise<Kind, kPixels>> = true;

template <class Kind, class Product, int kTileH, int kTileW, int kBuffers, bool kResident_, int kPrograms_>
class Crp {
 public:
  using Number = Kind;
  using Multiplied = Product;
  using Task = CrpTask;
  static constexpr int kThreads = cuda::kThreads, kPrograms = kPrograms_;
  static constexpr bool kResident = kResident_, kDepthwise = kScales<Product>;
  static constexpr int kTileHeight = kTileH, kTileWidth = kTileW;
  static constexpr int kPlanes = Product::kPlanes;                // of a pass
  static constexpr int kPassChunks = kPlanes / kRowPlanes<Kind>;  // that a pass results in
  static constexpr int kMostChunks = 4;                           // of a resident tile
  static constexpr int kPixels = kTileH * kTileW;

  static constexpr int shared_bytes(int held, int panel_chunks) {
    return held * kHaloBytes + panel_chunks * kPanelBytes + kBuffers * kWeightBytes + 16;
  }

  // Of a chunk, for each item: rows of 128 bytes that come through global memory.
  static constexpr int copied_rows() { return kHaloPixels - (kResident ? kPixels : 0); }

  static LWRN_DEVICE void run(const Task& task) {
    Crp crp(task);
    if constexpr (kResident)
      crp.keep_a_tile();
    else
      crp.work_on_items();
    leave(task.schedule, crp.word_);
  }

 private:
  static constexpr int kHaloH = kTileH + 4, kHaloW = kTileW + 4, kHaloPixels = kHaloH * kHaloW;
  static constexpr int kHaloBytes = kHaloPixels * kRowBytes, kPanelBytes = kPixels * kRowBytes;
  static constexpr int kWeightBytes = kPlanes * kRowBytes;
  static constexpr int kAhead = kBuffers - 2;                       // steps that weights are loaded ahead of their use
  static constexpr int kStripH = kResident && kTileH == 8 ? 8 : 4;  // pixels that a thread pools one below the other
  static constexpr int kNumbers = kVectorPlanes<Kind>;
  static_assert(kPixels == Product::kPixels && kTileH % kStripH == 0);
  static_assert(kHaloBytes % 1024 == 0 && kPanelBytes % 1024 == 0 && kWeightBytes % 1024 == 0);

  LWRN_DEVICE explicit Crp(const Task& task)
      : task_(task),
        chunks_(kDepthwise ? 1 : (task.planes + kRowPlanes<Kind> - 1) / kRowPlanes<Kind>),
        halo_(shared_memory()),
        panel_(halo_ + task.held * kHaloBytes),
        weights_(panel_ + chunks_ * kPanelBytes),
        word_(reinterpret_cast<int*>(weights_ + kBuffers * kWeightBytes)) {}

  LWRN_DEVICE void work_on_items() {
    const Schedule& s = task_.schedule;
    int drawn = draw(s);
    for (int ticket = share(drawn); ticket < s.items(); ticket = share(drawn)) {
      drawn = draw(s);
      start(locate(s, ticket));
#pragma unroll
      for (int step = 0; step < kAhead; ++step) load_weights(step);
      await(s, item_);
      for (int first = 0; first < chunks_; first += task_.held) {
        const int count = smaller(task_.held, chunks_ - first);
        copy_tile(first, count);
        commit_copies();
        wait_copies<0>();
        sync();
        pool(first, count);
        sync();
      }
      for (int pass = 0; pass < task_.passes; ++pass) {
        convolve(pass);
        sync();
        store_pass(pass);
      }
      arrive(s, item_);
    }
  }

  LWRN_DEVICE void keep_a_tile() {
    const Schedule& s = task_.schedule;
    start({0, block() / s.tiles(), block() % s.tiles(), 0});
#pragma unroll
    for (int step = 0; step < kAhead; ++step) load_weights(step);
    copy_tile(0, chunks_);
    commit_copies();
    wait_copies<0>();
    sync();
    float sums[kOwn][kNumbers];
    each_own([&](int i, int, int, int, char* vector) {
#pragma unroll
      for (float& sum : sums[i]) sum = 0;
      add_planes<Kind>(sums[i], load_shared(vector));
    });
    while (true) {
      pool(0, chunks_);
      for (int pass = 0; pass < task_.passes; ++pass) convolve(pass);
      sync();
      const bool last = item_.stage == s.stages - 1;
      each_own([&](int i, int y, int x, int plane, char* vector) {
        const Vector t = load_shared(vector);
        add_planes<Kind>(sums[i], t);
        const bool at_edge = y < 2 || y >= kTileH - 2 || x < 2 || x >= kTileW - 2;
        if (!last && at_edge) store_global(kept(item_.stage, y, x, plane), t);
      });
      if (last) break;
      arrive(s, item_);
      ++item_.stage;
      await(s, item_);
      copy_ring();
      commit_copies();
      wait_copies<0>();
      sync();
    }
    each_own([&](int i, int y, int x, int plane, char*) {
      store_global(task_.out + offset(y, x, plane), round_planes<Kind>(sums[i]));
    });
  }

  // The next ticket, in thread 0.
  static LWRN_DEVICE int draw(const Schedule& s) { return thread() == 0 ? next_ticket(s) : 0; }

  // What thread 0 has, for all.
  LWRN_DEVICE int share(int value) {
    if (thread() == 0) *word_ = value;
    sync();
    value = *word_;
    sync();
    return value;
  }

  LWRN_DEVICE void start(const Item& item) {
    item_ = item;
    y0_ = item.tile / task_.schedule.tiles_x * kTileH;
    x0_ = item.tile % task_.schedule.tiles_x * kTileW;
    first_plane_ = item.block * task_.passes * kPlanes;
    first_chunk_ = kDepthwise ? item.block : 0;
    top_ = larger(2 - y0_, 0);
    left_ = larger(2 - x0_, 0);
    bottom_ = smaller(kHaloH, task_.height - y0_ + 2) - 1;
    right_ = smaller(kHaloW, task_.width - x0_ + 2) - 1;
  }

  // Where a vector lies in a chunk of the tile with its surroundings; pixel (2, 2) is the tile's first.
  static LWRN_DEVICE int halo_place(int y, int x, int vector) {
    return (y * kHaloW + x) * kRowBytes + ((vector ^ (x & 7)) << 4);
  }

  // Of a pixel of the tile and a plane: bytes from the start of `out` or of a stage.
  LWRN_DEVICE int64_t offset(int y, int x, int plane) const {
    const int64_t row = static_cast<int64_t>(item_.image) * task_.height + y0_ + y;
    return ((row * task_.width + x0_ + x) * task_.planes + plane) * Kind::kBytes;
  }

  LWRN_DEVICE char* kept(int stage, int y, int x, int plane) const {
    const int64_t pixels = static_cast<int64_t>(task_.schedule.batch) * task_.height * task_.width;
    return task_.kept + stage * pixels * task_.planes * Kind::kBytes + offset(y, x, plane);
  }

  LWRN_DEVICE bool aligned() const { return kResident || task_.aligned; }

  // Begins to copy what the image has of `count` chunks of the tile and its surroundings, from the item's `first` on.
  LWRN_DEVICE void copy_tile(int first, int count) {
    for (int i = thread(); i < kHaloPixels * kVectors; i += kThreads) {
      const int pixel = i / kVectors;
      copy_pixel(pixel / kHaloW, pixel % kHaloW, i % kVectors, first, count);
    }
  }

  // The surroundings alone: two rows above, two columns at each side, two rows below.
  LWRN_DEVICE void copy_ring() {
    constexpr int kAbove = 2 * kHaloW, kSides = 4 * kTileH;
    for (int i = thread(); i < (2 * kAbove + kSides) * kVectors; i += kThreads) {
      const int pixel = i / kVectors, side = pixel - kAbove, below = side - kSides;
      if (side < 0)
        copy_pixel(pixel / kHaloW, pixel % kHaloW, i % kVectors, 0, chunks_);
      else if (below < 0)
        copy_pixel(2 + side / 4, side % 4 < 2 ? side % 4 : side % 4 + kTileW, i % kVectors, 0, chunks_);
      else
        copy_pixel(2 + kTileH + below / kHaloW, below % kHaloW, i % kVectors, 0, chunks_);
    }
  }

  LWRN_DEVICE void copy_pixel(int y, int x, int vector, int first, int count) {
    if (y < top_ || y > bottom_ || x < left_ || x > right_) return;
    const int plane = (first_chunk_ + first) * kRowPlanes<Kind> + vector * kNumbers;
    const char* from;
    if (item_.stage == 0)
      from = task_.x + item_.image * task_.x_image + (y0_ + y - 2) * task_.x_row + (x0_ + x - 2) * task_.x_pixel +
             plane * Kind::kBytes;
    else
      from = kept(item_.stage - 1, y - 2, x - 2, plane);
    char* to = halo_ + halo_place(y, x, vector);
    for (int chunk = 0; chunk < count; ++chunk)
      copy_planes<Kind>(to + chunk * kHaloBytes, from + chunk * kRowBytes,
                        task_.planes - plane - chunk * kRowPlanes<Kind>, aligned());
  }

  // Pools `count` chunks into the panel's chunks from `first` on.
  LWRN_DEVICE void pool(int first, int count) {
    constexpr int kAcross = kTileW / 2, kDown = kTileH / kStripH;
    for (int i = thread(); i < count * (kVectors * kAcross * kDown); i += kThreads) {
      const int chunk = i / (kVectors * kAcross * kDown);
      pool_strip(halo_ + chunk * kHaloBytes, panel_ + (first + chunk) * kPanelBytes, i % kVectors,
                 i / (kVectors * kAcross) % kDown * kStripH, i / kVectors % kAcross * 2);
    }
  }

  // One vector of planes of two columns, from pixel (row, column) of the tile on, kStripH pixels down. What lies
  // outside the image repeats its border, which is in every window that reaches out.
  LWRN_DEVICE void pool_strip(const char* halo, char* panel, int vector, int row, int column) {
    int columns[6];
#pragma unroll
    for (int i = 0; i < 6; ++i) columns[i] = halo_place(0, larger(smaller(column + i, right_), left_), vector);
    Pair r0 = row_maxima(halo, row, columns), r1 = row_maxima(halo, row + 1, columns);
    Pair r2 = row_maxima(halo, row + 2, columns), r3 = row_maxima(halo, row + 3, columns);
#pragma unroll 1
    for (int y = row; y < row + kStripH; ++y) {
      const Pair r4 = row_maxima(halo, y + 4, columns);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        store_shared(
            panel + place(y * kTileW + column + i, vector),
            maxima(maxima(maxima(r0.pixels[i], r1.pixels[i]), maxima(r2.pixels[i], r3.pixels[i])), r4.pixels[i]));
      r0 = r1, r1 = r2, r2 = r3, r3 = r4;
    }
  }

  struct Pair {
    Vector pixels[2];
  };

  // The largest of five columns, for two pixels of a row.
  LWRN_DEVICE Pair row_maxima(const char* halo, int y, const int (&columns)[6]) const {
    const char* row = halo + larger(smaller(y, bottom_), top_) * (kHaloW * kRowBytes);
    const Vector shared = maxima(maxima(load_shared(row + columns[1]), load_shared(row + columns[2])),
                                 maxima(load_shared(row + columns[3]), load_shared(row + columns[4])));
    return {maxima(load_shared(row + columns[0]), shared), maxima(shared, load_shared(row + columns[5]))};
  }

  static LWRN_DEVICE Vector maxima(const Vector& a, const Vector& b) {
    Vector result;
#pragma unroll
    for (int i = 0; i < 4; ++i) result.words[i] = largest<Kind>(a.words[i], b.words[i]);
    return result;
  }

  // Begins to copy the weights of a step, one chunk of one pass. A resident block's steps go on from stage to stage.
  LWRN_DEVICE void load_weights(int step) {
    if constexpr (!kDepthwise) {
      const int steps = task_.passes * chunks_, stage = kResident ? step / steps : item_.stage;
      if (kResident ? stage < task_.schedule.stages : step < steps) {
        char* to = weights_ + step % kBuffers * kWeightBytes;
        const int first = first_plane_ + step / chunks_ % task_.passes * kPlanes, chunk = step % chunks_;
#pragma unroll
        for (int i = opaque(thread()); i < kPlanes * kVectors; i += kThreads) {
          const int row = i / kVectors, vector = i % kVectors;
          const int plane = first + row, depth = chunk * kRowPlanes<Kind> + vector * kNumbers;
          const char* from = task_.weights[stage] + (static_cast<int64_t>(plane) * task_.planes + depth) * Kind::kBytes;
          copy_planes<Kind>(to + place(row, vector), from, plane < task_.planes ? task_.planes - depth : 0, aligned());
        }
      }
      commit_copies();
    }
  }

  // The panel's convolution, rounded, to the tile's place in shared memory.
  LWRN_DEVICE void convolve(int pass) {
    if constexpr (kDepthwise)
      scale();
    else
      multiply(pass);
  }

  LWRN_DEVICE void multiply(int pass) {
    const int first = ((kResident ? item_.stage * task_.passes : 0) + pass) * chunks_;
    float sums[Product::kCount] = {};
    for (int chunk = 0; chunk < chunks_; ++chunk) {
      const int step = first + chunk;
      wait_copies<kAhead - 1>();
      Product::template wait<1>(sums);
      Product::publish();
      sync();  // this step's weights are there, and no one reads those of the step before the last
      load_weights(step + kAhead);
      Product::add(sums, panel_ + chunk * kPanelBytes, weights_ + step % kBuffers * kWeightBytes);
    }
    Product::template wait<0>(sums);
    const char* biases = task_.biases[item_.stage];
    char* chunks = halo_ + (kResident ? pass * kPassChunks : 0) * kHaloBytes;
    Product::each_pair(sums, [&](int pixel, int plane, float a, float b) {
      const int first_of_pair = first_plane_ + pass * kPlanes + plane;
      if (task_.biased) {
        a += number(biases, first_of_pair);
        b += number(biases, first_of_pair + 1);
      }
      // Planes beyond the last stay in the tile, and NaN there times a weight of zero would spread.
      if (kResident && first_of_pair >= task_.planes) a = b = 0;
      const int byte = plane % kRowPlanes<Kind> * Kind::kBytes;
      char* chunk = chunks + plane / kRowPlanes<Kind> * kHaloBytes;
      store_pair<Kind>(chunk + halo_place(pixel / kTileW + 2, pixel % kTileW + 2, byte / 16) + byte % 16, a, b);
    });
  }

  // Of `planes` numbers; 0 beyond.
  LWRN_DEVICE float number(const char* numbers, int plane) const {
    return plane < task_.planes ? load_number<Kind>(numbers + plane * Kind::kBytes) : 0.0f;
  }

  LWRN_DEVICE void scale() {
    for (int i = thread(); i < kPixels * kVectors; i += kThreads) {
      const int pixel = i / kVectors, vector = i % kVectors;
      const int plane = first_chunk_ * kRowPlanes<Kind> + vector * kNumbers;
      float values[kNumbers] = {};
      add_planes<Kind>(values, load_shared(panel_ + place(pixel, vector)));
#pragma unroll
      for (int k = 0; k < kNumbers; ++k) {
        values[k] *= number(task_.weights[item_.stage], plane + k);
        if (task_.biased) values[k] += number(task_.biases[item_.stage], plane + k);
      }
      store_shared(halo_ + halo_place(pixel / kTileW + 2, pixel % kTileW + 2, vector), round_planes<Kind>(values));
    }
  }

  // Stores the planes of a pass, or the result of all stages.
  LWRN_DEVICE void store_pass(int pass) {
    const int stage = item_.stage, last = task_.schedule.stages - 1;
    for (int i = thread(); i < kPassChunks * kPixels * kVectors; i += kThreads) {
      const int vector = i % kVectors, pixel = i / kVectors % kPixels, chunk = i / (kVectors * kPixels);
      const int plane = first_plane_ + pass * kPlanes + chunk * kRowPlanes<Kind> + vector * kNumbers;
      const int y = pixel / kTileW, x = pixel % kTileW, count = task_.planes - plane;
      if (count <= 0 || y0_ + y >= task_.height || x0_ + x >= task_.width) continue;
      Vector t = load_shared(halo_ + chunk * kHaloBytes + halo_place(y + 2, x + 2, vector));
      if (stage < last) {
        store_planes<Kind>(kept(stage, y, x, plane), t, count, aligned());
        continue;
      }
      float sums[kNumbers] = {};
      const char* from = task_.x + item_.image * task_.x_image + (y0_ + y) * task_.x_row + (x0_ + x) * task_.x_pixel;
      add_planes<Kind>(sums, load_planes<Kind>(from + plane * Kind::kBytes, count, aligned()));
      for (int earlier = 0; earlier < last; ++earlier)
        add_planes<Kind>(sums, load_planes<Kind>(kept(earlier, y, x, plane), count, aligned()));
      add_planes<Kind>(sums, t);
      store_planes<Kind>(task_.out + offset(y, x, plane), round_planes<Kind>(sums), count, aligned());
    }
  }

  static constexpr int kOwn = kMostChunks * kPixels * kVectors / kThreads;

  // Calls use(i, y, x, plane, vector) for the vectors of a resident tile that are this thread's, i < kOwn.
  template <class Use>
  LWRN_DEVICE void each_own(const Use& use) {
    const int index = opaque(thread());  // the sums take most of the registers, so no addresses stay there
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      constexpr int kStep = kThreads / kVectors;
      const int chunk = i * kStep / kPixels, pixel = i * kStep % kPixels + index / kVectors;
      const int vector = index % kVectors, y = pixel / kTileW, x = pixel % kTileW;
      const int plane = chunk * kRowPlanes<Kind> + vector * kNumbers;
      if (plane < task_.planes && y0_ + y < task_.height && x0_ + x < task_.width)
        use(i, y, x, plane, halo_ + chunk * kHaloBytes + halo_place(y + 2, x + 2, vector));
    }
  }

  static LWRN_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
  static LWRN_DEVICE int larger(int a, int b) { return a > b ? a : b; }

  const Task& task_;
  int chunks_;  // of the panel
  char *halo_, *panel_, *weights_;
  int* word_;
  Item item_;
  int y0_, x0_, first_plane_, first_chunk_;
  int top_, left_, bottom_, right_;  // of what the image has of the tile and its surroundings
};

}  // namespace lwrn_fast::cuda
