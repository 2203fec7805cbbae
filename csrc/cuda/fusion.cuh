// act(sum over k of up(W_k * x_k + b_k)) as one matrix product over the channels of all inputs, in chunks of 128 bytes.
// A 1x1 convolution and the interpolation commute: the loader interpolates inputs of another size than the result's,
// rounds them to the element type, and the product takes them like the others.
#pragma once
#include "engine.h"
#include "product.cuh"
#include "taps.cuh"

namespace lwrn_fast::cuda {

struct FusionTask {
  struct Input {
    const char *data, *weight, *bias;      // bias: null without
    int64_t stride_n, stride_h, stride_w;  // in bytes
    int64_t height, width;
    int channels;
    bool interpolated;
    bool aligned;  // map and weight allow loads of whole vectors
  } inputs[kMaxInputs];
  int count;
  int chunks;  // chunks of all inputs
  char* out;
  int64_t pixels, height, width;  // pixels of all images; height and width of one
  int out_channels, channel_blocks;
  bool align_corners;
  bool aligned;                // out allows stores of whole vectors
  float min_value, max_value;  // of the activation
};

// A thread block computes a tile of kPixels x kChannels of the result. The pipeline multiplies a chunk while it loads
// the next kPrefetch and while up to kPending earlier products finish. A thread keeps the corners of kCornersInFlight
// vectors in flight to interpolate them; the first loads start before the product.
template <class Element, class Product, int kPrefetch_, int kPending, int kCornersInFlight, int kMinBlocksPerSm_>
struct Fusion {
  using Task = FusionTask;
  static constexpr int kThreads = cuda::kThreads, kMinBlocksPerSm = kMinBlocksPerSm_;
  static constexpr int kPixels = Product::kPixels, kChannels = Product::kChannels;
  static constexpr int kChunkChannels = kRowChannels<Element>, kPrefetch = kPrefetch_;
  static constexpr int kPanelBytes = kPixels * kRowBytes, kStageBytes = kPanelBytes + kChannels * kRowBytes;
  static constexpr double kProductCycles = Product::kCycles;

 private:
  static constexpr int kBytes = Element::kBytes, kVectorChannels = cuda::kVectorChannels<Element>;
  static constexpr int kPipelineStages = kPrefetch + 1 + kPending;
  static constexpr int kThreadRows = kThreads / kVectors;  // rows that all threads load at once, a vector each
  static constexpr int kPanelSteps = kPixels / kThreadRows, kWeightSteps = kChannels / kThreadRows;
  static_assert(kPixels * kChannels * kBytes <= kPipelineStages * kStageBytes,
                "the result is staged in the pipeline's memory");
  static_assert(kCornersInFlight >= 1 && kCornersInFlight <= kPanelSteps);

  // The bilinear sample of an output pixel in an input, in bytes: the offset of its source pixel, and the distances to
  // the pixels right of it and below.
  struct alignas(16) Sample {
    int64_t source, right, below;
    float right_weight, below_weight;
  };

  struct Corners {
    Vector at[4];
  };

 public:
  static int smem_bytes(const Task& task) {
    return kPipelineStages * kStageBytes + kChannels * static_cast<int>(sizeof(float)) +
           task.count * kPixels * static_cast<int>(sizeof(Sample));
  }

  LWRN_DEVICE static void run(const Task& task) {
    char* const buffers = shared_memory();
    float* const bias = reinterpret_cast<float*>(buffers + kPipelineStages * kStageBytes);
    Sample* const samples = reinterpret_cast<Sample*>(bias + kChannels);
    // Compute the summed bias and the bilinear samples of the tile.
    const int64_t first_pixel = block() / task.channel_blocks * int64_t{kPixels};
    const int first_channel = block() % task.channel_blocks * kChannels;
    for (int i = thread(); i < kChannels; i += kThreads) bias[i] = bias_of(task, first_channel + i);
    for (int i = thread(); i < task.count * kPixels; i += kThreads)
      samples[i] = sample_at(task, task.inputs[i / kPixels], first_pixel + i % kPixels);
    sync();

    // Fill the pipeline.
    Loader next{task, samples, first_channel};
    Corners corners[kCornersInFlight];
#pragma unroll 1
    for (int i = 0; i < kPrefetch; ++i) {
      next.begin(buffers + i * kStageBytes, corners);
      next.finish(buffers + i * kStageBytes, corners);
    }
    // Multiply chunk by chunk.
    float acc[Product::kAccCount] = {};
    int i = 0;
#pragma unroll 1
    do {  // runs at least once: a branch around the loop would serialise the wgmma instructions
      wait_copies<kPrefetch - 1>();
      Product::template wait<kPending>(acc);
      Product::publish();
      sync();
      char* const now = buffers + i % kPipelineStages * kStageBytes;
      char* const later = buffers + (i + kPrefetch) % kPipelineStages * kStageBytes;
      next.begin(later, corners);
      Product::add(acc, now, now + kPanelBytes);
      next.finish(later, corners);
    } while (++i < task.chunks);
    // Activate the result, and store it in whole rows by way of shared memory.
    Product::template wait<0>(acc);
    sync();
    write_to_smem(task, acc, bias, buffers);
    sync();
    store(task, buffers, first_pixel, first_channel);
  }

 private:
  LWRN_DEVICE static float bias_of(const Task& task, int channel) {
    float sum = 0;
    if (channel < task.out_channels)
      for (int k = 0; k < task.count; ++k)
        if (task.inputs[k].bias) sum += load_element<Element>(task.inputs[k].bias + int64_t{channel} * kBytes);
    return sum;
  }

  // Return the sample of a pixel. Pixels after the last repeat it, so that loads need no mask.
  LWRN_DEVICE static Sample sample_at(const Task& task, const Task::Input& input, int64_t pixel) {
    if (pixel >= task.pixels) pixel = task.pixels - 1;
    const int64_t row = pixel / task.width, column = pixel - row * task.width;
    const int64_t image = row / task.height, y = row - image * task.height;
    if (!input.interpolated) return {image * input.stride_n + y * input.stride_h + column * input.stride_w, 0, 0, 0, 0};
    const Tap v = tap_at(y, input.height, task.height, task.align_corners);
    const Tap h = tap_at(column, input.width, task.width, task.align_corners);
    return {image * input.stride_n + v.low * input.stride_h + h.low * input.stride_w, (h.high - h.low) * input.stride_w,
            (v.high - v.low) * input.stride_h, h.high_weight, v.high_weight};
  }

  // Loads one chunk after another: begin(), then finish(). A chunk is kPixels rows of an input's channels and kChannels
  // rows of their weights. Both do nothing after the last chunk.
  struct Loader {
    const Task& task;
    const Sample* samples;  // samples of the input's pixels
    int first_channel;
    int k = 0, first = 0;  // input, and its first channel in this chunk
    int index = 0;         // thread(), hidden from the compiler so that no addresses stay in registers

    LWRN_DEVICE int row(int step) const { return index / kVectors + step * kThreadRows; }
    LWRN_DEVICE int vector() const { return index % kVectors; }
    LWRN_DEVICE int channel() const { return first + vector() * kVectorChannels; }  // first channel of the vector
    LWRN_DEVICE const Task::Input& input() const { return task.inputs[k]; }
    LWRN_DEVICE const char* source(const Sample& p) const {
      return input().data + p.source + int64_t{channel()} * kBytes;
    }

    // Start the asynchronous copies of weights and of pixels that need no interpolation, and the first loads of
    // corners.
    LWRN_DEVICE void begin(char* buffer, Corners* corners) {
      index = opaque(thread());
      if (k < task.count) {
        const int64_t channels = input().channels;
        copy_rows<kWeightSteps>(buffer + kPanelBytes, task.out_channels - first_channel, [&](int i) {
          return input().weight + ((first_channel + i) * channels + channel()) * kBytes;
        });
        if (!input().interpolated) {
          copy_rows<kPanelSteps>(buffer, kPixels, [&](int i) { return source(samples[i]); });
        } else if (input().aligned && channel() < channels) {
#pragma unroll
          for (int step = 0; step < kCornersInFlight; ++step) corners[step] = corners_at(samples[row(step)]);
        }
      }
      commit_copies();
    }

    // Copy the first `rows` rows of a matrix and zero the others. from(row): the address of this thread's vector.
    template <int kSteps, class From>
    LWRN_DEVICE void copy_rows(char* matrix, int rows, const From& from) const {
      const int count = input().channels - channel();
      if (input().aligned) {
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
          copy_async(matrix + swizzled_offset(row(step), vector()), from(row(step)), row(step) < rows && count > 0);
      } else {
#pragma unroll 1
        for (int step = 0; step < kSteps; ++step)
          store_shared(matrix + swizzled_offset(row(step), vector()),
                       load_channels<Element>(from(row(step)), row(step) < rows ? count : 0, false));
      }
    }

    // Interpolate the pixels, and advance to the next chunk.
    LWRN_DEVICE void finish(char* buffer, Corners* corners) {
      if (k == task.count) return;
      index = opaque(thread());
      if (input().interpolated) {
        if (input().aligned && channel() < input().channels) {
#pragma unroll
          for (int step = 0; step < kPanelSteps; ++step) {
            const Sample& p = samples[row(step)];
            const Corners at = corners[step % kCornersInFlight];
            if (step + kCornersInFlight < kPanelSteps)
              corners[step % kCornersInFlight] = corners_at(samples[row(step + kCornersInFlight)]);
            interpolate<4>(buffer, step, p, [&](int corner) { return at.at[corner]; });
          }
        } else {
          const int count = input().channels - channel();
#pragma unroll 1
          for (int step = 0; step < kPanelSteps; ++step) {
            const Sample& p = samples[row(step)];
            interpolate<1>(buffer, step, p, [&](int corner) {
              return load_channels<Element>(source(p) + (corner & 1 ? p.right : 0) + (corner & 2 ? p.below : 0), count,
                                            false);
            });
          }
        }
      }
      first += kChunkChannels;
      if (first < input().channels) return;
      first = 0;
      ++k;
      samples += kPixels;
    }

    LWRN_DEVICE Corners corners_at(const Sample& p) const {
      const char *const top = source(p), *const bottom = top + p.below;
      return {
          {load_constant(top), load_constant(top + p.right), load_constant(bottom), load_constant(bottom + p.right)}};
    }

    template <int kAtOnce, class Corner>
    LWRN_DEVICE void interpolate(char* buffer, int step, const Sample& p, const Corner& corner) const {
      float acc[kVectorChannels] = {};
#pragma unroll kAtOnce
      for (int i = 0; i < 4; ++i) {
        const float weight =
            (i & 1 ? p.right_weight : 1.0f - p.right_weight) * (i & 2 ? p.below_weight : 1.0f - p.below_weight);
        const Vector v = corner(i);
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          float values[kPerWord<Element>];
          unpack<Element>(v.words[word], values);
#pragma unroll
          for (int j = 0; j < kPerWord<Element>; ++j) acc[word * kPerWord<Element> + j] += values[j] * weight;
        }
      }
      store_shared(buffer + swizzled_offset(row(step), vector()), round_channels<Element>(acc));
    }
  };

  // Return the address of an element of the result in shared memory: matrices of kChunkChannels channels, one after
  // another.
  LWRN_DEVICE static char* smem_result(char* buffers, int pixel, int channel) {
    return buffers + channel / kChunkChannels * kPanelBytes +
           swizzled_offset(pixel, channel % kChunkChannels / kVectorChannels) + channel % kVectorChannels * kBytes;
  }

  LWRN_DEVICE static void write_to_smem(const Task& task, const float (&acc)[Product::kAccCount], const float* bias,
                                        char* buffers) {
    const auto activate = [&](float x) {  // NaN stays NaN
      x = x < task.min_value ? task.min_value : x;
      return x > task.max_value ? task.max_value : x;
    };
    Product::each_pair(acc, [&](int pixel, int channel, float a, float b) {
      store_pair<Element>(smem_result(buffers, pixel, channel), activate(a + bias[channel]),
                          activate(b + bias[channel + 1]));
    });
  }

  LWRN_DEVICE static void store(const Task& task, char* buffers, int64_t first_pixel, int first_channel) {
    constexpr int kRow = kChannels / kVectorChannels;  // vectors of a row
#pragma unroll 4
    for (int i = thread(); i < kPixels * kRow; i += kThreads) {
      const int pixel = i / kRow, channel = i % kRow * kVectorChannels;
      const int count = task.out_channels - first_channel - channel;
      if (first_pixel + pixel >= task.pixels || count <= 0) continue;
      store_channels<Element>(task.out + ((first_pixel + pixel) * task.out_channels + first_channel + channel) * kBytes,
                              load_shared(smem_result(buffers, pixel, channel)), count, task.aligned);
    }
  }
};

}  // namespace lwrn_fast::cuda
