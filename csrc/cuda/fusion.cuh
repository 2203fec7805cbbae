// act(sum over k of up(W_k * x_k + b_k)) as one product over the planes of all inputs, chunk after chunk of 128 bytes.
// A 1x1 convolution and the interpolation commute: inputs of another size than the result's are interpolated while they
// are loaded, rounded to the maps' type, and multiplied like the others.
#pragma once
#include "engine.h"
#include "product.cuh"
#include "taps.cuh"

namespace lwrn_fast::cuda {

struct FusionTask {
  struct Input {
    const char *data, *weight, *bias;      // no bias: null
    int64_t stride_n, stride_h, stride_w;  // in bytes
    int64_t height, width;
    int planes;
    bool interpolated;
    bool aligned;  // map and weight can be read by whole vectors
  } inputs[kMostInputs];
  int count;
  int chunks;  // of all inputs
  char* out;
  int64_t pixels, height, width;  // pixels: of all images
  int out_planes, plane_blocks;
  bool align_corners;
  bool aligned;  // out can be written by whole vectors
  float least, most;
};

// A block computes kPixels x kPlanes of the result. While a chunk is multiplied, kAhead others are being loaded, and
// kPending before it may be still in the product. Of the vectors that a thread interpolates, kEarly are being read at
// once, the first of them already when the product begins.
template <class Kind, class Product, int kAhead_, int kPending, int kEarly, int kPrograms_>
struct Fusion {
  using Task = FusionTask;
  static constexpr int kThreads = cuda::kThreads, kPrograms = kPrograms_;
  static constexpr int kPixels = Product::kPixels, kPlanes = Product::kPlanes;
  static constexpr int kChunkPlanes = kRowPlanes<Kind>, kAhead = kAhead_;
  static constexpr int kPanelBytes = kPixels * kRowBytes, kBufferBytes = kPanelBytes + kPlanes * kRowBytes;
  static constexpr double kProductCycles = Product::kCycles;

 private:
  static constexpr int kBytes = Kind::kBytes, kVectorPlanes = cuda::kVectorPlanes<Kind>;
  static constexpr int kBuffers = kAhead + 1 + kPending;
  static constexpr int kThreadRows = kThreads / kVectors;  // that all threads load at once, a vector each
  static constexpr int kPanelSteps = kPixels / kThreadRows, kWeightSteps = kPlanes / kThreadRows;
  static_assert(kPixels * kPlanes * kBytes <= kBuffers * kBufferBytes, "the result is staged in the buffers");
  static_assert(kEarly >= 1 && kEarly <= kPanelSteps);

  // Of an output pixel in an input, in bytes: its source, and how far the pixels right of it and below are.
  struct alignas(16) Place {
    int64_t source, right, below;
    float right_weight, below_weight;
  };

  struct Corners {
    Vector at[4];
  };

 public:
  static int shared_bytes(const Task& task) {
    return kBuffers * kBufferBytes + kPlanes * static_cast<int>(sizeof(float)) +
           task.count * kPixels * static_cast<int>(sizeof(Place));
  }

  LWRN_DEVICE static void run(const Task& task) {
    char* const buffers = shared_memory();
    float* const bias = reinterpret_cast<float*>(buffers + kBuffers * kBufferBytes);
    Place* const places = reinterpret_cast<Place*>(bias + kPlanes);
    const int64_t first_pixel = block() / task.plane_blocks * int64_t{kPixels};
    const int first_plane = block() % task.plane_blocks * kPlanes;
    for (int i = thread(); i < kPlanes; i += kThreads) bias[i] = bias_of(task, first_plane + i);
    for (int i = thread(); i < task.count * kPixels; i += kThreads)
      places[i] = place_of(task, task.inputs[i / kPixels], first_pixel + i % kPixels);
    sync();

    Loader next{task, places, first_plane};
    Corners corners[kEarly];
#pragma unroll 1
    for (int i = 0; i < kAhead; ++i) {
      next.begin(buffers + i * kBufferBytes, corners);
      next.finish(buffers + i * kBufferBytes, corners);
    }
    float sums[Product::kCount] = {};
    int i = 0;
#pragma unroll 1
    do {  // at least once: a way around the loop would make Hopper's products wait for each other
      wait_copies<kAhead - 1>();
      Product::template wait<kPending>(sums);
      Product::publish();
      sync();
      char* const now = buffers + i % kBuffers * kBufferBytes;
      char* const later = buffers + (i + kAhead) % kBuffers * kBufferBytes;
      next.begin(later, corners);
      Product::add(sums, now, now + kPanelBytes);
      next.finish(later, corners);
    } while (++i < task.chunks);
    Product::template wait<0>(sums);
    sync();
    stage(task, sums, bias, buffers);
    sync();
    store(task, buffers, first_pixel, first_plane);
  }

 private:
  LWRN_DEVICE static float bias_of(const Task& task, int plane) {
    float sum = 0;
    if (plane < task.out_planes)
      for (int k = 0; k < task.count; ++k)
        if (task.inputs[k].bias) sum += load_number<Kind>(task.inputs[k].bias + int64_t{plane} * kBytes);
    return sum;
  }

  // Pixels after the last repeat it, so that no load needs to ask.
  LWRN_DEVICE static Place place_of(const Task& task, const Task::Input& input, int64_t pixel) {
    if (pixel >= task.pixels) pixel = task.pixels - 1;
    const int64_t row = pixel / task.width, column = pixel - row * task.width;
    const int64_t image = row / task.height, y = row - image * task.height;
    if (!input.interpolated) return {image * input.stride_n + y * input.stride_h + column * input.stride_w, 0, 0, 0, 0};
    const Tap v = tap_at(y, input.height, task.height, task.align_corners);
    const Tap h = tap_at(column, input.width, task.width, task.align_corners);
    return {image * input.stride_n + v.low * input.stride_h + h.low * input.stride_w, (h.high - h.low) * input.stride_w,
            (v.high - v.low) * input.stride_h, h.high_weight, v.high_weight};
  }

  // Fills buffers with one chunk after another: begin(), then finish(). A chunk is kPixels rows of an input's planes
  // and kPlanes rows of their weights. After the last chunk there is nothing to do.
  struct Loader {
    const Task& task;
    const Place* places;  // those of the input's pixels
    int first_plane;
    int k = 0, first = 0;  // the input, and its first plane in this chunk
    int index = 0;         // this thread, computed anew so that no addresses stay in registers

    LWRN_DEVICE int row(int step) const { return index / kVectors + step * kThreadRows; }
    LWRN_DEVICE int vector() const { return index % kVectors; }
    LWRN_DEVICE int plane() const { return first + vector() * kVectorPlanes; }  // the vector's first
    LWRN_DEVICE const Task::Input& input() const { return task.inputs[k]; }
    LWRN_DEVICE const char* source(const Place& p) const { return input().data + p.source + int64_t{plane()} * kBytes; }

    // Weights, and pixels that are as they lie, are copied by the hardware meanwhile.
    LWRN_DEVICE void begin(char* buffer, Corners* corners) {
      index = opaque(thread());
      if (k < task.count) {
        const int64_t planes = input().planes;
        copy_rows<kWeightSteps>(buffer + kPanelBytes, task.out_planes - first_plane, [&](int i) {
          return input().weight + ((first_plane + i) * planes + plane()) * kBytes;
        });
        if (!input().interpolated) {
          copy_rows<kPanelSteps>(buffer, kPixels, [&](int i) { return source(places[i]); });
        } else if (input().aligned && plane() < planes) {
#pragma unroll
          for (int step = 0; step < kEarly; ++step) corners[step] = corners_at(places[row(step)]);
        }
      }
      commit_copies();
    }

    // The first `rows` rows of a matrix; the others become zero. from(row): where this thread's vector of a row lies.
    template <int kSteps, class From>
    LWRN_DEVICE void copy_rows(char* matrix, int rows, const From& from) const {
      const int count = input().planes - plane();
      if (input().aligned) {
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
          copy_async(matrix + place(row(step), vector()), from(row(step)), row(step) < rows && count > 0);
      } else {
#pragma unroll 1
        for (int step = 0; step < kSteps; ++step)
          store_shared(matrix + place(row(step), vector()),
                       load_planes<Kind>(from(row(step)), row(step) < rows ? count : 0, false));
      }
    }

    // Interpolates, and goes on to the next chunk.
    LWRN_DEVICE void finish(char* buffer, Corners* corners) {
      if (k == task.count) return;
      index = opaque(thread());
      if (input().interpolated) {
        if (input().aligned && plane() < input().planes) {
#pragma unroll
          for (int step = 0; step < kPanelSteps; ++step) {
            const Place& p = places[row(step)];
            const Corners at = corners[step % kEarly];
            if (step + kEarly < kPanelSteps) corners[step % kEarly] = corners_at(places[row(step + kEarly)]);
            interpolate<4>(buffer, step, p, [&](int corner) { return at.at[corner]; });
          }
        } else {
          const int count = input().planes - plane();
#pragma unroll 1
          for (int step = 0; step < kPanelSteps; ++step) {
            const Place& p = places[row(step)];
            interpolate<1>(buffer, step, p, [&](int corner) {
              return load_planes<Kind>(source(p) + (corner & 1 ? p.right : 0) + (corner & 2 ? p.below : 0), count,
                                       false);
            });
          }
        }
      }
      first += kChunkPlanes;
      if (first < input().planes) return;
      first = 0;
      ++k;
      places += kPixels;
    }

    LWRN_DEVICE Corners corners_at(const Place& p) const {
      const char *const top = source(p), *const bottom = top + p.below;
      return {
          {load_constant(top), load_constant(top + p.right), load_constant(bottom), load_constant(bottom + p.right)}};
    }

    template <int kAtOnce, class Corner>
    LWRN_DEVICE void interpolate(char* buffer, int step, const Place& p, const Corner& corner) const {
      float sums[kVectorPlanes] = {};
#pragma unroll kAtOnce
      for (int i = 0; i < 4; ++i) {
        const float weight =
            (i & 1 ? p.right_weight : 1.0f - p.right_weight) * (i & 2 ? p.below_weight : 1.0f - p.below_weight);
        const Vector v = corner(i);
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          float values[kPerWord<Kind>];
          unpack<Kind>(v.words[word], values);
#pragma unroll
          for (int j = 0; j < kPerWord<Kind>; ++j) sums[word * kPerWord<Kind> + j] += values[j] * weight;
        }
      }
      store_shared(buffer + place(row(step), vector()), round_planes<Kind>(sums));
    }
  };

  // The result in shared memory: matrices of kChunkPlanes planes, one after another.
  LWRN_DEVICE static char* staged(char* buffers, int pixel, int plane) {
    return buffers + plane / kChunkPlanes * kPanelBytes + place(pixel, plane % kChunkPlanes / kVectorPlanes) +
           plane % kVectorPlanes * kBytes;
  }

  LWRN_DEVICE static void stage(const Task& task, const float (&sums)[Product::kCount], const float* bias,
                                char* buffers) {
    const auto activate = [&](float x) {  // NaN stays NaN
      x = x < task.least ? task.least : x;
      return x > task.most ? task.most : x;
    };
    Product::each_pair(sums, [&](int pixel, int plane, float a, float b) {
      store_pair<Kind>(staged(buffers, pixel, plane), activate(a + bias[plane]), activate(b + bias[plane + 1]));
    });
  }

  LWRN_DEVICE static void store(const Task& task, char* buffers, int64_t first_pixel, int first_plane) {
    constexpr int kRow = kPlanes / kVectorPlanes;  // vectors
#pragma unroll 4
    for (int i = thread(); i < kPixels * kRow; i += kThreads) {
      const int pixel = i / kRow, plane = i % kRow * kVectorPlanes;
      const int count = task.out_planes - first_plane - plane;
      if (first_pixel + pixel >= task.pixels || count <= 0) continue;
      store_planes<Kind>(task.out + ((first_pixel + pixel) * task.out_planes + first_plane + plane) * kBytes,
                         load_shared(staged(buffers, pixel, plane)), count, task.aligned);
    }
  }
};

}  // namespace lwrn_fast::cuda
