"""A training step of chained residual pooling or of a fusion, forward and backward.

How to run: `pytest bench/ops/bench_training.py`.
"""

from lwrn_fast.profiling import peers
from lwrn_fast.profiling.shapes import CRP, CRP_TARGET, FUSION, FUSION_TARGET, level_shapes
from lwrn_fast.profiling.workloads.training import CONTESTANTS, set_up

__all__ = ["CASES", "CONTESTANTS", "DTYPES", "USUAL", "set_up"]
CASES = CRP | FUSION
DTYPES = peers.DTYPES
USUAL = (
    CRP_TARGET,
    level_shapes("rf_lw50", 4, (512, 512))[0],
    FUSION_TARGET,
    level_shapes("rf_lw50", 2, (512, 512))[1],
    level_shapes("rf_lw_mbv2", 3, (512, 512))[1],
)


def test_training(measure) -> None:
    measure(set_up)
