#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__) || defined(__i386__)
#define LWRN_X86 1
#include <cpuid.h>
#else
#define LWRN_X86 0
#endif

namespace lwrn_fast {
namespace {

// __builtin_cpu_supports also asks whether the operating system saves the registers (XCR0); bare cpuid bits do not.
bool cpu_runs(Isa isa) {
#if LWRN_X86
  __builtin_cpu_init();
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  switch (isa) {
    case Isa::avx512_bf16:  // not every supported compiler knows this one by name: cpuid leaf 7.1, eax bit 5
      return cpu_runs(Isa::avx512) && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 5 & 1);
    case Isa::avx512:
      return cpu_runs(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::avx2:  // nor does it know f16c: leaf 1, ecx bit 29
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx >> 29 & 1);
    case Isa::portable:
      return true;
  }
#endif
  return isa == Isa::portable;
}

Isa best_isa() {
  for (Isa isa : kIsasBestFirst)
    if (isa_runs(isa)) return isa;
  return Isa::portable;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::portable:
      break;
  }
  return "portable";
}

bool isa_built(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16:
#ifdef LWRN_HAVE_AVX512_BF16
      return true;
#else
      return false;
#endif
    case Isa::avx512:
#ifdef LWRN_HAVE_AVX512
      return true;
#else
      return false;
#endif
    case Isa::avx2:
#ifdef LWRN_HAVE_AVX2
      return true;
#else
      return false;
#endif
    case Isa::portable:
      break;
  }
  return true;
}

bool isa_runs(Isa isa) { return isa_built(isa) && cpu_runs(isa); }

Isa current_isa() {
  static const Isa best = best_isa();
  const char* wanted = std::getenv("LWRN_FAST_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  std::string valid;
  for (Isa isa : kIsasBestFirst) {
    if (!isa_runs(isa)) continue;
    if (std::strcmp(wanted, isa_name(isa)) == 0) return isa;
    valid += (valid.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  throw std::runtime_error("LWRN_FAST_CPU_ISA: valid on this machine are " + valid + ", got '" + wanted + "'");
}

}  // namespace lwrn_fast
