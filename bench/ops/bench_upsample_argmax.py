"""Logits to a label map of the image's size. How to run: `pytest bench/bench_upsample_argmax.py`."""

from lwrn_fast.profiling import peers
from lwrn_fast.profiling.contests.upsample_argmax import CONTESTANTS, set_up
from shapes import UPSAMPLE_ARGMAX, UPSAMPLE_ARGMAX_TARGET

__all__ = ["CASES", "CONTESTANTS", "DTYPES", "USUAL", "set_up"]
CASES = UPSAMPLE_ARGMAX
DTYPES = peers.DTYPES
USUAL = (UPSAMPLE_ARGMAX_TARGET,)


def test_upsample_argmax(measure) -> None:
    measure(set_up)
