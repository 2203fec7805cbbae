#include "../channels_last.h"

#include "kernel.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

// Rows and columns of a square that is transposed at once.
constexpr int kSquare = 8;

// Write to[column][row] = from[row][column] for a square.
#if defined(__AVX2__)
inline void transpose_square(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  __m256 row[kSquare], pair[kSquare], four[kSquare];
  for (int i = 0; i < kSquare; ++i) row[i] = _mm256_loadu_ps(from + i * from_stride);
  for (int i = 0; i < kSquare; i += 2) {
    pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
    pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
  }
  for (int i = 0; i < kSquare; i += 4) {
    four[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
    four[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
    four[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
    four[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(four[i], four[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_stride, _mm256_permute2f128_ps(four[i], four[i + 4], 0x31));
  }
}
#endif

template <class T>
inline void transpose_square(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  for (int row = 0; row < kSquare; ++row)
    for (int column = 0; column < kSquare; ++column) to[column * to_stride + row] = from[row * from_stride + column];
}

// Transpose one row of the map, (channels, width), to (width, channels).
template <class T>
void transpose_row(const T* from, int64_t stride_c, int64_t channels, int64_t width, T* to) {
  const int64_t whole_channels = channels / kSquare * kSquare, whole_width = width / kSquare * kSquare;
  for (int64_t c = 0; c < whole_channels; c += kSquare)
    for (int64_t x = 0; x < whole_width; x += kSquare)
      transpose_square(from + c * stride_c + x, stride_c, to + x * channels + c, channels);
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t x = c < whole_channels ? whole_width : 0; x < width; ++x)
      to[x * channels + c] = from[c * stride_c + x];
}

}  // namespace

void channels_last(const ChannelsLastArgs& args, const Threads& threads) {
  with_type(args.dtype, [&](auto type) {
    using T = decltype(type);
    const MapView& m = args.map;
    each_index(threads, m.batch * m.height, [&](int64_t, int64_t row) {
      const T* from = static_cast<const T*>(m.data) + row / m.height * m.stride_n + row % m.height * m.stride_h;
      transpose_row(from, args.stride_c, m.channels, m.width, static_cast<T*>(args.out) + row * m.width * m.channels);
    });
  });
}

}  // namespace lwrn_fast::LWRN_ISA
