"""Convolutions, upsampling, sum and activation at every decoder level.

How to run: `pytest bench/ops/bench_fusion.py`.
"""

from lwrn_fast.profiling import peers
from lwrn_fast.profiling.shapes import FUSION, FUSION_TARGET, level_shapes
from lwrn_fast.profiling.workloads.fusion import CONTESTANTS, set_up

__all__ = ["CASES", "CONTESTANTS", "DTYPES", "USUAL", "set_up"]
CASES = FUSION
DTYPES = peers.DTYPES
USUAL = (FUSION_TARGET, *(level_shapes("rf_lw_mbv2", level, (512, 512))[1] for level in (1, 3)))


def test_fusion(measure) -> None:
    measure(set_up)
