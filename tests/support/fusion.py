"""Inputs of fusion, and the check of a result against float64."""

import torch
from torch import Tensor

import lwrn_fast
from lwrn_fast import reference
from support.comparing import (
    LAYOUTS,
    assert_as_exact,
    assert_channels_last,
    eager_error,
    few,
    in_double,
    scales,
)


def parameters(in_channels: list[int], out_channels: int, dtype: torch.dtype, bias: bool = False):
    weights = [(torch.randn(out_channels, channels, 1, 1) / channels**0.5).to(dtype) for channels in in_channels]
    return weights, [torch.randn(out_channels).to(dtype) for _ in in_channels] if bias else None


def maps(batch: int, channels: list[int], sizes: list[tuple[int, int]], dtype: torch.dtype) -> list[Tensor]:
    images = [torch.randn(batch, c, *size).to(dtype) for c, size in zip(channels, sizes, strict=True)]
    return [LAYOUTS["channels_last"](image) for image in images]


def variants(inputs, weights, biases, activation, align_corners):
    # A limited activation cannot be scaled; "none" shows the same errors.
    activation = "none" if activation == "relu6" else activation
    for scale in scales(inputs[0]):
        orders = [torch.arange(x.shape[1]) if scale == 1 else torch.randperm(x.shape[1]) for x in inputs]
        yield (
            scale,
            [
                [(x * scale)[:, order] for x, order in zip(inputs, orders, strict=True)],
                [w[:, order] for w, order in zip(weights, orders, strict=True)],
                biases and [b * scale for b in biases],
                activation,
                align_corners,
            ],
        )


def check(inputs, weights, biases=None, activation="relu", align_corners=True) -> Tensor:
    """Run the backend in use and compare with eager and with float64."""
    error = eager_error(reference.fusion, variants(inputs, weights, biases, activation, align_corners))
    arguments = [[few(x) for x in inputs], weights, biases, activation, align_corners]
    got = lwrn_fast.fusion(*arguments)
    assert got.dtype == inputs[0].dtype
    assert_channels_last(got)
    assert_as_exact(got, reference.fusion(*in_double(arguments)), error)
    return got
