#include "engine.h"

namespace lwrn_fast {

extern const Engine engine_portable;
extern const Engine engine_avx2;
extern const Engine engine_avx512;
extern const Engine engine_avx512_bf16;

const Engine& engine(Isa isa) {
  switch (isa) {
#ifdef LWRN_HAVE_AVX512_BF16
    case Isa::avx512_bf16:
      return engine_avx512_bf16;
#endif
#ifdef LWRN_HAVE_AVX512
    case Isa::avx512:
      return engine_avx512;
#endif
#ifdef LWRN_HAVE_AVX2
    case Isa::avx2:
      return engine_avx2;
#endif
    default:
      return engine_portable;
  }
}

}  // namespace lwrn_fast
