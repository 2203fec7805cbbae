"""Small models to write patterns with, and their comparison with the graphs of the backend "lwrn_fast".

Each model runs eagerly and compiled, on copies of its inputs. Values, dtypes, strides and writes into the inputs must
be the same.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lwrn_fast

# Largest difference from eager PyTorch, relative to the largest value.
SAME = 1e-5


class Net(nn.Module):
    """Convolutions and a normalisation for the forward that is given."""

    def __init__(self, forward: Callable | None = None, channels: int = 6) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, channels, 1), nn.Conv2d(4, channels, 1)
        self.c = nn.Conv2d(4, channels, 1, bias=False)
        self.p, self.q = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=1e-3)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        nn.init.normal_(self.norm.weight)
        self.run = forward
        self.eval()

    def forward(self, *inputs):
        return self.run(self, *inputs)


def maps(batch: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 8, 12, 10), torch.randn(batch, 4, 6, 5)


def up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 5, 1, 2)


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def flat(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in flat(item)]


def compiled(model, dynamic: bool | None = None, **options):
    report = lwrn_fast.Report()
    options = {"backend": "eager", "report": report, **options}
    return torch.compile(model, backend="lwrn_fast", dynamic=dynamic, options=options), report


def check(model, inputs, grad: bool = False, dynamic: bool | None = None, tolerance: float = SAME):
    """Compare the compiled model with the eager one; return the report."""
    function, report = compiled(model, dynamic)
    arguments = [inputs, copy.deepcopy(inputs)]
    with torch.set_grad_enabled(grad):
        expected = flat(model(*arguments[0]))
        got = flat(function(*arguments[1]))
    same([*got, *arguments[1]], [*expected, *arguments[0]], tolerance)
    return report


def same(got: list[Tensor], expected: list[Tensor], tolerance: float = SAME) -> None:
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        assert (g.shape, g.dtype) == (e.shape, e.dtype)
        # a length of 1 has any stride
        strides = zip(g.shape, g.stride(), e.stride(), strict=True)
        assert not g.numel() or all(length == 1 or a == b for length, a, b in strides)
        finite = e.isfinite()
        assert torch.equal(finite, g.isfinite())
        assert torch.equal(g[~finite].nan_to_num(), e[~finite].nan_to_num())
        g, e = g[finite], e[finite]
        if not torch.equal(g, e):
            assert e.is_floating_point() or e.is_complex()
            assert ((g - e).abs().max() / e.abs().max()).item() < tolerance


def counts(report: lwrn_fast.Report) -> dict[str, int]:
    return {kind: report.count(kind) for kind in ("crp", "fusion", "labels", "pool") if report.count(kind)}


def chain(net: Net, x: Tensor, between: Callable[[Tensor], Tensor] = lambda t: t) -> Tensor:
    t = between(net.p(pool(x)))
    return x + t + between(net.q(pool(t)))


def write(x: Tensor, by: Callable[[Tensor], object]) -> Tensor:
    by(x)
    return x
