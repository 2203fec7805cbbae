// Chained residual pooling in one launch: t_0 = x, t_i = W_i * maxpool5x5(t_{i-1}) + b_i, result x + sum t_i.
//
// A thread block copies a tile and its halo of two pixels to shared memory, in chunks of channels (128 bytes of each
// pixel), pools it into a panel, and multiplies the panel by the weights, whose copies overlap with both.
//   Streaming: a block works on one item of the schedule after another. The result of each stage lies in global memory;
//   the last stage adds them up.
//   Resident: all blocks run at once and each keeps its tile in shared memory. Only the tile's edge of two pixels,
//   which the neighbours read, goes through global memory. The running sum is in registers.
#pragma once
#include "../crp.h"
#include "product.cuh"
#include "schedule.cuh"

namespace lwrn_fast::cuda {

struct CrpTask {
  Schedule schedule;
  const char* x;                    // channels adjacent
  int64_t x_image, x_row, x_pixel;  // strides of x, in bytes
  char* out;                        // (batch, height, width, channels)
  char* kept;                       // (stages - 1, batch, height, width, channels)
  const char* weights[kMaxStages];  // (channels, channels), or (channels) if depthwise
  const char* biases[kMaxStages];   // (channels)
  int height, width, channels;
  int passes;       // blocks of weights that an item multiplies by in turn
  int smem_chunks;  // chunks of the tile in shared memory at once
  bool aligned, biased;
};

// Stands for a product where the convolution is depthwise: one scale per channel.
template <class Element, int kPixels_>
struct Depthwise {
  static constexpr int kPixels = kPixels_, kChannels = kRowChannels<Element>;
  static constexpr double kCycles = 0;
};

template <class Product>
constexpr bool kScales = false;
template <class Element, int kPixels>
constexpr bool kScales<Depthwise<Element, kPixels>> = true;

template <class Element_, class Product, int kTileH, int kTileW, int kPipelineStages, bool kResident_,
          int kMinBlocksPerSm_>
class Crp {
 public:
  using Element = Element_;
  using MatrixProduct = Product;
  using Task = CrpTask;
  static constexpr int kThreads = cuda::kThreads, kMinBlocksPerSm = kMinBlocksPerSm_;
  static constexpr bool kResident = kResident_, kDepthwise = kScales<Product>;
  static constexpr int kTileHeight = kTileH, kTileWidth = kTileW;
  static constexpr int kChannels = Product::kChannels;                   // output channels of a pass
  static constexpr int kPassChunks = kChannels / kRowChannels<Element>;  // output chunks of a pass
  static constexpr int kMaxChunks = 4;                                   // chunks of a resident tile
  static constexpr int kPixels = kTileH * kTileW;

  static constexpr int smem_bytes(int smem_chunks, int panel_chunks) {
    return smem_chunks * kHaloBytes + panel_chunks * kPanelBytes + kPipelineStages * kWeightBytes + 16;
  }

  // Return how many rows of 128 bytes an item copies from global memory, per chunk.
  static constexpr int copied_rows() { return kHaloPixels - (kResident ? kPixels : 0); }

  static LWRN_DEVICE void run(const Task& task) {
    Crp crp(task);
    if constexpr (kResident)
      crp.run_resident();
    else
      crp.run_streaming();
    leave(task.schedule, crp.smem_word_);
  }

 private:
  static constexpr int kHaloH = kTileH + 4, kHaloW = kTileW + 4, kHaloPixels = kHaloH * kHaloW;
  static constexpr int kHaloBytes = kHaloPixels * kRowBytes, kPanelBytes = kPixels * kRowBytes;
  static constexpr int kWeightBytes = kChannels * kRowBytes;
  static constexpr int kPrefetch = kPipelineStages - 2;             // steps between the load of weights and their use
  static constexpr int kStripH = kResident && kTileH == 8 ? 8 : 4;  // height in pixels of the strip that a thread pools
  static constexpr int kVectorSize = kVectorChannels<Element>;
  static_assert(kPixels == Product::kPixels && kTileH % kStripH == 0);
  static_assert(kHaloBytes % 1024 == 0 && kPanelBytes % 1024 == 0 && kWeightBytes % 1024 == 0);

  LWRN_DEVICE explicit Crp(const Task& task)
      : task_(task),
        chunks_(kDepthwise ? 1 : (task.channels + kRowChannels<Element> - 1) / kRowChannels<Element>),
        halo_(shared_memory()),
        panel_(halo_ + task.smem_chunks * kHaloBytes),
        weights_(panel_ + chunks_ * kPanelBytes),
        smem_word_(reinterpret_cast<int*>(weights_ + kPipelineStages * kWeightBytes)) {}

  LWRN_DEVICE void run_streaming() {
    const Schedule& s = task_.schedule;
    int drawn = draw_ticket(s);
    for (int ticket = broadcast(drawn); ticket < s.items(); ticket = broadcast(drawn)) {
      drawn = draw_ticket(s);
      // Prefetch the weights, which depend on no other block, while the neighbours finish.
      start(locate(s, ticket));
#pragma unroll
      for (int step = 0; step < kPrefetch; ++step) load_weights(step);
      await(s, item_);
      // Copy and pool the tile, as many chunks at a time as shared memory holds.
      for (int first = 0; first < chunks_; first += task_.smem_chunks) {
        const int count = min(task_.smem_chunks, chunks_ - first);
        copy_tile(first, count);
        commit_copies();
        wait_copies<0>();
        sync();
        pool(first, count);
        sync();
      }
      // Convolve and store, one block of output channels at a time.
      for (int pass = 0; pass < task_.passes; ++pass) {
        convolve(pass);
        sync();
        store_pass(pass);
      }
      arrive(s, item_);
    }
  }

  LWRN_DEVICE void run_resident() {
    // Load the tile, its halo and the first weights.
    const Schedule& s = task_.schedule;
    start({0, block() / s.tiles(), block() % s.tiles(), 0});
#pragma unroll
    for (int step = 0; step < kPrefetch; ++step) load_weights(step);
    copy_tile(0, chunks_);
    commit_copies();
    wait_copies<0>();
    sync();
    // Start the running sum with x.
    float acc[kThreadVectors][kVectorSize];
    each_thread_vector([&](int i, int, int, int, char* vector) {
#pragma unroll
      for (float& sum : acc[i]) sum = 0;
      add_channels<Element>(acc[i], load_shared(vector));
    });
    while (true) {
      // Pool and convolve a stage in place.
      pool(0, chunks_);
      for (int pass = 0; pass < task_.passes; ++pass) convolve(pass);
      sync();
      // Add the stage, and store the edge of the tile for the neighbours.
      const bool last = item_.stage == s.stages - 1;
      each_thread_vector([&](int i, int y, int x, int channel, char* vector) {
        const Vector t = load_shared(vector);
        add_channels<Element>(acc[i], t);
        const bool at_edge = y < 2 || y >= kTileH - 2 || x < 2 || x >= kTileW - 2;
        if (!last && at_edge) store_global(kept(item_.stage, y, x, channel), t);
      });
      if (last) break;
      // Fetch the halo of the next stage from the neighbours.
      arrive(s, item_);
      ++item_.stage;
      await(s, item_);
      copy_ring();
      commit_copies();
      wait_copies<0>();
      sync();
    }
    // Store the sum.
    each_thread_vector([&](int i, int y, int x, int channel, char*) {
      store_global(task_.out + offset(y, x, channel), round_channels<Element>(acc[i]));
    });
  }

  // Return the next ticket in thread 0; 0 in the others.
  static LWRN_DEVICE int draw_ticket(const Schedule& s) { return thread() == 0 ? next_ticket(s) : 0; }

  // Return the value of thread 0 in all threads.
  LWRN_DEVICE int broadcast(int value) {
    if (thread() == 0) *smem_word_ = value;
    sync();
    value = *smem_word_;
    sync();
    return value;
  }

  LWRN_DEVICE void start(const Item& item) {
    item_ = item;
    y0_ = item.tile / task_.schedule.tiles_x * kTileH;
    x0_ = item.tile % task_.schedule.tiles_x * kTileW;
    first_channel_ = item.block * task_.passes * kChannels;
    first_chunk_ = kDepthwise ? item.block : 0;
    top_ = max(2 - y0_, 0);
    left_ = max(2 - x0_, 0);
    bottom_ = min(kHaloH, task_.height - y0_ + 2) - 1;
    right_ = min(kHaloW, task_.width - x0_ + 2) - 1;
  }

  // Return the offset in bytes of a vector in a chunk of the halo tile, swizzled; pixel (2, 2) is the tile's first.
  static LWRN_DEVICE int halo_offset(int y, int x, int vector) {
    return (y * kHaloW + x) * kRowBytes + ((vector ^ (x & 7)) << 4);
  }

  // Return the offset in bytes of a pixel of the tile and a channel, from the start of `out` or of a stage.
  LWRN_DEVICE int64_t offset(int y, int x, int channel) const {
    const int64_t row = static_cast<int64_t>(item_.image) * task_.height + y0_ + y;
    return ((row * task_.width + x0_ + x) * task_.channels + channel) * Element::kBytes;
  }

  LWRN_DEVICE char* kept(int stage, int y, int x, int channel) const {
    const int64_t pixels = static_cast<int64_t>(task_.schedule.batch) * task_.height * task_.width;
    return task_.kept + stage * pixels * task_.channels * Element::kBytes + offset(y, x, channel);
  }

  LWRN_DEVICE bool aligned() const { return kResident || task_.aligned; }

  // Start the copies of `count` chunks of the tile and its halo, from chunk `first` of the item on. Pixels outside the
  // image are left out.
  LWRN_DEVICE void copy_tile(int first, int count) {
    for (int i = thread(); i < kHaloPixels * kVectors; i += kThreads) {
      const int pixel = i / kVectors;
      copy_pixel(pixel / kHaloW, pixel % kHaloW, i % kVectors, first, count);
    }
  }

  // Start the copies of the halo alone: two rows above, two columns at each side, two rows below.
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
    const int channel = (first_chunk_ + first) * kRowChannels<Element> + vector * kVectorSize;
    const char* from;
    if (item_.stage == 0)
      from = task_.x + item_.image * task_.x_image + (y0_ + y - 2) * task_.x_row + (x0_ + x - 2) * task_.x_pixel +
             channel * Element::kBytes;
    else
      from = kept(item_.stage - 1, y - 2, x - 2, channel);
    char* to = halo_ + halo_offset(y, x, vector);
    for (int chunk = 0; chunk < count; ++chunk)
      copy_channels<Element>(to + chunk * kHaloBytes, from + chunk * kRowBytes,
                             task_.channels - channel - chunk * kRowChannels<Element>, aligned());
  }

  // Pool `count` chunks into the panel, from its chunk `first` on.
  LWRN_DEVICE void pool(int first, int count) {
    constexpr int kStripsX = kTileW / 2, kStripsY = kTileH / kStripH;
    for (int i = thread(); i < count * (kVectors * kStripsX * kStripsY); i += kThreads) {
      const int chunk = i / (kVectors * kStripsX * kStripsY);
      pool_strip(halo_ + chunk * kHaloBytes, panel_ + (first + chunk) * kPanelBytes, i % kVectors,
                 i / (kVectors * kStripsX) % kStripsY * kStripH, i / kVectors % kStripsX * 2);
    }
  }

  // Pool one vector of channels of two columns, from pixel (row, column) of the tile on, kStripH pixels down. Clamp to
  // the image: for a stride-1 5x5 maximum this equals padding with -inf.
  LWRN_DEVICE void pool_strip(const char* halo, char* panel, int vector, int row, int column) {
    int columns[6];
#pragma unroll
    for (int i = 0; i < 6; ++i) columns[i] = halo_offset(0, max(min(column + i, right_), left_), vector);
    Pair r0 = row_max(halo, row, columns), r1 = row_max(halo, row + 1, columns);
    Pair r2 = row_max(halo, row + 2, columns), r3 = row_max(halo, row + 3, columns);
#pragma unroll 1
    for (int y = row; y < row + kStripH; ++y) {
      const Pair r4 = row_max(halo, y + 4, columns);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        store_shared(
            panel + swizzled_offset(y * kTileW + column + i, vector),
            max_of(max_of(max_of(r0.pixels[i], r1.pixels[i]), max_of(r2.pixels[i], r3.pixels[i])), r4.pixels[i]));
      r0 = r1, r1 = r2, r2 = r3, r3 = r4;
    }
  }

  struct Pair {
    Vector pixels[2];
  };

  // Return the maximum of five columns for each of two pixels of a row. They share four columns.
  LWRN_DEVICE Pair row_max(const char* halo, int y, const int (&columns)[6]) const {
    const char* row = halo + max(min(y, bottom_), top_) * (kHaloW * kRowBytes);
    const Vector shared = max_of(max_of(load_shared(row + columns[1]), load_shared(row + columns[2])),
                                 max_of(load_shared(row + columns[3]), load_shared(row + columns[4])));
    return {max_of(load_shared(row + columns[0]), shared), max_of(shared, load_shared(row + columns[5]))};
  }

  static LWRN_DEVICE Vector max_of(const Vector& a, const Vector& b) {
    Vector result;
#pragma unroll
    for (int i = 0; i < 4; ++i) result.words[i] = max_nan<Element>(a.words[i], b.words[i]);
    return result;
  }

  // Start the copy of the weights of a step, one chunk of one pass. The steps of a resident block run on from stage to
  // stage.
  LWRN_DEVICE void load_weights(int step) {
    if constexpr (!kDepthwise) {
      const int steps = task_.passes * chunks_, stage = kResident ? step / steps : item_.stage;
      if (kResident ? stage < task_.schedule.stages : step < steps) {
        char* to = weights_ + step % kPipelineStages * kWeightBytes;
        const int first = first_channel_ + step / chunks_ % task_.passes * kChannels, chunk = step % chunks_;
#pragma unroll
        for (int i = opaque(thread()); i < kChannels * kVectors; i += kThreads) {
          const int row = i / kVectors, vector = i % kVectors;
          const int channel = first + row, depth = chunk * kRowChannels<Element> + vector * kVectorSize;
          const char* from =
              task_.weights[stage] + (static_cast<int64_t>(channel) * task_.channels + depth) * Element::kBytes;
          copy_channels<Element>(to + swizzled_offset(row, vector), from,
                                 channel < task_.channels ? task_.channels - depth : 0, aligned());
        }
      }
      commit_copies();
    }
  }

  // Convolve the panel and write the result, rounded, over the tile in shared memory.
  LWRN_DEVICE void convolve(int pass) {
    if constexpr (kDepthwise)
      scale();
    else
      multiply(pass);
  }

  LWRN_DEVICE void multiply(int pass) {
    // Multiply chunk by chunk, while the weights of the next steps arrive.
    const int first = ((kResident ? item_.stage * task_.passes : 0) + pass) * chunks_;
    float acc[Product::kAccCount] = {};
    for (int chunk = 0; chunk < chunks_; ++chunk) {
      const int step = first + chunk;
      wait_copies<kPrefetch - 1>();
      Product::template wait<1>(acc);
      Product::publish();
      sync();  // this step's weights have arrived; nobody reads those of the step before the last
      load_weights(step + kPrefetch);
      Product::add(acc, panel_ + chunk * kPanelBytes, weights_ + step % kPipelineStages * kWeightBytes);
    }
    Product::template wait<0>(acc);
    // Add the bias and write the result to shared memory.
    const char* biases = task_.biases[item_.stage];
    char* chunks = halo_ + (kResident ? pass * kPassChunks : 0) * kHaloBytes;
    Product::each_pair(acc, [&](int pixel, int channel, float a, float b) {
      const int first_of_pair = first_channel_ + pass * kChannels + channel;
      if (task_.biased) {
        a += element_or_zero(biases, first_of_pair);
        b += element_or_zero(biases, first_of_pair + 1);
      }
      // Channels beyond the last stay in the tile: a NaN there times a weight of zero would spread.
      if (kResident && first_of_pair >= task_.channels) a = b = 0;
      const int byte = channel % kRowChannels<Element> * Element::kBytes;
      char* chunk = chunks + channel / kRowChannels<Element> * kHaloBytes;
      store_pair<Element>(chunk + halo_offset(pixel / kTileW + 2, pixel % kTileW + 2, byte / 16) + byte % 16, a, b);
    });
  }

  // Return element `channel` of an array of `channels`; 0 beyond its end.
  LWRN_DEVICE float element_or_zero(const char* elements, int channel) const {
    return channel < task_.channels ? load_element<Element>(elements + channel * Element::kBytes) : 0.0f;
  }

  LWRN_DEVICE void scale() {
    for (int i = thread(); i < kPixels * kVectors; i += kThreads) {
      const int pixel = i / kVectors, vector = i % kVectors;
      const int channel = first_chunk_ * kRowChannels<Element> + vector * kVectorSize;
      float values[kVectorSize] = {};
      add_channels<Element>(values, load_shared(panel_ + swizzled_offset(pixel, vector)));
#pragma unroll
      for (int k = 0; k < kVectorSize; ++k) {
        values[k] *= element_or_zero(task_.weights[item_.stage], channel + k);
        if (task_.biased) values[k] += element_or_zero(task_.biases[item_.stage], channel + k);
      }
      store_shared(halo_ + halo_offset(pixel / kTileW + 2, pixel % kTileW + 2, vector),
                   round_channels<Element>(values));
    }
  }

  // Store the channels of a pass; in the last stage, the sum of all stages.
  LWRN_DEVICE void store_pass(int pass) {
    const int stage = item_.stage, last = task_.schedule.stages - 1;
    for (int i = thread(); i < kPassChunks * kPixels * kVectors; i += kThreads) {
      const int vector = i % kVectors, pixel = i / kVectors % kPixels, chunk = i / (kVectors * kPixels);
      const int channel = first_channel_ + pass * kChannels + chunk * kRowChannels<Element> + vector * kVectorSize;
      const int y = pixel / kTileW, x = pixel % kTileW, count = task_.channels - channel;
      if (count <= 0 || y0_ + y >= task_.height || x0_ + x >= task_.width) continue;
      Vector t = load_shared(halo_ + chunk * kHaloBytes + halo_offset(y + 2, x + 2, vector));
      if (stage < last) {
        store_channels<Element>(kept(stage, y, x, channel), t, count, aligned());
        continue;
      }
      float acc[kVectorSize] = {};
      const char* from = task_.x + item_.image * task_.x_image + (y0_ + y) * task_.x_row + (x0_ + x) * task_.x_pixel;
      add_channels<Element>(acc, load_channels<Element>(from + channel * Element::kBytes, count, aligned()));
      for (int earlier = 0; earlier < last; ++earlier)
        add_channels<Element>(acc, load_channels<Element>(kept(earlier, y, x, channel), count, aligned()));
      add_channels<Element>(acc, t);
      store_channels<Element>(task_.out + offset(y, x, channel), round_channels<Element>(acc), count, aligned());
    }
  }

  static constexpr int kThreadVectors = kMaxChunks * kPixels * kVectors / kThreads;

  // Call use(i, y, x, channel, vector) for the vectors of a resident tile that this thread owns, i < kThreadVectors.
  template <class Use>
  LWRN_DEVICE void each_thread_vector(const Use& use) {
    const int index = opaque(thread());  // acc fills the registers: compute the addresses anew
#pragma unroll
    for (int i = 0; i < kThreadVectors; ++i) {
      constexpr int kStep = kThreads / kVectors;
      const int chunk = i * kStep / kPixels, pixel = i * kStep % kPixels + index / kVectors;
      const int vector = index % kVectors, y = pixel / kTileW, x = pixel % kTileW;
      const int channel = chunk * kRowChannels<Element> + vector * kVectorSize;
      if (channel < task_.channels && y0_ + y < task_.height && x0_ + x < task_.width)
        use(i, y, x, channel, halo_ + chunk * kHaloBytes + halo_offset(y + 2, x + 2, vector));
    }
  }

  static LWRN_DEVICE int min(int a, int b) { return a < b ? a : b; }
  static LWRN_DEVICE int max(int a, int b) { return a > b ? a : b; }

  const Task& task_;
  int chunks_;  // chunks of the panel
  char *halo_, *panel_, *weights_;
  int* smem_word_;
  Item item_;
  int y0_, x0_, first_channel_, first_chunk_;
  int top_, left_, bottom_, right_;  // rows and columns of the halo tile that lie in the image
};

}  // namespace lwrn_fast::cuda
