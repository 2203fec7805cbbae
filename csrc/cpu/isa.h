// The instruction sets that the kernels are built for, and the choice of one for a call.
#pragma once

namespace lwrn_fast {

// In ascending order of preference. Every build has `portable`; the others are compiled in where LWRN_HAVE_* says so.
enum class Isa { portable, avx2, avx512, avx512_bf16 };

constexpr Isa kIsasBestFirst[] = {Isa::avx512_bf16, Isa::avx512, Isa::avx2, Isa::portable};

// Return "portable", "avx2", "avx512" or "avx512_bf16".
const char* isa_name(Isa isa);

// Return whether this binary holds the kernels of `isa`.
bool isa_built(Isa isa);

// Return whether this binary holds them and this machine, processor and operating system, can run them.
bool isa_runs(Isa isa);

// Return the set named by the environment variable LWRN_FAST_CPU_ISA, read at every call, else the best that runs.
// Throws std::runtime_error listing the valid names where the one given is unknown or cannot run here.
Isa current_isa();

}  // namespace lwrn_fast
