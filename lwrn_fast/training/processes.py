"""Several processes, started by torchrun, that work on one network as one process would."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ToldError as ToldError
from ..errors import UserError

T = TypeVar("T")
# What the first process tells the others while they wait for it.
_WORKING, _DONE, _REFUSED = 0, 1, 2


@contextmanager
def joined(device: str | None = None) -> Iterator[torch.device]:
    """Within it, the processes that torchrun started know each other; gives the device of this one.

    device: "cpu" or "cuda"; None takes a GPU where there is one. NCCL joins GPUs, Gloo CPUs.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU here")
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    place = torch.device("cpu")
    if kind == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        # DDP minds the strides of 1x1 weights, which mean nothing
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield place
        if several:
            dist.barrier()  # nobody leaves while the first one still writes files
    finally:
        if several:
            dist.destroy_process_group()


def count() -> int:
    """How many processes there are.

    >>> count(), rank()
    (1, 0)
    """
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which one this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes; no gradient flows."""
    if count() > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
    return value


def by_first(work: Callable[[Callable[[], object]], T]) -> T | None:
    """What `work` returns in the first process, None in the others, which wait.

    work: is given a function to call now and then, so that nobody who waits takes it for dead. Where it raises
    UserError, the others raise ToldError.
    """
    if count() == 1:
        return work(lambda: None)
    if rank() > 0:
        while (told := _from_first(_WORKING)) == _WORKING:
            pass
        if told == _REFUSED:
            raise ToldError("the first process says what is wrong")
        return None
    try:
        result = work(lambda: _from_first(_WORKING))
    except UserError:
        _from_first(_REFUSED)
        raise
    _from_first(_DONE)
    return result


def _from_first(value: int) -> int:
    """The value of the first process, in all of them."""
    told = torch.tensor(value, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(told, 0)
    return int(told)


class _Sum(torch.autograd.Function):
    """The sum over processes, through which gradients flow."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return total(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return total(grads[0])  # every process's loss depends on every process's value


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with the mean and variance of all processes, on CPUs too, where PyTorch has none."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape and dtype; N, H and W may differ between processes."""
        if not self.training or count() == 1:
            return super().forward(x)
        values = x if x.dtype == torch.float64 else x.float()
        pixels = total(values.new_tensor(values.numel() / values.shape[1]))
        mean = _Sum.apply(values.sum((0, 2, 3))) / pixels
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / pixels
        with torch.no_grad():
            unbiased = variance * pixels / (pixels - 1).clamp_min(1)
            for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
                cast(Tensor, running).lerp_(new, cast(float, self.momentum))
            cast(Tensor, self.num_batches_tracked).add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def synchronise(model: nn.Module) -> None:
    """Let every batch normalisation of the model see all processes' batches; names and values stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm2d
