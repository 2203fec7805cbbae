"""One set-up function per kind of case: who takes part, what is right, and what it costs at least."""

from . import crp, fusion, model, upsample_argmax

__all__ = ["crp", "fusion", "model", "upsample_argmax"]
