"""What the launches of all kernels share: tensors in the order the kernels read, devices, scratch memory."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

# Loops that are to be pipelined say so themselves.
OPTIONS = {"num_stages": 1}

Workspace = Callable[[int, torch.device], Tensor]


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, with its arguments by name, and `out`, where the result will be. No programs: no work."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    out: Tensor

    def run(self, traced: bool = False) -> Tensor:
        """Launch. traced: PyTorch may be recording a graph, and is to see the launch in it."""
        if self.programs:
            grid = (self.programs,)
            with on_device(self.out):
                if traced:  # the compiler chooses the rounding
                    torch.library.wrap_triton(self.kernel)[grid](**self.arguments)
                else:  # a * b + c is rounded once
                    self.kernel[grid](**self.arguments, enable_fp_fusion=True)
        return self.out


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return triton.next_power_of_2(n)


def channels_last(x: Tensor) -> Tensor:
    """x itself if its values lie in the order batch, height, width, channels without gaps, else a copy that does."""
    return x.contiguous(memory_format=torch.channels_last)


def empty_channels_last(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def matrix(weight: Tensor) -> Tensor:
    """The weights (planes, channels, 1, 1) of a convolution, in the order planes, channels without gaps."""
    return weight.reshape(weight.shape[0], weight.shape[1]).contiguous()


def precision(x: Tensor) -> str:
    """How float32 is multiplied: as PyTorch is told to do in convolutions, for which the kernels stand in."""
    cudnn: Any = torch.backends.cudnn
    return "tf32" if x.dtype == torch.float32 and x.is_cuda and cudnn.conv.fp32_precision == "tf32" else "ieee"


@cache
def multiprocessors(device: torch.device) -> int:
    """1 for devices that compute nothing, or in the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


_workspaces: dict[tuple[torch.device, int], Tensor] = {}


def kept_workspace(elements: int, device: torch.device) -> Tensor:
    """Zeros, which the kernels leave as zeros: one tensor per device and stream, larger when it must be.

    While a CUDA graph is captured, a tensor of its own: it may run on any stream, beside this one.
    """
    if device.type != "cuda":
        return zeros(elements, device)
    stream = torch.cuda.current_stream(device).cuda_stream
    if torch.cuda.is_current_stream_capturing():
        return zeros(elements, device)
    workspace = _workspaces.get((device, stream))
    if workspace is None or workspace.numel() < elements:
        workspace = _workspaces[device, stream] = zeros(max(elements, 4096), device)
    return workspace


def zeros(elements: int, device: torch.device) -> Tensor:
    return torch.zeros(elements, dtype=torch.int32, device=device)


