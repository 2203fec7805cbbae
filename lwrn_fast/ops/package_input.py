"""The first op of an AOTInductor package: copy the input, of any strides, to channels-last memory.

The package's own code reads any input as if it had the example's size, strides and dtype; `package_input` raises
RuntimeError for another size (-1 stands for any) or dtype.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import backward
from .registration import Definition, define


def _run(x: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    fits = x.numel() and len(size) == x.dim() == 4
    if not fits or any(expected not in (-1, length) for expected, length in zip(size, x.shape, strict=True)):
        expected = ", ".join("any" if length == -1 else str(length) for length in size)
        raise RuntimeError(f"the package's input must be ({expected}), got {tuple(x.shape)}")
    if x.dtype != dtype:
        raise RuntimeError("the package's input must be of the dtype it was exported with")
    return x.clone(memory_format=torch.channels_last)


def _fake(x: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    return backward.channels_last(x, x.shape)


define(Definition("package_input(Tensor x, int[] size, ScalarType dtype) -> Tensor", run=_run, fake=_fake))
