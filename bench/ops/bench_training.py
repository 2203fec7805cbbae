"""A training step of chained residual pooling or of a fusion, forward and backward.

How to run: `pytest bench/bench_training.py`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import lwrn_fast
from lwrn_fast import reference
from lwrn_fast.profiling import peers
from lwrn_fast.profiling.cases import STAGES
from lwrn_fast.profiling.paired import Contest
from lwrn_fast.profiling.wrong import TOLERANCE, largest_error
from shapes import CRP, CRP_TARGET, FUSION, FUSION_TARGET, CrpCase, FusionCase, level_shapes

CASES = CRP | FUSION
CONTESTANTS = (peers.OURS, peers.EAGER_NCHW, peers.EAGER)
DTYPES = peers.DTYPES
USUAL = (
    CRP_TARGET,
    level_shapes("rf_lw50", 4, (512, 512))[0],
    FUSION_TARGET,
    level_shapes("rf_lw50", 2, (512, 512))[1],
    level_shapes("rf_lw_mbv2", 3, (512, 512))[1],
)


@torch.inference_mode(False)  # whose tensors no backward pass may use
def set_up(case: CrpCase | FusionCase, dtype: torch.dtype) -> Contest:
    """Random inputs and gradient (1, planes, height, width), weights that keep their scale; the result is the first
    input's gradient."""
    torch.manual_seed(0)
    of_crp = isinstance(case, CrpCase)
    maps = ((case.planes, case.height, case.width),) if of_crp else case.inputs
    columns = [case.planes] * STAGES if of_crp else [c for c, _, _ in case.inputs]
    inputs = [torch.randn(1, *shape).to(dtype) for shape in maps]
    weights = [(torch.randn(case.planes, c, 1, 1) / c**0.5).to(dtype) for c in columns]
    grad = torch.randn(1, case.planes, *maps[0][1:]).to(dtype)

    def forward(ops: Any) -> Callable[..., Tensor]:
        if of_crp:
            return lambda x, *weights: ops.crp(x, weights)
        return lambda *given: ops.fusion(given[: len(maps)], given[len(maps) :], activation=case.activation)

    makers: dict[str, Callable[[], Callable[[], Tensor]]] = {
        peers.OURS: lambda: step(forward(lwrn_fast), inputs, weights, grad, torch.channels_last),
        peers.EAGER_NCHW: lambda: step(forward(reference), inputs, weights, grad, torch.contiguous_format),
        peers.EAGER: lambda: step(forward(reference), inputs, weights, grad, torch.channels_last),
    }
    expected = makers[peers.EAGER_NCHW]()()
    return Contest(
        contestants={name: makers[name] for name in peers.taking_part(dtype, CONTESTANTS)},
        # a pixel whose rounding decides between two maxima, or about the activation, has another gradient, and few of
        # them are no mistake
        error=lambda got: largest_error(got.norm(), expected.norm()),
        tolerance=TOLERANCE[dtype],
        operations=3 * case.operations,
        bytes=2 * case.bytes(dtype.itemsize),
    )


@torch.inference_mode(False)
def step(
    function: Callable[..., Tensor],
    inputs: list[Tensor],
    weights: list[Tensor],
    grad: Tensor,
    layout: torch.memory_format,
) -> Callable[[], Tensor]:
    """Forward and backward of leaves of their own, which come to know their gradients anew each time."""
    leaves = [t.detach().clone(memory_format=layout).requires_grad_() for t in (*inputs, *weights)]
    above = grad.contiguous(memory_format=layout)

    def call() -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(function(*leaves), leaves, above)[0]

    return call


def test_training(measure) -> None:
    measure(set_up)
