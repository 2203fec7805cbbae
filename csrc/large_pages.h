// Large pages for memory that is about to be written whole. The system maps a page when it is first touched: a map of
// 16 MB takes four thousand small pages, or eight large ones, and a freshly allocated map is touched anew in each call.
#pragma once
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lwrn_fast {

// Ask for large pages. The system may have them switched off; the contents stay as they are.
inline void ask_for_large_pages(const void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kLargePage = uintptr_t{2} << 20;
  const uintptr_t start = reinterpret_cast<uintptr_t>(memory), end = start + static_cast<uintptr_t>(bytes);
  // whole pages alone, so that no neighbour's memory grows
  const uintptr_t first = (start + kLargePage - 1) / kLargePage * kLargePage, last = end / kLargePage * kLargePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

}  // namespace lwrn_fast
