"""Dtypes, memory layouts and error bounds of the op tests."""

import copy
import hashlib
import itertools
import mmap
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

import lwrn_fast

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
COPIES = [
    pytest.param(copy.deepcopy, id="deepcopy"),
    pytest.param(lambda module: pickle.loads(pickle.dumps(module)), id="pickle"),
]
# A constant of Linux, which mmap has from Python 3.13 on.
MAP_NORESERVE = 0x4000


def _sliced(dim: int) -> Callable[[Tensor], Tensor]:
    def layout(x: Tensor) -> Tensor:
        shape = list(x.shape)
        shape[dim] = 2 * shape[dim] + 3
        larger = torch.full(shape, torch.nan, dtype=x.dtype).contiguous(memory_format=torch.channels_last)
        view = larger.narrow(dim, 2, 2 * x.shape[dim])[(slice(None),) * dim + (slice(None, None, 2),)]
        return view.copy_(x)

    return layout


def _expanded(dim: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.narrow(dim, 0, 1).expand(x.shape)


# Functions that copy x to another memory layout; an expanded one repeats the first slice of x.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "contiguous": lambda x: x.contiguous(),
    "sliced_batch": _sliced(0),
    "sliced_channels": _sliced(1),
    "sliced_rows": _sliced(2),
    "sliced_columns": _sliced(3),
    "expanded_batch": _expanded(0),
    "expanded_channels": _expanded(1),
    "expanded_rows": _expanded(2),
    "expanded_columns": _expanded(3),
    "transposed_image": lambda x: x.transpose(2, 3).contiguous(memory_format=torch.channels_last).transpose(2, 3),
    "transposed_channels": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "batch_inside": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
}


def name(value: object) -> str | None:
    """Return the id of a test's parameter: bare dtypes, 9x10 for sizes."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, tuple):
        return "x".join(str(item) for item in value)
    return None


def enough_images(values_per_image: int) -> int:
    """Return a batch size with a few thousand values, so that eager's largest error shows."""
    return max(2, -(-4096 // values_per_image))


def rounding(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the maximum change of these float64 values by rounding to dtype."""
    info = torch.finfo(dtype)
    return exact.abs() * (info.eps / 2) + info.smallest_normal * info.eps / 2


def few(x: Tensor) -> Tensor:
    """Return x, or its first two images where an emulated GPU would take too long for the whole batch."""
    stands_in = lwrn_fast.backends.requested() in ("triton", "cuda") and not torch.cuda.is_available()
    return x[:2] if stands_in else x


def eager_error(function: Callable[..., Tensor], variants: Iterable[tuple[float, list[Any]]]) -> float:
    """Return the largest error against float64 of PyTorch's own operations, over variants of one problem.

    A variant is (scale, arguments): the problem in another order of channels, times a factor. The error of a
    problem is cached: each backend gets the same. The state of the random generator is restored.
    """
    with torch.random.fork_rng():
        problems = iter(variants)
        first = next(problems)
        key = None if function.__closure__ else (function, torch.get_num_threads(), fingerprint(first[1]))
        if key is None or key not in _errors:
            _errors[key] = _largest_error(function, itertools.chain([first], problems))
    return _errors[key]


_errors: dict[object, float] = {}


def fingerprint(arguments: list[Any]) -> bytes:
    """Return a hash of all values, shapes, dtypes and strides."""
    seen = hashlib.blake2b()

    def see(item: Any) -> None:
        if isinstance(item, list):
            for i in item:
                see(i)
        elif isinstance(item, Tensor):
            seen.update(f"{item.dtype} {item.shape} {item.stride()} {item.device}".encode())
            seen.update(item.cpu().clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy())
        else:
            seen.update(repr(item).encode())
        seen.update(b";")

    see(arguments)
    return seen.digest()


def _largest_error(function: Callable[..., Tensor], variants: Iterable[tuple[float, list[Any]]]) -> float:
    largest = 0.0
    for scale, arguments in variants:
        exact = function(*in_double(arguments))
        layouts = [arguments] if scale == 1 else []
        for variant in [*layouts, in_layout(arguments, torch.channels_last)]:
            error = (function(*variant).double() - exact)[exact.isfinite()].abs()
            largest = max(largest, float(error.max()) / scale if error.numel() else 0.0)
    return largest


def scales(x: Tensor) -> list[float]:
    """Return factors for the variants of a problem with input x.

    The largest of a few thousand errors is luck, ours as well as eager's: eager gets so many more chances that a result
    is called worse only where its errors are. In 16 bits the rounding of the stages outweighs that.
    """
    count = (32 if x.numel() < 20000 else 8 if x.numel() < 100000 else 2) if x.dtype == torch.float32 else 2
    return [1 + i / count for i in range(count)]


def in_double(item: Any) -> Any:
    if isinstance(item, list):
        return [in_double(i) for i in item]
    return item.double() if isinstance(item, Tensor) else item


def in_layout(item: Any, layout: torch.memory_format) -> Any:
    if isinstance(item, list):
        return [in_layout(i, layout) for i in item]
    return item.contiguous(memory_format=layout) if isinstance(item, Tensor) and item.dim() == 4 else item


def assert_as_exact(got: Tensor, exact: Tensor, error: float) -> None:
    """Fail where a value is further from `exact` (float64) than `error`, eager's largest, plus one rounding.

    NaN and infinities must be where `exact` has them.
    """
    assert got.shape == exact.shape
    assert torch.equal(got.isnan(), exact.isnan()), "NaN at other pixels"
    infinite = exact.isinf()
    assert torch.equal(got[infinite].double(), exact[infinite]), "infinities differ"
    finite = exact.isfinite()
    excess = (got.double() - exact)[finite].abs() - rounding(exact[finite], got.dtype) - error
    exceeding = int((excess > 0).sum())
    assert not exceeding, (
        f"{exceeding} values of {got.numel()} are off by up to {excess.max():.3g} more than eager's {error:.3g}"
    )


def assert_channels_last(result: Tensor) -> None:
    expected = torch.empty(result.shape, dtype=result.dtype, memory_format=torch.channels_last)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.numel() == 0 or min(result.shape) == 1 or result.stride() == expected.stride()


def far_apart(x: Tensor, dim: int) -> Tensor:
    """Return x with more than 2**31 elements between its two slices along dim; the gap takes no memory."""
    assert x.shape[dim] == 2
    distance = 2**31 + 64
    strides = list(x.contiguous(memory_format=torch.channels_last).stride())
    strides[dim] = distance
    elements = distance + x.numel()
    if x.is_cuda:
        return torch.empty(elements, dtype=x.dtype, device=x.device).as_strided(x.shape, strides).copy_(x)
    memory = mmap.mmap(-1, elements * x.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    return torch.frombuffer(memory, dtype=x.dtype).as_strided(x.shape, strides).copy_(x)
