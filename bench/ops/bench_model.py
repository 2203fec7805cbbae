"""Whole models: alone, and from an image to its label map. How to run: `pytest bench/ops/bench_model.py`."""

from lwrn_fast.profiling import peers
from lwrn_fast.profiling.cases import ModelCase
from lwrn_fast.profiling.shapes import MODEL_TARGET, MODELS
from lwrn_fast.profiling.workloads.model import CONTESTANTS, set_up

__all__ = ["CASES", "CONTESTANTS", "DTYPES", "USUAL", "set_up"]
CASES = MODELS
DTYPES = peers.DTYPES[:2]
USUAL = (MODEL_TARGET, ModelCase("rf_lw_mbv2", 512, 512, labels=True), ModelCase("rf_lw50", 512, 512))
USUAL += (ModelCase("rf_lw50", 512, 512, labels=True),)


def test_model(measure) -> None:
    measure(set_up)
