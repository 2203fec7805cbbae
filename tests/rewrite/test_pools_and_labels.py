"""The backend "lwrn_fast" replaces 5x5 pools, pools that several of them compose, and upsampling with argmax."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lwrn_fast
from support.patterns import Net, check, compiled, counts, maps, pool, up


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch.manual_seed(0)


def pools_of(*sizes: int) -> Callable:
    return lambda n, x, y: [F.max_pool2d(x, k, 1, k // 2) for k in sizes]


def special(x: Tensor) -> Tensor:
    x = x.clone()
    x[0, 0, 3, 4], x[0, 1, 2, 2], x[1, 2] = torch.nan, torch.inf, -torch.inf
    return x


class TestPools:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
    @pytest.mark.parametrize("sizes", [(9,), (13,), (17,), (5, 9, 13), (13, 9, 5), (9, 9), (5, 7, 9)], ids=str)
    def test_large(self, sizes, dtype):
        x = special(torch.randn(2, 8, 12, 10)).to(dtype)
        for given in (x, x.contiguous(memory_format=torch.channels_last), x[:, :, :1, :1], x[:, :, :, 3:5]):
            report = check(Net(pools_of(*sizes)), (given.clone(), given), tolerance=0)
            expected = {f"{sizes.count(k)} of {k}x{k}" for k in sizes if k % 4 == 1}
            assert {finding.what for finding in report} == expected
            torch._dynamo.reset()

    def test_made_of_each_other(self, monkeypatch):
        calls = []
        run = lwrn_fast.rewrite.running.pool5x5
        monkeypatch.setattr(lwrn_fast.rewrite.running, "pool5x5", lambda x: calls.append(1) or run(x))
        check(Net(pools_of(13, 5, 9)), maps())
        assert len(calls) == 3

    @pytest.mark.parametrize("sizes", [(5,), (9,), (5, 9, 13)], ids=str)
    def test_gradients(self, sizes):
        """At ties, gradients go where PyTorch's go."""
        x = torch.randint(3, (1, 8, 12, 10)).float()
        grads = []
        for function in (Net(pools_of(*sizes)), compiled(Net(pools_of(*sizes)))[0]):
            given = x.clone().requires_grad_()
            sum((out * torch.arange(10)).sum() for out in function(given, given)).backward()
            grads.append(given.grad)
        assert torch.equal(*grads)

    def test_written_between(self):
        check(Net(lambda n, x, y: [F.max_pool2d(x, 9, 1, 4), x.add_(1), pool(x)]), maps())
        check(Net(lambda n, x, y: [p := pool(x), p.add_(1), F.max_pool2d(x, 9, 1, 4)]), maps())

    @pytest.mark.parametrize(
        "arguments", [(9, 1, 3), (9, 2, 4), (9, 1, 4, 2), (7, 1, 3), ((5, 9), 1, (2, 4)), (1, 1, 0)], ids=str
    )
    def test_others(self, arguments):
        report = check(Net(lambda n, x, y: F.max_pool2d(x, *arguments)), maps())
        assert not report.findings

    def test_with_indices(self):
        report = check(Net(lambda n, x, y: F.max_pool2d(x, 5, 1, 2, return_indices=True)), maps())
        assert [finding.reason for finding in report] == ["a pool returns indices"]

    def test_whole_numbers(self):
        report = check(Net(lambda n, x, y: pool(x)), (torch.randint(9, (1, 8, 7, 7)), torch.zeros(())))
        assert [finding.reason for finding in report] == ["its values are int64"]


LABELS = {
    "argmax": lambda z: z.argmax(1),
    "torch.argmax": lambda z: torch.argmax(z, dim=1),
    "max": lambda z: z.max(1)[1],
    "indices": lambda z: z.max(dim=1).indices,
    "torch.max": lambda z: torch.max(z, 1)[1],
    "format": lambda z: z.contiguous().argmax(1),
}
NOT_LABELS = {
    "values": lambda z: z.max(1)[0],
    "both": lambda z: torch.max(z, 1),
    "keepdim": lambda z: z.argmax(1, keepdim=True),
    "another dimension": lambda z: z.argmax(2),
    "all": lambda z: z.argmax(),
    "logits too": lambda z: (z, z.argmax(1)),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
def test_labels(labels):
    report = check(Net(lambda n, x, y: labels(up(x[:, :, ::3], x))), maps())
    assert counts(report) == {"labels": 1}


@pytest.mark.parametrize("labels", NOT_LABELS.values(), ids=NOT_LABELS.keys())
def test_not_labels(labels):
    assert counts(check(Net(lambda n, x, y: labels(up(x[:, :, ::3], x))), maps())) == {}
