#include "../upsample_argmax.h"

#include "bilinear.h"
#include "kernel.h"

// One row of labels at a time: the two rows of logits around it are interpolated into one row per class, then each
// vector of pixels is interpolated along the row and compared class by class. The upsampled logits exist only in
// registers.
namespace lwrn_fast::LWRN_ISA {
namespace {

// kWidth neighbouring pixels of a row of labels: their two source pixels, counted from `start`.
struct Span {
  int64_t start;
  int32_t low[kWidth], high[kWidth];
  float high_weight[kWidth];
  bool near;  // all lie in the kWidth pixels from `start`
};

#if defined(__AVX512F__)
using Index = __m512i;
inline Index index_of(const int32_t* p) { return _mm512_loadu_si512(p); }
inline vf pick(vf row, Index index) { return _mm512_permutexvar_ps(index, row); }
// The largest value so far, or the first NaN, and its class.
struct Best {
  vf value;
  Index label;
  void offer(vf candidate, int32_t name) {
    const __mmask16 wins =
        _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(value, value, _CMP_ORD_Q), candidate, value, _CMP_NLE_UQ);
    value = _mm512_mask_mov_ps(value, wins, candidate);
    label = _mm512_mask_mov_epi32(label, wins, _mm512_set1_epi32(name));
  }
  void labels(int32_t* to) const { _mm512_storeu_si512(to, label); }
};
inline Index zero_index() { return _mm512_setzero_si512(); }
#elif defined(__AVX2__)
using Index = __m256i;
inline Index index_of(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline vf pick(vf row, Index index) { return _mm256_permutevar8x32_ps(row, index); }
struct Best {
  vf value;
  Index label;
  void offer(vf candidate, int32_t name) {
    const vf wins =
        _mm256_and_ps(_mm256_cmp_ps(candidate, value, _CMP_NLE_UQ), _mm256_cmp_ps(value, value, _CMP_ORD_Q));
    value = _mm256_blendv_ps(value, candidate, wins);
    label = _mm256_blendv_epi8(label, _mm256_set1_epi32(name), _mm256_castps_si256(wins));
  }
  void labels(int32_t* to) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), label); }
};
inline Index zero_index() { return _mm256_setzero_si256(); }
#else
using Index = vi;
inline Index index_of(const int32_t* p) {
  Index x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline vf pick(vf row, Index index) { return vf{row[index[0]], row[index[1]], row[index[2]], row[index[3]]}; }
struct Best {
  vf value;
  Index label;
  void offer(vf candidate, int32_t name) {
    const vi wins = ~(candidate <= value) & (value == value);
    value = select(wins, candidate, value);
    label = (wins & name) | (~wins & label);
  }
  void labels(int32_t* to) const { std::memcpy(to, &label, sizeof label); }
};
inline Index zero_index() { return Index{}; }
#endif

template <class T>
class UpsampleArgmax {
 public:
  UpsampleArgmax(const UpsampleArgmaxArgs& args, int64_t threads, char* workspace)
      : args_(args), threads_(threads), workspace_(workspace) {}

  int64_t workspace_bytes() const { return spans_bytes() + threads_ * worker_bytes(); }

  void run(const Threads& threads) {
    for (int64_t i = 0; i < spans(); ++i) fill_span(i);
    // Workers take runs of rows, so that neighbouring labels of one worker share the rows of logits they lie between.
    const int64_t rows = args_.logits.batch * args_.height;
    const int64_t run = clamp(rows / (8 * threads.count), 1, 16), runs = ceil_div(rows, run);
    WorkQueue queue(runs);
    threads.each_worker([&](int64_t worker) {
      Rows cached{-1, {-1, -1}};
      for (int64_t i; queue.take(&i);)
        for (int64_t row = i * run; row < min(rows, (i + 1) * run); ++row)
          label_row(row / args_.height, row % args_.height, worker, &cached);
    });
  }

 private:
  // The two rows of logits that a worker holds, by class, in float32.
  struct Rows {
    int64_t image;
    int64_t row[2];
  };

  int64_t classes() const { return args_.logits.channels; }
  // Labels of the logits' own size are not interpolated: a weight of 0 would make an infinity NaN.
  bool same_size() const { return args_.logits.height == args_.height && args_.logits.width == args_.width; }
  int64_t spans() const { return ceil_div(args_.width, kWidth); }
  int64_t spans_bytes() const { return round_up(spans() * static_cast<int64_t>(sizeof(Span)), 64); }
  // Return the floats of a row of one class, with room for a vector that begins at its last pixel.
  int64_t row_stride() const { return round_up(args_.logits.width + kWidth, 16); }
  int64_t row_floats() const { return classes() * row_stride(); }
  int64_t worker_bytes() const { return 3 * row_floats() * static_cast<int64_t>(sizeof(float)); }
  Span* span(int64_t i) const { return reinterpret_cast<Span*>(workspace_) + i; }
  float* rows(int64_t worker) const {
    return reinterpret_cast<float*>(workspace_ + spans_bytes() + worker * worker_bytes());
  }

  void fill_span(int64_t i) const {
    Span& s = *span(i);
    for (int lane = 0; lane < kWidth; ++lane) {
      const int64_t x = min(i * kWidth + lane, args_.width - 1);
      const Tap tap = tap_at(x, args_.logits.width, args_.width, args_.align_corners);
      if (lane == 0) s.start = tap.low;
      s.low[lane] = static_cast<int32_t>(tap.low - s.start);
      s.high[lane] = static_cast<int32_t>(tap.high - s.start);
      s.high_weight[lane] = tap.high_weight;
    }
    s.near = s.high[kWidth - 1] < kWidth;
  }

  void read_row(int64_t image, int64_t y, float* to) const {
    const MapView& m = args_.logits;
    const T* from = static_cast<const T*>(m.data) + image * m.stride_n + y * m.stride_h;
    if (args_.stride_c == 1) {  // by pixel: read in order, write across
      for (int64_t x = 0; x < m.width; ++x)
        for (int64_t c = 0; c < classes(); ++c) to[c * row_stride() + x] = to_float(from[x * m.stride_w + c]);
    } else {
      for (int64_t c = 0; c < classes(); ++c)
        for (int64_t x = 0; x < m.width; ++x)
          to[c * row_stride() + x] = to_float(from[c * args_.stride_c + x * m.stride_w]);
    }
    for (int64_t c = 0; c < classes(); ++c)
      for (int64_t x = m.width; x < row_stride(); ++x) to[c * row_stride() + x] = 0.0f;
  }

  // Return row y, and read it into one of the worker's two unless one holds it; row `other` is not overwritten.
  const float* held_row(int64_t image, int64_t y, int64_t other, int64_t worker, Rows* cached) const {
    if (cached->image != image) *cached = {image, {-1, -1}};
    int slot = cached->row[0] == y ? 0 : cached->row[1] == y ? 1 : -1;
    if (slot < 0) {
      slot = cached->row[0] == other ? 1 : 0;
      read_row(image, y, rows(worker) + slot * row_floats());
      cached->row[slot] = y;
    }
    return rows(worker) + slot * row_floats();
  }

  void label_row(int64_t image, int64_t y, int64_t worker, Rows* cached) const {
    const Tap tap = tap_at(y, args_.logits.height, args_.height, args_.align_corners);
    const float* low = held_row(image, tap.low, tap.high, worker, cached);
    const float* high = held_row(image, tap.high, tap.low, worker, cached);
    float* row = rows(worker) + 2 * row_floats();
    const vf low_weight = splat(tap.low_weight), high_weight = splat(tap.high_weight);
    for (int64_t i = 0; i < row_floats(); i += kWidth)
      store(row + i, same_size() ? load(low + i) : fma(load(high + i), high_weight, mul(load(low + i), low_weight)));
    uint8_t* labels = args_.labels + (image * args_.height + y) * args_.width;
    for (int64_t i = 0; i < spans(); ++i) {
      int32_t span_labels[kWidth];
      label_span(*span(i), row, span_labels);
      const int64_t x = i * kWidth;
      for (int64_t lane = 0; lane < min(kWidth, args_.width - x); ++lane)
        labels[x + lane] = static_cast<uint8_t>(span_labels[lane]);
    }
  }

  void label_span(const Span& s, const float* row, int32_t* labels) const {
    if (same_size())
      compare(s, row, labels, [&](const float* from, vf* low, vf* high) {
        *low = load(from + s.start);
        *high = splat(0.0f);
      });
    else if (s.near)
      compare(s, row, labels, [&](const float* from, vf* low, vf* high) {
        const vf window = load(from + s.start);
        *low = pick(window, index_of(s.low));
        *high = pick(window, index_of(s.high));
      });
    else
      compare(s, row, labels, [&](const float* from, vf* low, vf* high) {
        float both[2][kWidth];
        for (int lane = 0; lane < kWidth; ++lane) {
          both[0][lane] = from[s.start + s.low[lane]];
          both[1][lane] = from[s.start + s.high[lane]];
        }
        *low = load(both[0]);
        *high = load(both[1]);
      });
  }

  template <class Fetch>
  void compare(const Span& s, const float* row, int32_t* labels, const Fetch& fetch) const {
    const vf high_weight = load(s.high_weight), low_weight = sub(splat(1.0f), high_weight);
    const auto logit = [&](int64_t c) {
      vf low, high;
      fetch(row + c * row_stride(), &low, &high);
      return fma(high, high_weight, mul(low, low_weight));
    };
    Best best{logit(0), zero_index()};
    for (int64_t c = 1; c < classes(); ++c) best.offer(logit(c), static_cast<int32_t>(c));
    best.labels(labels);
  }

  const UpsampleArgmaxArgs& args_;
  int64_t threads_;
  char* workspace_;
};

}  // namespace

int64_t upsample_argmax_workspace_bytes(const UpsampleArgmaxArgs& args, int64_t threads) {
  return workspace_bytes_of<UpsampleArgmax>(args, threads);
}

void upsample_argmax(const UpsampleArgmaxArgs& args, void* workspace, const Threads& threads) {
  run_op<UpsampleArgmax>(args, workspace, threads);
}

}  // namespace lwrn_fast::LWRN_ISA
