"""Inputs of crp, and the check of a result against float64."""

import torch
from torch import Tensor

import lwrn_fast
from lwrn_fast import reference
from support.comparing import (
    assert_as_exact,
    assert_channels_last,
    eager_error,
    few,
    in_double,
    scales,
)


def parameters(channels: int, stages: int, dtype: torch.dtype, groups: int = 1, bias: bool = False):
    """Return weights that keep the magnitude of a map, and biases or None."""
    per_group = channels // groups
    weights = [(torch.randn(channels, per_group, 1, 1) / per_group**0.5).to(dtype) for _ in range(stages)]
    return weights, [torch.randn(channels).to(dtype) for _ in range(stages)] if bias else None


def variants(x: Tensor, weights: list[Tensor], biases: list[Tensor] | None, groups: int):
    for scale in scales(x):
        order = torch.arange(x.shape[1]) if scale == 1 else torch.randperm(x.shape[1])
        ordered = [w[order] if groups == x.shape[1] else w[order][:, order] for w in weights]
        yield scale, [(x * scale)[:, order], ordered, biases and [(b * scale)[order] for b in biases], groups]


def check(x: Tensor, weights: list[Tensor], biases: list[Tensor] | None = None, groups: int = 1) -> Tensor:
    """Run the backend in use and compare with eager and with float64."""
    got = lwrn_fast.crp(few(x), weights, biases, groups)
    assert got.dtype == x.dtype
    assert_channels_last(got)
    exact = reference.crp(*in_double([few(x), weights, biases, groups]))
    assert_as_exact(got, exact, eager_error(reference.crp, variants(x, weights, biases, groups)))
    return got
