#include "../pack.h"

#include "gemm.h"

namespace lwrn_fast::LWRN_ISA {
namespace {

// Chains that are hashed side by side: as many as it takes to hash at the speed of memory.
constexpr int kChains = 8;
typedef uint64_t Chain __attribute__((vector_size(sizeof(vf))));
constexpr int64_t kChainsBytes = kChains * sizeof(Chain);

// Each step is a bijection of the chain, whatever the word: one changed word always changes the chain.
inline void mix_chains(const char* data, Chain* chain) {
#pragma GCC unroll 8
  for (int i = 0; i < kChains; ++i) {
    Chain word;
    std::memcpy(&word, data + i * sizeof(Chain), sizeof(Chain));
    chain[i] ^= word;
    chain[i] += chain[i] << 21;
    chain[i] ^= chain[i] >> 32;
  }
}

// Write packed[panel][k / KR][channel of the panel][k % KR]; channels and k beyond the weight are zero.
template <class T>
void pack_panel(const T* weight, int64_t out_channels, int64_t in_channels, int64_t panel, Operand<T>* packed) {
  constexpr int64_t group = KR<Operand<T>>;
  packed += panel * packed_panel<T>(in_channels);
  for (int channel = 0; channel < NR; ++channel) {
    const int64_t row = panel * NR + channel;
    for (int64_t k = 0; k < round_up(in_channels, group); ++k) {
      const bool inside = row < out_channels && k < in_channels;
      from_float(inside ? to_float(weight[row * in_channels + k]) : 0.0f,
                 packed + k / group * group * NR + channel * group + k % group);
    }
  }
}

}  // namespace

uint64_t fingerprint(const void* data, int64_t bytes) {
  const char* p = static_cast<const char*>(data);
  Chain chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = Chain{} + static_cast<uint64_t>(i + 1);
  for (; bytes >= kChainsBytes; p += kChainsBytes, bytes -= kChainsBytes) mix_chains(p, chain);
  char rest[kChainsBytes] = {};
  std::memcpy(rest, p, static_cast<size_t>(bytes));
  mix_chains(rest, chain);

  uint64_t words[kChainsBytes / 8], result = 0;
  std::memcpy(words, chain, sizeof words);
  for (uint64_t word : words) {
    result = (result ^ word) * 0x9e3779b97f4a7c15u;
    result ^= result >> 32;
  }
  return result;
}

int64_t packed_bytes(Dtype dtype, int64_t out_channels, int64_t in_channels) {
  int64_t bytes = 0;
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    bytes = panels(out_channels) * packed_panel<T>(in_channels) * static_cast<int64_t>(sizeof(Operand<T>));
  });
  return bytes;
}

void pack(Dtype dtype, const void* weight, int64_t out_channels, int64_t in_channels, void* packed,
          const Threads& threads) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    threads.each_worker([&](int64_t worker) {
      for (int64_t panel = worker; panel < panels(out_channels); panel += threads.count)
        pack_panel(static_cast<const T*>(weight), out_channels, in_channels, panel, static_cast<Operand<T>*>(packed));
    });
  });
}

}  // namespace lwrn_fast::LWRN_ISA
