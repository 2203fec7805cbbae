#include "../normalise.h"

#include "kernel.h"

// One row of the result at a time: the rows of the image that it covers are added up into one row of floats, whose
// pixels are then added up along the row, all three colours at once, and normalised.
namespace lwrn_fast::LWRN_ISA {
namespace {

// Three colours and a fourth number that is not read.
typedef float Pixel __attribute__((vector_size(16)));

inline Pixel load_pixel(const float* p) {
  Pixel x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

// The source pixels that every output pixel along one side covers, and their weights.
class Coverage {
 public:
  Coverage(int64_t source_size, int64_t size) : source_size_(source_size), size_(size) {}

  bool same() const { return source_size_ == size_; }
  int64_t bytes() const { return round_up(size_ * (kHead + max_count()) * 4, 64); }

  void fill(char* memory) {
    memory_ = memory;
    for (int64_t i = 0; i < size_; ++i) {
      const Covered covered = covered_by(i, source_size_, size_);
      int32_t* head = this->head(i);
      head[0] = static_cast<int32_t>(covered.first);
      head[1] = static_cast<int32_t>(covered.end - covered.first);
      float* weights = reinterpret_cast<float*>(head + kHead);
      for (int64_t j = covered.first; j < covered.end; ++j) weights[j - covered.first] = weight_of(covered, j);
    }
  }

  int64_t first(int64_t i) const { return head(i)[0]; }
  int64_t count(int64_t i) const { return head(i)[1]; }
  const float* weights(int64_t i) const { return reinterpret_cast<const float*>(head(i) + kHead); }

 private:
  static constexpr int64_t kHead = 2;

  int64_t max_count() const { return min(2 * ceil_div(source_size_, size_) + 1, source_size_); }
  int32_t* head(int64_t i) const { return reinterpret_cast<int32_t*>(memory_) + i * (kHead + max_count()); }

  int64_t source_size_, size_;
  char* memory_ = nullptr;
};

template <class T>
class Normalise {
 public:
  Normalise(const NormaliseArgs& args, int64_t threads, char* workspace)
      : args_(args),
        threads_(threads),
        workspace_(workspace),
        rows_(args.source_height, args.height),
        columns_(args.source_width, args.width) {}

  int64_t workspace_bytes() const { return rows_.bytes() + columns_.bytes() + threads_ * worker_bytes(); }

  void run(const Threads& threads) {
    rows_.fill(workspace_);
    columns_.fill(workspace_ + rows_.bytes());
    const int64_t rows = args_.batch * args_.height;
    const int64_t run = clamp(rows / (8 * threads.count), 1, 16), runs = ceil_div(rows, run);
    WorkQueue queue(runs);
    threads.each_worker([&](int64_t worker) {
      float* source = reinterpret_cast<float*>(workspace_ + rows_.bytes() + columns_.bytes() + worker * worker_bytes());
      float* result = source + row_floats(args_.source_width);
      float *mean = result + row_floats(args_.width), *deviation = mean + row_floats(args_.width);
      for (int64_t i = 0; i < kColours * args_.width; ++i) {
        mean[i] = args_.mean[i % kColours];
        deviation[i] = args_.deviation[i % kColours];
      }
      for (int64_t i; queue.take(&i);)
        for (int64_t row = i * run; row < min(rows, (i + 1) * run); ++row) {
          const uint8_t* image = args_.images + row / args_.height * args_.stride_n;
          const float* resized = resize(image, row % args_.height, source, result);
          T* out = static_cast<T*>(args_.out) + row * kColours * args_.width;
          for (int64_t j = 0; j < kColours * args_.width; ++j)
            from_float((resized[j] - mean[j]) / deviation[j], out + j);
        }
    });
  }

 private:
  // Return the floats of a row, with room for the fourth number of the last pixel.
  static int64_t row_floats(int64_t width) { return round_up(kColours * width + 1, 16); }
  int64_t worker_bytes() const {
    return (row_floats(args_.source_width) + 3 * row_floats(args_.width)) * static_cast<int64_t>(sizeof(float));
  }

  // Return row y of the resized image.
  const float* resize(const uint8_t* image, int64_t y, float* source, float* result) const {
    const int64_t count = kColours * args_.source_width;
    if (rows_.same()) {
      const uint8_t* from = image + y * args_.stride_h;
      for (int64_t i = 0; i < count; ++i) source[i] = from[i];
    } else {
      for (int64_t k = 0; k < rows_.count(y); ++k) {
        const uint8_t* from = image + (rows_.first(y) + k) * args_.stride_h;
        const float weight = rows_.weights(y)[k];
        if (k == 0)
          for (int64_t i = 0; i < count; ++i) source[i] = weight * from[i];
        else
          for (int64_t i = 0; i < count; ++i) source[i] += weight * from[i];
      }
    }
    if (columns_.same()) return source;
    for (int64_t x = 0; x < args_.width; ++x) {
      const float *from = source + kColours * columns_.first(x), *weights = columns_.weights(x);
      Pixel sum = load_pixel(from) * weights[0];
      for (int64_t k = 1; k < columns_.count(x); ++k) sum += load_pixel(from + kColours * k) * weights[k];
      std::memcpy(result + kColours * x, &sum, sizeof sum);  // the next pixel overwrites the fourth number
    }
    return result;
  }

  const NormaliseArgs& args_;
  int64_t threads_;
  char* workspace_;
  Coverage rows_, columns_;
};

}  // namespace

int64_t normalise_workspace_bytes(const NormaliseArgs& args, int64_t threads) {
  return workspace_bytes_of<Normalise>(args, threads);
}

void normalise(const NormaliseArgs& args, void* workspace, const Threads& threads) {
  run_op<Normalise>(args, workspace, threads);
}

}  // namespace lwrn_fast::LWRN_ISA
