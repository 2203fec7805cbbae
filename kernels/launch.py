"""What the launches of all kernels share: tensors in the order the kernels read, devices, scratch memory."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor

# Loops that are to be pipelined say so themselves.
OPTIONS = {"num_stages": 1}

Plan = TypeVar("Plan")


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, with its arguments by name, and `out`, where the result will be. No programs: no work.

    traced: PyTorch may be recording a graph, and is to see the launch in it. kept: what it writes for a backward pass.
    """

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    out: Tensor
    traced: bool = False
    kept: Sequence[Tensor] | Tensor = ()

    def run(self) -> Tensor:
        if self.programs:
            grid = (self.programs,)
            with on_device(self.out):
                if self.traced:  # the compiler chooses the rounding
                    torch.library.wrap_triton(self.kernel)[grid](**self.arguments)
                else:  # a * b + c is rounded once
                    self.kernel[grid](**self.arguments, enable_fp_fusion=True)
        return self.out


@dataclass(frozen=True)
class Launches:
    """Launches, each of which may read what those before it wrote, and `out`, where the results will be."""

    launches: list[Launch]
    out: list[Tensor]

    def run(self) -> list[Tensor]:
        for launch in self.launches:
            launch.run()
        return self.out


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()


def planned(plan: Callable[..., Plan], traced: bool) -> Callable[..., Plan]:
    """A function of numbers that remembers its results; a graph's numbers may be symbols, which cannot be looked up."""
    return plan if traced else _remembering(plan)


@cache
def _remembering(plan: Callable[..., Plan]) -> Callable[..., Plan]:
    return lru_cache(maxsize=1024)(plan)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def no_larger_than(n: int, most: int) -> int:
    """The smallest power of two that is not below n, or `most`, a power of two, if that is smaller."""
    return most if n > most // 2 else triton.next_power_of_2(int(n))


def channels_last(x: Tensor) -> Tensor:
    """x itself if its values lie in the order batch, height, width, channels without gaps, else a copy that does."""
    return x.contiguous(memory_format=torch.channels_last)


def empty_channels_last(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def gradients_of(tensors: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """Memory for the gradient of each tensor, None where none is needed; maps and weights are channels-last."""
    return [_like(tensor) if need else None for tensor, need in zip(tensors, needs, strict=True)]


def _like(tensor: Tensor) -> Tensor:
    if tensor.dim() == 4:
        return empty_channels_last(tensor, tensor.shape)
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def precision(x: Tensor) -> str:
    """How float32 is multiplied: as PyTorch is told to do in convolutions, for which the kernels stand in."""
    cudnn: Any = torch.backends.cudnn
    return "tf32" if x.dtype == torch.float32 and x.is_cuda and cudnn.conv.fp32_precision == "tf32" else "ieee"


@cache
def multiprocessors(device: torch.device) -> int:
    """1 for devices that compute nothing, or in the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


_workspaces: dict[tuple[torch.device, int], Tensor] = {}


def workspace(elements: int, device: torch.device, traced: bool) -> Tensor:
    """Zeros, which the kernels leave as zeros: one tensor per device and stream, larger when it must be.

    A graph has its own, which it fills itself: it may run on any stream, beside this one.
    """
    if device.type != "cuda" or traced or torch.cuda.is_current_stream_capturing():
        return _zeros(elements, device)
    stream = torch.cuda.current_stream(device).cuda_stream
    kept = _workspaces.get((device, stream))
    if kept is None or kept.numel() < elements:
        kept = _workspaces[device, stream] = _zeros(max(elements, 4096), device)
    return kept


def _zeros(elements: int, device: torch.device) -> Tensor:
    return torch.zeros(elements, dtype=torch.int32, device=device)
