"""The backend "lwrn_fast" finds a pattern however it is written, and none in code that only looks alike."""

import functools
import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lwrn_fast
from support.patterns import Net, chain, check, compiled, counts, last, maps, pool, same, up


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch.manual_seed(0)


class Threshold(nn.Module):
    def forward(self, x):
        return F.threshold(x, 0.0, 0.0)


def with_sum(total: Callable[[list[Tensor]], Tensor]) -> Callable:
    return lambda net, x, y: F.relu(total([net.a(x), up(net.b(y), x), up(net.c(y), x)]))


SUMS = {
    "operator": lambda t: t[0] + t[1] + t[2],
    "right": lambda t: t[0] + (t[1] + t[2]),
    "sum": sum,
    "sum from a float": lambda t: sum(t, 0.0),
    "torch.add": lambda t: torch.add(torch.add(t[0], t[1]), other=t[2]),
    "keywords": lambda t: torch.add(input=t[0], other=t[1], alpha=1).add(other=t[2]),
    "method": lambda t: t[0].add(t[1]).add_(t[2]),
    "dunder": lambda t: t[0].__add__(t[1]).__iadd__(t[2]),
    "in place": lambda t: operator.iadd(operator.iadd(t[0], t[1]), t[2]),
    "reduce": lambda t: functools.reduce(operator.add, t),
    "reduce torch": lambda t: functools.reduce(torch.add, t),
    "stack": lambda t: torch.stack(t).sum(0),
    "stack dim": lambda t: torch.stack(t, dim=0).sum(dim=0),
    "stack axis": lambda t: torch.stack(tuple(t)).sum(axis=0),
    "stack last": lambda t: torch.stack(t, -1).sum(-1),
    "stack dims": lambda t: torch.stack(t, 1).sum((1,)),
    "torch.sum": lambda t: torch.sum(torch.stack(t, 0), 0),
    "stack in sum": lambda t: torch.stack(t[:2]).sum(0) + t[2],
    "sum in stack": lambda t: torch.stack([t[0] + t[1], t[2]]).sum(0),
    "formats between": lambda t: last(t[0] + t[1].contiguous()) + t[2].clone(),
}
NOT_SUMS = {
    "alpha": lambda t: torch.add(t[0], t[1] + t[2], alpha=2),
    "stack of another dimension": lambda t: torch.stack([t[0], t[1], t[2]], 1).sum(2).mean(1),
    "mean": lambda t: torch.stack(t).mean(0),
    "stack with keepdim": lambda t: torch.stack(t).sum(0, keepdim=True),
    "stack of another dtype": lambda t: torch.stack(t).sum(0, dtype=torch.float64),
    "stack used twice": lambda t: (s := torch.stack(t)).sum(0) * s.amax(),
}


@pytest.mark.parametrize("total", SUMS.values(), ids=SUMS.keys())
def test_sums(total):
    report = check(Net(with_sum(total)), maps())
    assert counts(report) == {"fusion": 1}, str(report)
    assert "3 inputs to 6 channels" in str(report)


@pytest.mark.parametrize("total", NOT_SUMS.values(), ids=NOT_SUMS.keys())
def test_not_sums(total):
    report = check(Net(with_sum(total)), maps())
    assert "3 inputs" not in str(report)


CONSTANTS = {
    "a number": lambda n, x, y: F.relu((n.a(x) + 1) + up(n.b(y), x) + n.a(x.flip(2))),
    "a number behind": lambda n, x, y: F.relu(n.a(x) + up(n.b(y), x) + 0.5),
    "a size": lambda n, x, y: F.relu((n.a(x) + x.shape[3]) + up(n.b(y), x) + n.a(x)),
    "a scalar tensor": lambda n, x, y: F.relu(n.a(x) + up(n.b(y), x) + x.amax()),
    "a bias of planes": lambda n, x, y: F.relu(n.a(x) + up(n.b(y), x) + n.norm.weight[None, :, None, None]),
    "x twice": lambda n, x, y: x + x + n.p(pool(x)),
    "x three times": lambda n, x, y: x + (x + n.p(pool(x))) + x,
    "a stage twice": lambda n, x, y: x + (t := n.p(pool(x))) + t,
    "a map twice": lambda n, x, y: F.relu(n.a(x) + (t := up(n.b(y), x)) + t),
    "a number in a chain": lambda n, x, y: (x + 1) + n.p(pool(x)),
    "another start": lambda n, x, y: x.exp() + n.p(pool(x)),
    "chain and more": lambda n, x, y: n.q(pool(t := n.p(pool(x)))) + x.tanh() + t + x,
}


@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("forward", CONSTANTS.values(), ids=CONSTANTS.keys())
def test_every_summand_counts(forward, dynamic):
    check(Net(forward), maps(), dynamic=dynamic)


ACTIVATIONS = {
    "F.relu": (F.relu, "relu"),
    "torch.relu": (torch.relu, "relu"),
    "relu_": (lambda s: s.relu_(), "relu"),
    "inplace": (lambda s: F.relu(s, inplace=True), "relu"),
    "nn.ReLU": (nn.ReLU(inplace=True), "relu"),
    "clamp(min)": (lambda s: s.clamp(min=0), "relu"),
    "clamp_min": (lambda s: s.clamp_min(0), "relu"),
    "torch.clamp": (lambda s: torch.clamp(s, min=0.0), "relu"),
    "threshold": (Threshold(), "relu"),
    "nn.Threshold": (nn.Threshold(0.0, 0.0), "relu"),
    "F.relu6": (F.relu6, "relu6"),
    "nn.ReLU6": (nn.ReLU6(inplace=True), "relu6"),
    "hardtanh": (lambda s: F.hardtanh(s, 0, 6), "relu6"),
    "nn.Hardtanh": (nn.Hardtanh(0.0, 6.0), "relu6"),
    "clamp": (lambda s: s.clamp_(0, 6), "relu6"),
    "clip": (lambda s: torch.clip(s, 0, 6), "relu6"),
    "dropout before": (lambda s: F.relu(F.dropout(s, 0.5, training=False)), "relu"),
    "format before": (lambda s: F.relu(s.contiguous()), "relu"),
}
OTHER_ACTIVATIONS = {
    "clamp(max)": lambda s: s.clamp(max=6),
    "clamp to 5": lambda s: s.clamp(0, 5),
    "clamp from below": lambda s: s.clamp(-1, 6),
    "clamp by a map": lambda s: s.clamp(min=s.mean()),
    "threshold": lambda s: F.threshold(s, 0.5, 0.0),
    "threshold to another": lambda s: F.threshold(s, 0.0, -1.0),
    "hardtanh": F.hardtanh,
    "leaky": lambda s: F.leaky_relu(s, 0.1),
}


@pytest.mark.parametrize(("activation", "name"), ACTIVATIONS.values(), ids=ACTIVATIONS.keys())
def test_activations(activation, name, monkeypatch):
    seen = []
    run = lwrn_fast.rewrite.running.fusion
    monkeypatch.setattr(lwrn_fast.rewrite.running, "fusion", lambda *a: seen.append(a[3]) or run(*a))
    report = check(Net(lambda n, x, y: activation(n.a(x) + up(n.b(y), x))), maps())
    assert counts(report) == {"fusion": 1}
    assert seen == [name]


@pytest.mark.parametrize("activation", OTHER_ACTIVATIONS.values(), ids=OTHER_ACTIVATIONS.keys())
def test_other_activations(activation):
    check(Net(lambda n, x, y: activation(n.a(x) + up(n.b(y), x))), maps())


@pytest.mark.parametrize("bound", [0.0, 6.0])
def test_gradient_of_clamp_at_its_bounds(bound):
    """The gradient is 1 at its bounds, and that of relu6 is 0."""
    model = Net(lambda n, x, y: (n.a(x) + up(n.b(y), x)).clamp(0, 6))
    for conv in (model.a, model.b):
        nn.init.zeros_(conv.weight)
        nn.init.constant_(conv.bias, bound / 2)
    grads = []
    for function in (model, compiled(model)[0]):
        model.zero_grad()
        function(*maps()).sum().backward()
        grads.append(model.a.bias.grad.clone())
    assert torch.equal(*grads)


SIZES = {
    "shape": lambda x: {"size": x.shape[2:]},
    "size()": lambda x: {"size": x.size()[2:]},
    "size(2)": lambda x: {"size": (x.size(2), x.size(3))},
    "list": lambda x: {"size": [int(n) for n in x.shape[2:]]},
    "tuple": lambda x: {"size": tuple(x.shape[-2:])},
    "scale": lambda x: {"scale_factor": 2},
    "two scales": lambda x: {"scale_factor": (2.0, 2.0)},
    "recomputed": lambda x: {"scale_factor": 2.0, "recompute_scale_factor": True},
    "not recomputed": lambda x: {"scale_factor": 2, "recompute_scale_factor": False},
}


@pytest.mark.parametrize(("corners", "dynamic"), [(True, None), (False, True), (None, None)], ids=str)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_sizes(size, corners, dynamic):
    def forward(net, x, y):
        return F.relu(net.a(x) + F.interpolate(net.b(y), mode="bilinear", align_corners=corners, **size(x)))

    assert counts(check(Net(forward), maps(), dynamic=dynamic)) == {"fusion": 1}


def test_unpacked_size():
    def forward(net, x, y):
        h, w = x.shape[2:]
        return F.relu(net.a(x) + F.interpolate(net.b(y), (h, w), None, "bilinear"))

    assert counts(check(Net(forward), maps())) == {"fusion": 1}


@pytest.mark.parametrize(
    "module",
    [
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample((12, 10), mode="bilinear", align_corners=True),
        nn.UpsamplingBilinear2d(scale_factor=2),
        nn.UpsamplingBilinear2d((12, 10)),
    ],
    ids=str,
)
def test_upsampling_modules(module):
    model = Net(lambda n, x, y: F.relu(n.a(x) + n.up(n.b(y))))
    model.up = module
    assert counts(check(model, maps())) == {"fusion": 1}


@pytest.mark.filterwarnings("ignore:.*upsample.* is deprecated")
def test_deprecated_upsample():
    assert counts(check(Net(lambda n, x, y: n.a(x) + F.upsample(n.b(y), x.shape[2:], mode="bilinear")), maps()))


@pytest.mark.parametrize("recompute", [None, True], ids=["as given", "recomputed"])
@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("scale", [1.7, 2.15, (1.9, 2.3)], ids=str)
def test_fractional_scales(scale, corners, recompute):
    """Without align_corners, a pixel's source depends on the scale, unless that is recomputed from the sizes."""
    y = maps()[1]
    arguments = {"scale_factor": scale} | {
        "mode": "bilinear",
        "align_corners": corners,
        "recompute_scale_factor": recompute,
    }
    size = F.interpolate(y, **arguments).shape[2:]
    report = check(Net(lambda n, x, y: n.a(x) + F.interpolate(n.b(y), **arguments)), (torch.randn(2, 8, *size), y))
    assert counts(report) == {"fusion": 1}


@pytest.mark.parametrize(
    "arguments", [{"mode": "nearest"}, {"mode": "bicubic"}, {"mode": "bilinear", "antialias": True}], ids=str
)
def test_other_interpolations(arguments):
    report = check(Net(lambda n, x, y: n.a(x) + F.interpolate(n.b(y), x.shape[2:], **arguments)), maps())
    assert counts(report) == {}


def test_corners_differ():
    def forward(net, x, y):
        other = F.interpolate(net.c(y), x.shape[2:], mode="bilinear", align_corners=True)
        return net.a(x) + up(net.b(y), x) + other

    report = check(Net(forward), maps())
    assert [finding.reason for finding in report] == ["inputs differ in align_corners"]


CONVS = {
    "module": lambda n, x: n.a(x),
    "positional": lambda n, x: F.conv2d(x, n.a.weight, n.a.bias, 1, 0, 1, 1),
    "torch.conv2d": lambda n, x: torch.conv2d(x, weight=n.a.weight, bias=None, padding="same"),
    "normalised": lambda n, x: n.norm(n.a(x)),
    "normalised by F": lambda n, x: F.batch_norm(n.a(x), n.norm.running_mean, n.norm.running_var, eps=0.1),
    "dropout": lambda n, x: F.dropout2d(n.norm(F.dropout(n.a(x), 0.3, False)), 0.1, training=False),
    "format": lambda n, x: n.norm(n.a(x).contiguous(memory_format=torch.channels_last)).to(
        memory_format=torch.contiguous_format
    ),
    "computed": lambda n, x: F.conv2d(x, n.a.weight * 2, n.a.bias + 1),
    "from an input": lambda n, x: F.conv2d(x, x.mean((0, 2, 3))[None, :, None, None] * n.a.weight),
    "transposed": lambda n, x: F.conv2d(x, n.a.weight.view(8, 6, 1, 1).transpose(0, 1)),
    "expanded": lambda n, x: F.conv2d(x, n.a.weight[:, :1].expand(-1, 8, -1, -1)),
    "sliced": lambda n, x: F.conv2d(x, n.p.weight[::2][:3].repeat(2, 1, 1, 1)[:, :, :1]),
    "two": lambda n, x: n.a(n.p(x)),
    "two without bias": lambda n, x: n.a(n.q(x)),
    "padded by a circle": lambda n, x: n.a(F.pad(x[:, :, 1:-1, 1:-1], (1, 1, 1, 1), "circular")),
}


@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS.keys())
def test_convolutions(conv):
    report = check(Net(lambda n, x, y: F.relu(conv(n, x) + up(n.b(y), x))), maps())
    assert counts(report) == {"fusion": 1}, str(report)


@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS.keys())
def test_gradients(conv):
    model = Net(lambda n, x, y: F.relu(conv(n, x) + up(n.b(y), x)))
    inputs = maps()
    grads = []
    for function in (model, compiled(model)[0]):
        model.zero_grad()
        x, y = (x.clone().requires_grad_() for x in inputs)
        function(x, y).square().sum().backward()
        grads.append([x.grad, y.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    same(*[[g.reshape(-1) for g in grad] for grad in grads])


CHAINS = {
    "plain": lambda n, x, y: chain(n, x),
    "formats between": lambda n, x, y: chain(n, x, last),
    "dropout between": lambda n, x, y: chain(n, x, lambda t: F.dropout(t, 0.5, training=False)),
    "format before each pool": lambda n, x, y: x + (t := n.p(pool(x))) + n.q(pool(t.contiguous())),
    "format behind each pool": lambda n, x, y: x + n.q(pool(x).to(memory_format=torch.channels_last)),
    "in place": lambda n, x, y: operator.iadd(operator.iadd(s := x.exp(), t := n.p(pool(s))), n.q(pool(t))),
    "stacked": lambda n, x, y: torch.stack([x, t := n.p(pool(x)), n.q(pool(t))]).sum(0),
    "summed": lambda n, x, y: sum([x, t := n.p(pool(x)), n.q(pool(t))]),
    "normalised": lambda n, x, y: x + nn.functional.batch_norm(n.p(pool(x)), x.mean((0, 2, 3)), x.var((0, 2, 3))),
    "shared weights": lambda n, x, y: x + (t := n.p(pool(x))) + n.p(pool(t)),
    "behind a fusion": lambda n, x, y: chain(n, F.relu(n.p(x) + up(n.q(x[:, :, ::2]), x))),
}


@pytest.mark.parametrize("grad", [False, True], ids=["", "grad"])
@pytest.mark.parametrize("forward", CHAINS.values(), ids=CHAINS.keys())
def test_chains(forward, grad):
    report = check(Net(forward), maps(), grad)
    assert report.count("crp") == 1, str(report)


def test_upsampled_summand_of_its_own():
    """The other summands are fused if they are two convolutions; one convolution is left alone."""
    z = torch.randn(2, 6, 6, 5)
    two = Net(lambda n, x, y, z: F.relu6(n.a(x) + up(z, x) + up(n.b(y), x)))
    report = check(two, (*maps(), z))
    assert [(f.what, f.reason) for f in report] == [("2 of 3 inputs to 6 channels", None)]
    report = check(Net(lambda n, x, y: F.relu(n.a(x) + up(z, x))), maps())
    reason = "an upsampled input has no convolution of its own, and the rest by itself is not faster fused"
    assert [(f.what, f.reason) for f in report] == [("2 inputs", reason)]


OTHERS = {
    "3x3": lambda n, x, y: F.relu(n.a(x) + up(n.b(y), x) + x[:, :6]),
    "before": lambda n, x, y: F.relu(x[:, 2:] + n.a(x) + up(n.b(y), x)),
    "broadcast": lambda n, x, y: F.relu(n.a(x.mean((2, 3), keepdim=True)) + n.a(x) + up(n.b(y), x)),
    "batch": lambda n, x, y: F.relu(n.a(x[:1]) + n.a(x) + up(n.b(y), x)),
    "kept": lambda n, x, y: (t := n.a(x + 1), F.relu(n.a(x) + up(n.b(y), x) + t)),
    "pool": lambda n, x, y: n.a(x) + pool(n.a(x)) + up(n.b(y), x),
}


@pytest.mark.parametrize("forward", OTHERS.values(), ids=OTHERS.keys())
def test_part_of_a_sum(forward):
    report = check(Net(forward), maps())
    assert counts(report)["fusion"] == 1
    assert "2 of 3 inputs" in str(report)


def test_chain_and_fusion_in_one_sum():
    report = check(
        Net(lambda n, x, y: F.relu(x + n.p(pool(x)) + up(n.b(y), x) + up(n.c(y), x) + n.a(x.sin())), channels=8), maps()
    )
    assert counts(report)["crp"] == 1


@pytest.mark.parametrize("stages", [1, 3])
def test_convolution_before_the_pool(stages):
    """A sum of pools is no chained residual pooling: its pools are replaced, and the report says so."""

    def forward(net, x, y):
        out = t = x
        for _ in range(stages):
            t = pool(net.p(t))
            out = out + t
        return out

    report = check(Net(forward), maps())
    assert counts(report) == {"pool": 1}
    assert sorted((f.kind, f.what, f.reason) for f in report) == [
        (
            "crp",
            f"{stages} stage{'s' * (stages > 1)}",
            "its convolutions come before the pools, not behind them; the pools are replaced",
        ),
        ("pool", f"{stages} of 5x5", None),
    ]
