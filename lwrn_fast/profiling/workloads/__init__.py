"""Set-up functions, one per kind of case: contestants, the expected result, and the work needed at least."""

from . import crp, fusion, model, training, upsample_argmax

__all__ = ["crp", "fusion", "model", "training", "upsample_argmax"]
