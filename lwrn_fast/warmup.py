"""`warmup`: compile kernels before the first request."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .ops.crp import crp
from .ops.fusion import fusion
from .ops.upsample_argmax import upsample_argmax


def warmup(
    model_or_calls: nn.Module | Iterable[Sequence[Any]],
    *shapes: Sequence[int],
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Run a model, or calls of the ops, once on zeros, so that what they compile is compiled.

    A model is called with one input per shape, e.g. (1, 3, 512, 512), of the dtype and device of its first parameter
    unless others are given. Calls are ("crp", x), ("fusion", [x, ...], channels) and ("upsample_argmax", logits, size),
    with shapes for tensors; crp has four stages, as published. Triton compiles a kernel per dtype, channels and class
    of size, and keeps it in a cache on disk. Raises the errors of the calls.

    >>> import torch, lwrn_fast
    >>> lwrn_fast.warmup(lwrn_fast.CRP(8, 8), (1, 8, 6, 7))
    >>> lwrn_fast.warmup([("crp", (1, 8, 6, 7)), ("upsample_argmax", (1, 21, 6, 7), (24, 28))], dtype=torch.bfloat16)
    """
    with torch.inference_mode():
        if isinstance(model_or_calls, nn.Module):
            parameter = next(model_or_calls.parameters(), torch.empty(0))
            options = {"dtype": dtype or parameter.dtype, "device": device or parameter.device}
            model_or_calls(*(_zeros(shape, options) for shape in shapes))
        else:
            if shapes:
                raise ValueError("warmup: shapes belong into the calls where no model is given")
            for op, *arguments in model_or_calls:
                _call(op, arguments, {"dtype": dtype, "device": device})
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _call(op: str, arguments: list[Any], options: dict[str, Any]) -> None:
    if op == "crp" and len(arguments) == 1:
        x = _zeros(arguments[0], options)
        crp(x, [_zeros((x.shape[1], x.shape[1], 1, 1), options) for _ in range(4)])
    elif op == "fusion" and len(arguments) == 2:
        inputs = [_zeros(shape, options) for shape in arguments[0]]
        fusion(inputs, [_zeros((arguments[1], x.shape[1], 1, 1), options) for x in inputs])
    elif op == "upsample_argmax" and len(arguments) == 2:
        upsample_argmax(_zeros(arguments[0], options), arguments[1])
    else:
        raise ValueError(
            'warmup: a call must be ("crp", x), ("fusion", [x, ...], channels) or ("upsample_argmax", logits, size), '
            f"got {(op, *arguments)!r}"
        )


def _zeros(shape: Sequence[int], options: dict[str, Any]) -> Tensor:
    x = torch.zeros(tuple(shape), **options)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
