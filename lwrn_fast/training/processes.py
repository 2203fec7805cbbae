"""Let several processes, started by torchrun, train or evaluate one model with the results of one process."""

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
# Messages of the first process to the others while they wait for it.
_WORKING, _DONE, _REFUSED = 0, 1, 2


@contextmanager
def joined(device: str | None = None) -> Iterator[torch.device]:
    """Join the processes that torchrun started; give the device of this one.

    device: "cpu" or "cuda"; None takes a GPU where there is one. NCCL joins GPUs, Gloo CPUs.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU here")
    device_type = device or ("cuda" if torch.cuda.is_available() else "cpu")
    own = torch.device("cpu")
    if device_type == "cuda":
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(own)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        # DDP warns about the strides of 1x1 weights, which mean nothing
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    try:
        yield own
        if several:
            dist.barrier()  # none ends while the first one still writes files
    finally:
        if several:
            dist.destroy_process_group()


def count() -> int:
    """Return the number of processes.

    >>> count(), rank()
    (1, 0)
    """
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def total(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, without gradient."""
    if count() > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
    return value


def by_first(work: Callable[[Callable[[], object]], T]) -> T | None:
    """Return the result of `work` in the first process, None in the others, which wait.

    work: gets a function to call now and then, so that the waiting processes do not time out. Where it raises
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
    """Return the value of the first process in all processes."""
    told = torch.tensor(value, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(told, 0)
    return int(told)


class _Sum(torch.autograd.Function):
    """The sum over processes, with gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return total(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return total(grads[0])  # every process's loss depends on every process's value


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with the mean and variance of all processes, also on CPUs, where PyTorch has none."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W), in its dtype; N, H and W may differ between processes."""
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
    """Make every batch normalisation of the model use all processes' batches; names and values stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm2d
