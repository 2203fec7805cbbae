// The argmax over the classes of the upsampled logits. A block computes a tile of labels: it interpolates the logits
// down the columns into shared memory, a row for each row of labels, and each thread interpolates along those rows.
#pragma once
#include "taps.cuh"
#include "tile.cuh"

namespace lwrn_fast::cuda {

struct UpsampleArgmaxTask {
  const char* logits;
  int64_t stride_n, stride_h, stride_w, stride_c;  // in bytes
  int64_t source_height, source_width, height, width;
  int64_t tiles, tiles_y, tiles_x;  // tiles of all images; tiles_y and tiles_x of one
  int columns;                      // columns of a tile
  int classes;
  int pixel_stride;       // between pixels in shared memory, in floats
  bool classes_adjacent;  // true where classes, not the pixels of a row, are adjacent in memory
  bool align_corners;
  uint8_t* labels;
};

template <class Element, bool kSameSize>
struct UpsampleArgmax {
  using Task = UpsampleArgmaxTask;
  static constexpr int kThreads = cuda::kThreads, kMinBlocksPerSm = 4;
  static constexpr int kRows = 8, kMaxColumns = 64;  // size of a tile of labels
  static constexpr int kMaxSources = 34;             // columns of logits of a tile
  static constexpr int kPassClasses = 32;            // classes in shared memory at once

 private:
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kThreadRows = kRows / (kWarps / (kMaxColumns / 32));  // rows of a thread, at most

  // The rows of logits above and below a row of labels, as offsets in bytes.
  struct Row {
    int64_t above, below;
    float below_weight;
  };

  // The running argmax. NaN counts as the maximum, and ties go to the first.
  struct Argmax {
    float value;
    int label;
    LWRN_DEVICE void update(float candidate, int candidate_label) {
      const bool is_new = !(candidate <= value) && value == value;
      value = is_new ? candidate : value;
      label = is_new ? candidate_label : label;
    }
  };

 public:
  static int smem_bytes(const Task& task) {
    return kRows * (static_cast<int>(sizeof(Row)) + kMaxSources * task.pixel_stride * static_cast<int>(sizeof(float)));
  }

  LWRN_DEVICE static void run(const Task& task) {
    for (int64_t tile = block(); tile < task.tiles; tile += blocks()) {
      const int64_t row = tile / task.tiles_x, image = row / task.tiles_y;
      label_tile(task, image, (row - image * task.tiles_y) * kRows, (tile - row * task.tiles_x) * task.columns);
    }
  }

 private:
  LWRN_DEVICE static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
  LWRN_DEVICE static Tap column_tap(const Task& task, int64_t x) {
    return tap_at(min(x, task.width - 1), task.source_width, task.width, task.align_corners);
  }

  LWRN_DEVICE static void label_tile(const Task& task, int64_t image, int64_t first_y, int64_t first_x) {
    Row* const rows = reinterpret_cast<Row*>(shared_memory());
    float* const logits = reinterpret_cast<float*>(rows + kRows);  // kRows x kMaxSources x pixel_stride
    const int groups = (task.columns + 31) / 32;                   // groups of 32 columns, one per warp
    const int warp = thread() / 32, column = warp % groups * 32 + thread() % 32;
    const int64_t first_source = column_tap(task, first_x).low;
    const int sources = static_cast<int>(column_tap(task, first_x + task.columns - 1).high - first_source) + 1;
    // Find the taps of this thread's column.
    const bool mask = column < task.columns && first_x + column < task.width;
    const Tap tap = column_tap(task, first_x + (mask ? column : 0));
    const int left = static_cast<int>(tap.low - first_source), right = static_cast<int>(tap.high - first_source);

    sync();  // waits for the reads of the previous tile
    if (thread() < kRows) rows[thread()] = row_at(task, first_y + thread());
    Argmax argmax[kThreadRows];
#pragma unroll
    for (Argmax& row : argmax) row = {-__builtin_huge_valf(), 0};
    // Interpolate and compare the classes, a pass of kPassClasses at a time.
    for (int first = 0; first < task.classes; first += kPassClasses) {
      const int classes = task.classes - first < kPassClasses ? task.classes - first : kPassClasses;
      sync();
      interpolate_columns(task,
                          task.logits + image * task.stride_n + first_source * task.stride_w + first * task.stride_c,
                          sources, classes, rows, logits);
      sync();
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        const int row = warp / groups + i * (kWarps / groups);
        if (row >= kRows) continue;
        const float* const pixels = logits + row * kMaxSources * task.pixel_stride;
        update_argmax(pixels + left * task.pixel_stride, pixels + right * task.pixel_stride, tap.high_weight, first,
                      classes, argmax[i]);
      }
    }
    // Store the labels.
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      const int row = warp / groups + i * (kWarps / groups);
      if (mask && row < kRows && first_y + row < task.height)
        task.labels[(image * task.height + first_y + row) * task.width + first_x + column] =
            static_cast<uint8_t>(argmax[i].label);
    }
  }

  // Return the source rows of a row of labels. Rows after the last repeat it.
  LWRN_DEVICE static Row row_at(const Task& task, int64_t y) {
    const Tap tap = tap_at(min(y, task.height - 1), task.source_height, task.height, task.align_corners);
    return {tap.low * task.stride_h, tap.high * task.stride_h, tap.high_weight};
  }

  // Interpolate the logits of a pass down the columns. from: the address of the tile's first column and the pass's
  // first class, in the image's first row.
  LWRN_DEVICE static void interpolate_columns(const Task& task, const char* from, int sources, int classes,
                                              const Row* rows, float* to) {
    const int warp = thread() / 32, lane = thread() % 32;
    const int outer_count = task.classes_adjacent ? sources : classes;
    const int inner_count = task.classes_adjacent ? classes : sources;
    for (int outer = warp; outer < outer_count; outer += kWarps)
      for (int inner = lane; inner < inner_count; inner += 32) {
        const int source = task.classes_adjacent ? outer : inner, label = task.classes_adjacent ? inner : outer;
        const char* const logit = from + source * task.stride_w + label * task.stride_c;
        float values[kRows];
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          values[row] = load_element<Element>(logit + rows[row].above);
          if constexpr (!kSameSize)
            values[row] = between(values[row], load_element<Element>(logit + rows[row].below), rows[row].below_weight);
        }
#pragma unroll
        for (int row = 0; row < kRows; ++row)
          to[(row * kMaxSources + source) * task.pixel_stride + label] = values[row];
      }
  }

  LWRN_DEVICE static void update_argmax(const float* left, const float* right, float right_weight, int first,
                                        int classes, Argmax& argmax) {
    for (int i = 0; i < classes; i += 4) {
      const Vector a = load_shared(left + i), b = load_shared(right + i);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (i + k >= classes) continue;
        float low[1], high[1];
        unpack<F32>(a.words[k], low);
        unpack<F32>(b.words[k], high);
        argmax.update(kSameSize ? low[0] : between(low[0], high[0], right_weight), first + i + k);
      }
    }
  }
};

}  // namespace lwrn_fast::cuda
