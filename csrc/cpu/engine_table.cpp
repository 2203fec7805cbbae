#include "engine.h"

#define LWRN_JOIN_(a, b) a##b
#define LWRN_JOIN(a, b) LWRN_JOIN_(a, b)

namespace lwrn_fast {

extern const Engine LWRN_JOIN(engine_, LWRN_ISA);

const Engine LWRN_JOIN(engine_, LWRN_ISA) = {
    LWRN_ISA::channels_last,
    LWRN_ISA::fingerprint,
    LWRN_ISA::packed_bytes,
    LWRN_ISA::pack,
    {LWRN_ISA::crp_workspace_bytes, LWRN_ISA::crp},
    {LWRN_ISA::crp_backward_workspace_bytes, LWRN_ISA::crp_backward},
    {LWRN_ISA::fusion_workspace_bytes, LWRN_ISA::fusion},
    {LWRN_ISA::fusion_backward_workspace_bytes, LWRN_ISA::fusion_backward},
    {LWRN_ISA::upsample_argmax_workspace_bytes, LWRN_ISA::upsample_argmax},
    {LWRN_ISA::normalise_workspace_bytes, LWRN_ISA::normalise},
};

}  // namespace lwrn_fast
