#include "packed_cache.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

namespace lwrn_fast {
namespace {

using torch::stable::Tensor;

// Bytes of all packed weights that are kept; the oldest beyond it are dropped.
constexpr int64_t kMaxBytes = int64_t{256} << 20;
// Bytes of a weight that a worker hashes at a time.
constexpr int64_t kPieceBytes = int64_t{128} << 10;

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

// Return the fingerprint of each weight. Workers are dealt pieces, so that one large weight occupies them all.
std::vector<uint64_t> fingerprints_of(const std::vector<Tensor>& weights, Dtype dtype, Isa isa,
                                      const Threads& threads) {
  struct Piece {
    size_t weight;
    const char* data;
    int64_t bytes;
    uint64_t fingerprint;
  };
  std::vector<Piece> pieces;
  for (size_t i = 0; i < weights.size(); ++i) {
    const char* data = static_cast<const char*>(weights[i].const_data_ptr());
    const int64_t bytes = weights[i].numel() * bytes_of(dtype);
    for (int64_t offset = 0; offset < bytes; offset += kPieceBytes)
      pieces.push_back({i, data + offset, std::min(kPieceBytes, bytes - offset), 0});
  }
  threads.each_worker([&](int64_t worker) {
    for (size_t i = static_cast<size_t>(worker); i < pieces.size(); i += static_cast<size_t>(threads.count))
      pieces[i].fingerprint = engine(isa).fingerprint(pieces[i].data, pieces[i].bytes);
  });
  std::vector<uint64_t> result(weights.size());
  for (const Piece& piece : pieces) {  // each step is a bijection of the piece's fingerprint: no change is lost
    uint64_t& mixed = result[piece.weight];
    mixed = (mixed ^ piece.fingerprint) * 0x9e3779b97f4a7c15u;
    mixed ^= mixed >> 32;
  }
  return result;
}

void drop_oldest_beyond_limit() {
  while (entries_bytes > kMaxBytes && entries.size() > 1) {
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
  const std::vector<uint64_t> fingerprints = fingerprints_of(weights, dtype, isa, threads);
  std::vector<Tensor> packed(weights.size());
  for (int64_t i = 0; i < count; ++i) {
    const int64_t out_channels = weights[i].size(0), in_channels = weights[i].size(1);
    const Key key{weights[i].const_data_ptr(), out_channels, in_channels, dtype, isa};
    {
      const std::lock_guard<std::mutex> lock(mutex);
      const auto entry = entries.find(key);
      if (entry != entries.end() && entry->second.fingerprint == fingerprints[i]) {
        entry->second.last_use = ++uses;
        packed[i] = entry->second.packed;
        continue;
      }
    }
    const int64_t bytes = engine(isa).packed_bytes(dtype, out_channels, in_channels);
    packed[i] = torch::stable::empty({&bytes, 1}, torch::headeronly::ScalarType::Byte);
    engine(isa).pack(dtype, weights[i].const_data_ptr(), out_channels, in_channels, packed[i].mutable_data_ptr(),
                     threads);
    const std::lock_guard<std::mutex> lock(mutex);
    const auto entry = entries.find(key);
    if (entry != entries.end()) entries_bytes -= entry->second.packed.numel();
    entries.insert_or_assign(key, Entry{fingerprints[i], packed[i], ++uses});
    entries_bytes += bytes;
    drop_oldest_beyond_limit();
  }
  return packed;
}

}  // namespace lwrn_fast
