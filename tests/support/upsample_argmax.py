"""The check of a label map against float64."""

import torch
from torch import Tensor

import lwrn_fast
from lwrn_fast import reference
from support.comparing import eager_error, rounding


def check(logits: Tensor, size: int | tuple[int, int], align_corners: bool = True) -> Tensor:
    """Run the backend in use; the class it names must have the largest exact logit, up to eager's own error."""
    labels = lwrn_fast.upsample_argmax(logits, size, align_corners)
    height, width = (size, size) if isinstance(size, int) else size
    assert labels.shape == (logits.shape[0], height, width)
    assert labels.dtype == torch.uint8
    assert labels.is_contiguous()

    def upsampled(x: Tensor) -> Tensor:
        return reference.resize(x, height, width, align_corners)

    exact = upsampled(logits.double())
    error = eager_error(upsampled, [(1.0, [logits])])
    chosen = exact.gather(1, labels.long().unsqueeze(1))
    best = exact.amax(1, keepdim=True)
    short = best - chosen - 2 * error - rounding(best, logits.dtype) - rounding(chosen, logits.dtype)
    assert (short <= 0).all(), f"{int((short > 0).sum())} labels name a class that is not the largest"
    return labels
