"""Chained residual pooling at every decoder level. How to run: `make bench`, or `pytest bench/ops/bench_crp.py`."""

from lwrn_fast.profiling import peers
from lwrn_fast.profiling.shapes import CRP, CRP_TARGET, level_shapes
from lwrn_fast.profiling.workloads.crp import CONTESTANTS, set_up

__all__ = ["CASES", "CONTESTANTS", "DTYPES", "USUAL", "set_up"]
CASES = CRP
DTYPES = peers.DTYPES
USUAL = (CRP_TARGET, level_shapes("rf_lw50", 4, (512, 512))[0], level_shapes("rf_lw50", 1, (625, 468))[0])


def test_crp(measure) -> None:
    measure(set_up)
