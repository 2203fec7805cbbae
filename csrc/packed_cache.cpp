#include "packed_cache.h"

#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <map>
#include <mutex>
#include <tuple>

namespace lwrn_fast {
namespace {

using torch::stable::Tensor;

constexpr int64_t kMostBytes = int64_t{256} << 20;

using Key = std::tuple<const void*, int64_t, int64_t, Dtype, Isa>;

struct Entry {
  uint64_t fingerprint;
  Tensor packed;
  uint64_t last_use;
};

std::mutex mutex;
std::map<Key, Entry> entries;
int64_t entries_bytes = 0;
uint64_t uses = 0;

// Four chains of (h ^ word) * odd: each step is a bijection, so one changed word always changes the result.
uint64_t fingerprint_of(const void* data, int64_t bytes) {
  uint64_t chain[4] = {1, 2, 3, 4};
  const auto mix = [&](int i, uint64_t word) {
    chain[i] = (chain[i] ^ word) * 0x9e3779b97f4a7c15u;
    chain[i] ^= chain[i] >> 32;
  };
  const char* p = static_cast<const char*>(data);
  int64_t at = 0;
  for (; at + 32 <= bytes; at += 32) {
    uint64_t words[4];
    std::memcpy(words, p + at, sizeof words);
    for (int i = 0; i < 4; ++i) mix(i, words[i]);
  }
  for (; at < bytes; ++at) mix(0, static_cast<unsigned char>(p[at]));
  for (int i = 1; i < 4; ++i) mix(0, chain[i]);
  return chain[0];
}

void drop_oldest_beyond_limit() {
  while (entries_bytes > kMostBytes && entries.size() > 1) {
    auto oldest = entries.begin();
    for (auto it = entries.begin(); it != entries.end(); ++it)
      if (it->second.last_use < oldest->second.last_use) oldest = it;
    entries_bytes -= oldest->second.packed.numel();
    entries.erase(oldest);
  }
}

}  // namespace

std::vector<Tensor> packed_weights(const std::vector<Tensor>& weights, Dtype dtype, Isa isa, const Threads& threads) {
  const int64_t count = static_cast<int64_t>(weights.size());
  std::vector<uint64_t> fingerprints(weights.size());
  threads.each_worker([&](int64_t worker) {
    for (int64_t i = worker; i < count; i += threads.count)
      fingerprints[i] = fingerprint_of(weights[i].const_data_ptr(), weights[i].numel() * bytes_of(dtype));
  });
  std::vector<Tensor> packed(weights.size());
  for (int64_t i = 0; i < count; ++i) {
    const int64_t out_planes = weights[i].size(0), in_planes = weights[i].size(1);
    const Key key{weights[i].const_data_ptr(), out_planes, in_planes, dtype, isa};
    {
      const std::lock_guard<std::mutex> lock(mutex);
      const auto found = entries.find(key);
      if (found != entries.end() && found->second.fingerprint == fingerprints[i]) {
        found->second.last_use = ++uses;
        packed[i] = found->second.packed;
        continue;
      }
    }
    const int64_t bytes = engine(isa).packed_bytes(dtype, out_planes, in_planes);
    packed[i] = torch::stable::empty({&bytes, 1}, torch::headeronly::ScalarType::Byte);
    engine(isa).pack(dtype, weights[i].const_data_ptr(), out_planes, in_planes, packed[i].mutable_data_ptr(), threads);
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = entries.find(key);
    if (found != entries.end()) entries_bytes -= found->second.packed.numel();
    entries.insert_or_assign(key, Entry{fingerprints[i], packed[i], ++uses});
    entries_bytes += bytes;
    drop_oldest_beyond_limit();
  }
  return packed;
}

}  // namespace lwrn_fast
