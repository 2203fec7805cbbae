"""Logits to a label map of the image's size. How to run: `pytest bench/ops/bench_upsample_argmax.py`."""

from lwrn_fast.profiling import peers
from lwrn_fast.profiling.shapes import UPSAMPLE_ARGMAX, UPSAMPLE_ARGMAX_TARGET
from lwrn_fast.profiling.workloads.upsample_argmax import CONTESTANTS, set_up

__all__ = ["CASES", "CONTESTANTS", "DTYPES", "USUAL", "set_up"]
CASES = UPSAMPLE_ARGMAX
DTYPES = peers.DTYPES
USUAL = (UPSAMPLE_ARGMAX_TARGET,)


def test_upsample_argmax(measure) -> None:
    measure(set_up)
