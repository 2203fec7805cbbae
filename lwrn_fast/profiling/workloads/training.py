"""A training step of chained residual pooling or of a fusion, forward and backward, against plain PyTorch."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...ops import reference
from ...ops.crp import crp
from ...ops.fusion import fusion
from .. import peers
from ..accuracy import TOLERANCE, largest_error
from ..cases import STAGES, CrpCase, FusionCase
from ..paired import Call, Contest

CONTESTANTS = (peers.OURS, peers.EAGER_NCHW, peers.EAGER)


@torch.inference_mode(False)  # no backward pass may use an inference tensor
def set_up(case: CrpCase | FusionCase, dtype: torch.dtype) -> Contest:
    """Set up random inputs and gradient (1, channels, height, width), and weights that keep their scale.

    The result of a contestant is the first input's gradient.
    """
    torch.manual_seed(0)
    inputs, weights = _random(case, dtype)
    grad = torch.randn(1, weights[0].shape[0], *inputs[0].shape[2:]).to(dtype)

    def step(ours: bool, layout: torch.memory_format) -> Callable[[], Call]:
        return lambda: _step(_forward(case, ours), inputs, weights, grad, layout)

    makers = {
        peers.OURS: step(True, torch.channels_last),
        peers.EAGER_NCHW: step(False, torch.contiguous_format),
        peers.EAGER: step(False, torch.channels_last),
    }
    expected = makers[peers.EAGER_NCHW]()()
    return Contest(
        contestants={name: makers[name] for name in peers.taking_part(dtype, CONTESTANTS)},
        # A pixel whose rounding decides between two maxima, or about the activation, has another gradient, and few of
        # them are no mistake.
        error=lambda got: largest_error(got.norm(), expected.norm()),
        tolerance=TOLERANCE[dtype],
        operations=3 * case.operations,
        bytes=2 * case.bytes(dtype),
    )


def _random(case: CrpCase | FusionCase, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Return inputs and weights."""
    if isinstance(case, CrpCase):
        shapes = [(case.channels, case.height, case.width)]
        channels = [(case.channels, case.channels)] * STAGES
    else:
        shapes = list(case.inputs)
        channels = [(case.out_channels, c) for c, _, _ in case.inputs]
    inputs = [torch.randn(1, *shape).to(dtype) for shape in shapes]
    return inputs, [(torch.randn(out, c, 1, 1) / c**0.5).to(dtype) for out, c in channels]


def _forward(case: CrpCase | FusionCase, ours: bool) -> Callable[..., Tensor]:
    """Return the op, ours or the reference's, as a function of its inputs followed by its weights."""
    if isinstance(case, CrpCase):
        op = crp if ours else reference.crp
        return lambda x, *weights: op(x, weights)
    count, combine = len(case.inputs), fusion if ours else reference.fusion
    return lambda *tensors: combine(tensors[:count], tensors[count:], activation=case.activation)


@torch.inference_mode(False)
def _step(
    function: Callable[..., Tensor],
    inputs: list[Tensor],
    weights: list[Tensor],
    grad: Tensor,
    layout: torch.memory_format,
) -> Call:
    """Return a call of forward and backward on leaves of its own, which get new gradients each time."""
    leaves = [t.detach().clone(memory_format=layout).requires_grad_() for t in (*inputs, *weights)]
    grad = grad.contiguous(memory_format=layout)

    def call() -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            return torch.autograd.grad(function(*leaves), leaves, grad)[0]

    return call
