"""Problems of the GPU's commands: cases by op, random inputs and weights, and the op as functions of the inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lwrn_fast
from lwrn_fast import reference
from lwrn_fast.profiling import shapes, workloads
from lwrn_fast.profiling.accuracy import label_error, largest_error
from lwrn_fast.profiling.cases import STAGES, CrpCase, FusionCase, UpsampleArgmaxCase

Case = CrpCase | FusionCase | UpsampleArgmaxCase
CASES: dict[str, dict[Case, str]] = shapes.OPS
TARGETS: dict[str, Case] = {
    "crp": shapes.CRP_TARGET,
    "fusion": shapes.FUSION_TARGET,
    "upsample_argmax": shapes.UPSAMPLE_ARGMAX_TARGET,
}
# Kinds of arithmetic, as configs.json names them, to the dtype that stands for each.
DTYPES = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}


@dataclass
class Problem:
    """One case with its weights: contestants are functions of the inputs. floor: its multiplications alone."""

    plain: nn.Module
    ours: Callable[..., Tensor]
    floor: Callable[..., Any] | None
    error: Callable[[Tensor, list[Tensor]], float]


def problem(case: Case, weights: list[Tensor], depthwise: bool = False) -> Problem:
    """Return the problem of a case. depthwise: the CRP's weights are (channels, 1, 1, 1)."""
    exact_weights = [w.double() for w in weights]
    if isinstance(case, CrpCase):
        groups = case.channels if depthwise else 1
        return Problem(
            workloads.crp.Plain(weights),
            lambda x: lwrn_fast.crp(x, weights, groups=groups),
            lambda x: [torch.mm(rows(x), w.flatten(1).t()) for w in weights],
            lambda got, inputs: largest_error(got, reference.crp(inputs[0].double(), exact_weights, groups=groups)),
        )
    if isinstance(case, FusionCase):
        activation = case.activation
        return Problem(
            workloads.fusion.Plain(weights, activation),
            lambda *xs: lwrn_fast.fusion(xs, weights, activation=activation),
            lambda *xs: [torch.mm(rows(x), w.flatten(1).t()) for x, w in zip(xs, weights, strict=True)],
            lambda got, inputs: largest_error(
                got, reference.fusion([x.double() for x in inputs], exact_weights, activation=activation)
            ),
        )
    return Problem(
        workloads.upsample_argmax.Plain(case.to),
        lambda x: lwrn_fast.upsample_argmax(x, case.to),
        None,
        lambda got, inputs: label_error(got, inputs[0], case.to),
    )


def rows(x: Tensor) -> Tensor:
    """Return a channels-last map as a matrix, pixels x channels."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def random(
    case: Case, dtype: torch.dtype, device: str = "cuda", batch: int = 1, depthwise: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Return channels-last inputs and weights that keep their scale."""

    def maps(*shape: int) -> Tensor:
        x = torch.randn(batch, *shape, device=device, dtype=dtype)
        return x.contiguous(memory_format=torch.channels_last)

    def weights(out_channels: int, in_channels: int) -> Tensor:
        return torch.randn(out_channels, in_channels, 1, 1, device=device, dtype=dtype) / in_channels**0.5

    if isinstance(case, CrpCase):
        x = maps(case.channels, case.height, case.width)
        dense = [weights(case.channels, case.channels) for _ in range(STAGES)]
        return [x], [w[:, :1].contiguous() for w in dense] if depthwise else dense
    if isinstance(case, FusionCase):
        return [maps(*shape) for shape in case.inputs], [weights(case.out_channels, c) for c, _, _ in case.inputs]
    return [maps(case.classes, case.height, case.width)], []


def poison(result: Any) -> None:
    """Overwrite a result, so that nothing unwritten passes for one."""
    if isinstance(result, Tensor):
        result.fill_(torch.nan if result.is_floating_point() else 255)


def pixels(case: Case) -> int:
    """Return the pixels by which rows of configs.json are looked up."""
    if isinstance(case, UpsampleArgmaxCase):
        return case.to[0] * case.to[1]
    height, width = (case.height, case.width) if isinstance(case, CrpCase) else case.inputs[0][1:]
    return height * width
