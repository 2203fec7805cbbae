"""A training step of chained residual pooling, forward and backward. How to run: `pytest bench/bench_training.py`."""

from collections.abc import Callable

import torch
from torch import Tensor

import lwrn_fast
import peers
from lwrn_fast import reference
from paired import Contest
from shapes import CRP, CRP_TARGET, STAGES, CrpCase, level_shapes
from wrong import TOLERANCE, largest_error

CASES = CRP
CONTESTANTS = (peers.OURS, peers.EAGER_NCHW, peers.EAGER)
DTYPES = peers.DTYPES
USUAL = (CRP_TARGET, level_shapes("rf_lw50", 4, (512, 512))[0])


@torch.inference_mode(False)  # whose tensors no backward pass may use
def set_up(case: CrpCase, dtype: torch.dtype) -> Contest:
    """Random x and gradient (1, planes, height, width), weights that keep their scale; the result is x's gradient."""
    torch.manual_seed(0)
    planes = case.planes
    x, grad = (torch.randn(1, planes, case.height, case.width).to(dtype) for _ in range(2))
    weights = [(torch.randn(planes, planes, 1, 1) / planes**0.5).to(dtype) for _ in range(STAGES)]
    makers: dict[str, Callable[[], Callable[[], Tensor]]] = {
        peers.OURS: lambda: step(lwrn_fast.crp, x, weights, grad, torch.channels_last),
        peers.EAGER_NCHW: lambda: step(reference.crp, x, weights, grad, torch.contiguous_format),
        peers.EAGER: lambda: step(reference.crp, x, weights, grad, torch.channels_last),
    }
    expected = makers[peers.EAGER_NCHW]()()
    return Contest(
        contestants={name: makers[name] for name in peers.taking_part(dtype, CONTESTANTS)},
        # a pixel whose rounding decides between two maxima has another gradient, and few of them are no mistake
        error=lambda got: largest_error(got.norm(), expected.norm()),
        tolerance=TOLERANCE[dtype],
        operations=3 * case.operations,
        bytes=2 * case.bytes(dtype.itemsize),
    )


@torch.inference_mode(False)
def step(
    function: Callable[..., Tensor], x: Tensor, weights: list[Tensor], grad: Tensor, layout: torch.memory_format
) -> Callable[[], Tensor]:
    """Forward and backward of leaves of their own, which come to know their gradients anew each time."""
    leaf, *leaves = (t.detach().clone(memory_format=layout).requires_grad_() for t in (x, *weights))
    above = grad.contiguous(memory_format=layout)

    def call() -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(function(leaf, leaves), [leaf, *leaves], above)[0]

    return call


def test_training(measure) -> None:
    measure(set_up)
