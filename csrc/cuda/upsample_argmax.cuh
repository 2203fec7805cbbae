// The class of the largest upsampled logit, per label. A block finds the labels of a tile: it interpolates the logits
// down the columns into shared memory, a row for each row of labels, and each thread interpolates along those rows.
#pragma once
#include "taps.cuh"
#include "tile.cuh"

namespace lwrn_fast::cuda {

struct UpsampleArgmaxTask {
  const char* logits;
  int64_t stride_n, stride_h, stride_w, stride_c;  // in bytes
  int64_t source_height, source_width, height, width;
  int64_t tiles, tiles_y, tiles_x;  // tiles: of all images
  int columns;                      // of a tile
  int classes;
  int pitch;              // of a pixel in shared memory, in floats
  bool classes_adjacent;  // in memory, more than the pixels of a row
  bool align_corners;
  uint8_t* labels;
};

template <class Kind, bool kSameSize>
struct UpsampleArgmax {
  using Task = UpsampleArgmaxTask;
  static constexpr int kThreads = cuda::kThreads, kPrograms = 4;
  static constexpr int kRows = 8, kMostColumns = 64;  // of a tile of labels
  static constexpr int kMostSources = 34;             // columns of logits that a tile needs
  static constexpr int kPassClasses = 32;             // that are in shared memory at once

 private:
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kThreadRows = kRows / (kWarps / (kMostColumns / 32));  // at most

  // A row of labels: the rows of logits above and below, in bytes.
  struct Row {
    int64_t above, below;
    float below_weight;
  };

  // NaN is the largest, and the first of the largest stays.
  struct Best {
    float value;
    int label;
    LWRN_DEVICE void offer(float candidate, int candidate_label) {
      const bool wins = !(candidate <= value) && value == value;
      value = wins ? candidate : value;
      label = wins ? candidate_label : label;
    }
  };

 public:
  static int shared_bytes(const Task& task) {
    return kRows * (static_cast<int>(sizeof(Row)) + kMostSources * task.pitch * static_cast<int>(sizeof(float)));
  }

  LWRN_DEVICE static void run(const Task& task) {
    for (int64_t tile = block(); tile < task.tiles; tile += blocks()) {
      const int64_t row = tile / task.tiles_x, image = row / task.tiles_y;
      label_tile(task, image, (row - image * task.tiles_y) * kRows, (tile - row * task.tiles_x) * task.columns);
    }
  }

 private:
  LWRN_DEVICE static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
  LWRN_DEVICE static Tap column_tap(const Task& task, int64_t x) {
    return tap_at(smaller(x, task.width - 1), task.source_width, task.width, task.align_corners);
  }

  LWRN_DEVICE static void label_tile(const Task& task, int64_t image, int64_t first_y, int64_t first_x) {
    Row* const rows = reinterpret_cast<Row*>(shared_memory());
    float* const logits = reinterpret_cast<float*>(rows + kRows);  // kRows x kMostSources x pitch
    const int groups = (task.columns + 31) / 32;                   // of columns, one for a warp
    const int warp = thread() / 32, column = warp % groups * 32 + thread() % 32;
    const int64_t first_source = column_tap(task, first_x).low;
    const int sources = static_cast<int>(column_tap(task, first_x + task.columns - 1).high - first_source) + 1;
    const bool inside = column < task.columns && first_x + column < task.width;
    const Tap tap = column_tap(task, first_x + (inside ? column : 0));
    const int left = static_cast<int>(tap.low - first_source), right = static_cast<int>(tap.high - first_source);

    sync();  // until then the tile before is being read
    if (thread() < kRows) rows[thread()] = row_at(task, first_y + thread());
    Best best[kThreadRows];
#pragma unroll
    for (Best& one : best) one = {-__builtin_huge_valf(), 0};
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
        const float* const pixels = logits + row * kMostSources * task.pitch;
        compare(pixels + left * task.pitch, pixels + right * task.pitch, tap.high_weight, first, classes, best[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      const int row = warp / groups + i * (kWarps / groups);
      if (inside && row < kRows && first_y + row < task.height)
        task.labels[(image * task.height + first_y + row) * task.width + first_x + column] =
            static_cast<uint8_t>(best[i].label);
    }
  }

  // Rows after the last repeat it.
  LWRN_DEVICE static Row row_at(const Task& task, int64_t y) {
    const Tap tap = tap_at(smaller(y, task.height - 1), task.source_height, task.height, task.align_corners);
    return {tap.low * task.stride_h, tap.high * task.stride_h, tap.high_weight};
  }

  // from: of the tile's first column and the pass's first class, in the image's first row.
  LWRN_DEVICE static void interpolate_columns(const Task& task, const char* from, int sources, int classes,
                                              const Row* rows, float* to) {
    const int warp = thread() / 32, lane = thread() % 32;
    const int outer_count = task.classes_adjacent ? sources : classes;
    const int inner_count = task.classes_adjacent ? classes : sources;
    for (int outer = warp; outer < outer_count; outer += kWarps)
      for (int inner = lane; inner < inner_count; inner += 32) {
        const int source = task.classes_adjacent ? outer : inner, one = task.classes_adjacent ? inner : outer;
        const char* const logit = from + source * task.stride_w + one * task.stride_c;
        float values[kRows];
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          values[row] = load_number<Kind>(logit + rows[row].above);
          if constexpr (!kSameSize)
            values[row] = between(values[row], load_number<Kind>(logit + rows[row].below), rows[row].below_weight);
        }
#pragma unroll
        for (int row = 0; row < kRows; ++row) to[(row * kMostSources + source) * task.pitch + one] = values[row];
      }
  }

  LWRN_DEVICE static void compare(const float* left, const float* right, float right_weight, int first, int classes,
                                  Best& best) {
    for (int i = 0; i < classes; i += 4) {
      const Vector a = load_shared(left + i), b = load_shared(right + i);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (i + k >= classes) continue;
        float low[1], high[1];
        unpack<F32>(a.words[k], low);
        unpack<F32>(b.words[k], high);
        best.offer(kSameSize ? low[0] : between(low[0], high[0], right_weight), first + i + k);
      }
    }
  }
};

}  // namespace lwrn_fast::cuda
