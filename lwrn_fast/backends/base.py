"""The interface of a backend: its name, why it cannot run here, why it cannot run a call, and the run itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The dtypes that kernels take.
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Op:
    """An op as a backend sees it; lwrn_fast.ops has the table of all."""

    # `torch.ops.lwrn_fast.<name>`, and the name in every message.
    name: str
    # Takes the public function's arguments, raises for invalid ones, and returns all tensors of the call.
    check: Callable[..., list[Tensor]]
    # The op in plain PyTorch, on the arguments of the op's schema.
    reference: Callable[..., Tensor]
    # The backends that have a kernel of it. Plain PyTorch runs every op.
    kernels: tuple[str, ...] = ("cpu", "triton", "cuda")
    # True where `<name>_training` also returns the maps that the backward pass would compute again.
    keeps_stages: bool = False


class Call(NamedTuple):
    """A call of an op, whose arguments are checked."""

    op: Op
    # All tensors of the call. They share dtype and device with the first.
    tensors: Sequence[Tensor]
    # The arguments of the op's schema.
    arguments: tuple[Any, ...] = ()
    # The reason why only PyTorch's own operations will do; None where there is none.
    must_use_reference: str | None = None

    def trains(self) -> bool:
        """Return whether a backward pass may follow, for which the results of the stages are worth keeping."""
        if not torch.is_grad_enabled() or torch.compiler.is_exporting():
            return False
        return any(tensor.requires_grad for tensor in self.tensors)


class Backend:
    """One way to run an op. Backends never fall back by themselves: `select` does."""

    name: str
    # The reason why "auto" leaves it alone; None where it does not.
    unproven: str | None = None

    def missing(self) -> str | None:
        """Return why this installation cannot run any call, in one line; None where it can."""
        return None

    def why_not(self, call: Call) -> str | None:
        """Return why it cannot run this call, in one line; None where it can."""
        if self.name not in call.op.kernels:
            return f"it has no kernel for {call.op.name}"
        return call.must_use_reference or self.unsupported(call)

    def unsupported(self, call: Call) -> str | None:
        """Return why its kernel cannot run this call; None where it can."""
        raise NotImplementedError

    def run(self, call: Call) -> Any:
        """Return the op's result, a map in channels-last memory."""
        raise NotImplementedError


def no_kernel(tensors: Sequence[Tensor]) -> str | None:
    """Return why no kernel of any backend can take these tensors; None where one may."""
    if tensors[0].dtype not in KERNEL_DTYPES:
        return f"{tensors[0].dtype} is not float32, bfloat16 or float16"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms need PyTorch's own operations"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation needs PyTorch's own operations"
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.is_nested:
            return "a tensor is sparse or nested"
    return None


def too_many(call: Call, max_stages: int, max_inputs: int) -> str | None:
    """Return why a kernel that takes its tensors one by one cannot take these; None where it can."""
    four_dimensional = sum(tensor.dim() == 4 for tensor in call.tensors)  # maps and weights
    if call.op.name == "crp" and four_dimensional > 1 + max_stages:
        return f"it runs at most {max_stages} stages, not {four_dimensional - 1}"
    if call.op.name == "fusion" and four_dimensional > 2 * max_inputs:
        return f"it takes at most {max_inputs} inputs, not {four_dimensional // 2}"
    return None
