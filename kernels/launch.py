"""Launches of kernels, and what all of them need: tensors in the order the kernels read, devices, scratch memory."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor

# Launch options of every kernel. Loops are pipelined only where they say so: tl.range(..., num_stages=NUM_STAGES).
OPTIONS = {"num_stages": 1}

# Elements of a new workspace, at least, so that slightly larger problems need no other.
MIN_WORKSPACE = 4096

Plan = TypeVar("Plan")


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: its grid, its arguments by name, and `out`, the tensor of its result.

    A grid of (0,) launches nothing. traced: PyTorch may be recording a graph, which is to contain the launch. kept:
    what the kernel writes for a backward pass.
    """

    kernel: Any
    grid: tuple[int]
    arguments: dict[str, Any]
    out: Tensor
    traced: bool = False
    kept: Sequence[Tensor] | Tensor = ()

    def run(self) -> Tensor:
        """Launch the kernel on the current stream of out's device, and return out."""
        if self.grid[0]:
            with device_guard(self.out):
                if self.traced:  # the compiler chooses the rounding
                    torch.library.wrap_triton(self.kernel)[self.grid](**self.arguments)
                else:  # a * b + c is rounded once
                    self.kernel[self.grid](**self.arguments, enable_fp_fusion=True)
        return self.out


@dataclass(frozen=True)
class Launches:
    """Launches in order, each of which may read what those before it wrote, and `out`, the tensors of the results."""

    launches: list[Launch]
    out: list[Tensor]

    def run(self) -> list[Tensor]:
        """Run the launches in order, and return out."""
        for launch in self.launches:
            launch.run()
        return self.out


def device_guard(x: Tensor) -> AbstractContextManager[Any]:
    """Make x's device the current one, on which Triton launches."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return nullcontext()


def memoized(plan: Callable[..., Plan], traced: bool) -> Callable[..., Plan]:
    """Return plan, a function of numbers, with its results cached unless traced: symbols cannot be looked up."""
    return plan if traced else _memoized(plan)


@cache
def _memoized(plan: Callable[..., Plan]) -> Callable[..., Plan]:
    return lru_cache(maxsize=1024)(plan)


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def block_size(n: int, max_size: int) -> int:
    """Return the smallest power of two >= n, but at most max_size, a power of two."""
    return max_size if n > max_size // 2 else triton.next_power_of_2(int(n))


def channels_last(x: Tensor) -> Tensor:
    """Return x itself if its values lie in the order batch, height, width, channels without gaps, else such a copy."""
    return x.contiguous(memory_format=torch.channels_last)


def empty_channels_last(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Allocate a channels-last map with the dtype and device of `like`."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def empty_gradients(tensors: Sequence[Tensor], needs_grad: Sequence[bool]) -> list[Tensor | None]:
    """Allocate the gradient of each tensor, None where none is needed; maps and weights are channels-last."""
    return [_empty_like(tensor) if need else None for tensor, need in zip(tensors, needs_grad, strict=True)]


def _empty_like(tensor: Tensor) -> Tensor:
    if tensor.dim() == 4:
        return empty_channels_last(tensor, tensor.shape)
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def input_precision(x: Tensor) -> str:
    """Return how tl.dot multiplies float32: as PyTorch is told to in convolutions, which the kernels replace."""
    cudnn: Any = torch.backends.cudnn
    return "tf32" if x.dtype == torch.float32 and x.is_cuda and cudnn.conv.fp32_precision == "tf32" else "ieee"


@cache
def num_sms(device: torch.device) -> int:
    """Return the multiprocessors of a GPU, 1 for the meta device and in the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


# The workspace of each device and stream.
_workspaces: dict[tuple[torch.device, int], Tensor] = {}


def workspace(elements: int, device: torch.device, traced: bool) -> Tensor:
    """Return int32 zeros, which the kernels leave as zeros: one tensor per device and stream, replaced by a larger one
    when needed.

    A graph has its own, which it fills itself: it may run on any stream, at the same time as this one.
    """
    if device.type != "cuda" or traced or torch.cuda.is_current_stream_capturing():
        return _zeros(elements, device)
    stream = torch.cuda.current_stream(device).cuda_stream
    existing = _workspaces.get((device, stream))
    if existing is None or existing.numel() < elements:
        existing = _workspaces[device, stream] = _zeros(max(elements, MIN_WORKSPACE), device)
    return existing


def _zeros(elements: int, device: torch.device) -> Tensor:
    return torch.zeros(elements, dtype=torch.int32, device=device)
