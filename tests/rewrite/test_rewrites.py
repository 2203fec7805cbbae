"""A rewritten graph computes the same: writes in place, gradients, dtypes, sizes, results used twice, strides."""

import copy
import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from support.patterns import Net, chain, check, compiled, counts, flat, maps, pool, same, up, write


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch.manual_seed(0)


def late_view(net, x, y):
    s = x.exp()
    view = s[:, :2]
    out = s.add_(net.p(pool(s)))
    return out, view.sum(0)


def write_between(by: Callable) -> Callable:
    """Return a forward that writes into the input of a chain after its read."""

    def forward(net, x, y):
        s = x.exp()
        view = s.view(-1)
        t = net.p(pool(s))
        by(s, view, t)
        return s + t

    return forward


WRITES = {
    "into the start": write_between(lambda s, view, t: s.add_(1)),
    "into a view of the start": write_between(lambda s, view, t: view.mul_(2)),
    "into a part of the start": write_between(lambda s, view, t: s[0, 0].zero_()),
    "by an index": write_between(lambda s, view, t: operator.setitem(s, (0, 1), 5.0)),
    "into the data": write_between(lambda s, view, t: s.data.add_(1)),
    "into detached": write_between(lambda s, view, t: s.detach().add_(1)),
    "into a chunk": write_between(lambda s, view, t: s.chunk(2, 1)[0].neg_()),
    "by out": write_between(lambda s, view, t: torch.exp(t, out=s)),
    "by a list": write_between(lambda s, view, t: torch._foreach_add_([s], 1.0)),
    "by relu": write_between(lambda s, view, t: F.relu(t, inplace=True)),
    "by a copy": write_between(lambda s, view, t: s.copy_(t)),
    "into a view of the stage": write_between(lambda s, view, t: t[:, 0].add_(1)),
    "of the stage": lambda n, x, y: x + write(n.p(pool(x)), lambda t: t.add_(1)),
    "into the pool": lambda n, x, y: x + n.p(write(pool(x), lambda t: t.add_(1))),
    "into the input": lambda n, x, y: x.add_(n.p(pool(x))),
    "into a view of the input": lambda n, x, y: x[:, :].add_(n.p(pool(x))),
    "into a start that is kept": lambda n, x, y: ((s := x.exp()).add_(n.p(pool(s))), s * 2),
    "into a start with a view": late_view,
    "before the pool": lambda n, x, y: (s := x.exp()).add_(x) + n.p(pool(s)),
    "an unused sum": lambda n, x, y: write(s := x.exp(), lambda _: s.add_(n.p(pool(s)))),
    "weights between": lambda n, x, y: x + write(n.p(pool(x)), lambda t: n.p.weight.data.mul_(2)) + n.p(pool(x)),
    "bias between": lambda n, x, y: (t := pool(x), u := n.p(t), n.p.bias.detach().add_(1), x + u)[3],
    "into a fused input": lambda n, x, y: (t := n.a(x), x.add_(1), F.relu(t + up(n.b(y), x)))[2],
    "into a fused map": lambda n, x, y: (t := n.a(x), t.add_(1), F.relu(t + up(n.b(y), x)))[2],
    "relu of a sum that is kept": lambda n, x, y: (s := n.a(x) + up(n.b(y), x), F.relu_(s), s + 1)[1:],
    "relu of a sum with a view": lambda n, x, y: (s := n.a(x) + up(n.b(y), x), v := s[0], F.relu_(s), v + 1)[2:],
    "into logits": lambda n, x, y: (z := up(x, x[:, :, :, :5]), x.neg_(), z.argmax(1))[2],
    "statistics between": lambda n, x, y: (t := n.norm(n.a(x)), n.norm.running_mean.add_(1), t + up(n.b(y), x))[2],
}


@pytest.mark.parametrize("forward", WRITES.values(), ids=WRITES.keys())
def test_writes(forward):
    model = Net(forward)
    function, _ = compiled(copy.deepcopy(model))
    given = [maps()]
    given.append(copy.deepcopy(given[0]))
    with torch.no_grad():
        for _ in range(2):  # with what the first has left
            same([*flat(function(*given[1])), *given[1]], [*flat(model(*given[0])), *given[0]])


@pytest.mark.parametrize("part", ["chain", "fusion"])
def test_partly_without_gradients(part):
    def forward(net, x, y):
        with torch.no_grad():
            t = net.p(pool(x)) if part == "chain" else up(net.b(y), x)
        return x + t if part == "chain" else F.relu(net.a(x) + t)

    model, inputs = Net(forward), maps()
    grads = []
    for function in (model, compiled(model)[0]):
        given = [x.clone().requires_grad_() for x in inputs]
        model.zero_grad()
        function(*given).square().sum().backward()
        grads.append([*given, *model.parameters()])
        grads[-1] = [tensor.grad for tensor in grads[-1]]
    assert [grad is None for grad in grads[0]] == [grad is None for grad in grads[1]]
    same(*[[grad.reshape(-1) for grad in some if grad is not None] for some in grads])


@pytest.mark.parametrize(
    "forward",
    [
        lambda n, x, y: F.relu6(n.a(x) + up(n.b(y), x)).mul_(2),
        lambda n, x, y: F.threshold(n.a(x) + up(n.b(y), x), 0.0, 0.0)[:, 1:].add_(1),
        lambda n, x, y: (s := y.exp() + 1, n.a(x) + n.b(up(s, x)), s.sigmoid_())[1:],
    ],
    ids=["relu6", "threshold", "convolution behind the interpolation"],
)
def test_written_before_the_backward_pass(forward):
    """PyTorch's backward pass needs neither the result of a relu6 nor the input of an interpolation."""
    model, inputs = Net(forward), maps()
    grads = []
    for function in (model, compiled(model)[0]):
        model.zero_grad()
        given = [x.clone().requires_grad_() for x in inputs]
        sum(out.square().sum() for out in flat(function(*given))).backward()
        grads.append([x.grad for x in given])
    same(*grads)


def test_whole_without_gradients():
    def forward(net, x, y):
        with torch.no_grad():
            z = chain(net, x)
        return net.a(z)

    assert check(Net(forward), maps(), grad=True).count("crp") == 1


class TestAutocast:
    @staticmethod
    def half(forward):
        def run(*arguments):
            with torch.autocast("cpu", torch.bfloat16):
                return forward(*arguments)

        return run

    def test_fusion(self):
        report = check(Net(self.half(lambda n, x, y: F.relu(n.norm(n.a(x)) + up(n.b(y), x)))), maps(), tolerance=0.02)
        assert counts(report) == {"fusion": 1}

    def test_mixed_sum(self):
        """A float32 map plus a bfloat16 stage is float32."""
        report = check(Net(self.half(lambda n, x, y: x + n.p(pool(x)))), maps(), tolerance=0.02)
        assert [f.reason for f in report if f.kind == "crp"] == ["its sum mixes bfloat16 and float32"]

    def test_chain(self):
        report = check(Net(self.half(lambda n, x, y: chain(n, F.relu(n.p(x))))), maps(), tolerance=0.02)
        assert report.count("crp") == 1

    def test_switched_inside(self):
        def forward(net, x, y):
            with torch.autocast("cpu", torch.bfloat16):
                t = net.a(x)
            with torch.autocast("cpu", torch.float16):
                return F.relu(t.to(torch.float16) + up(net.b(y), x))

        check(Net(forward), maps(), tolerance=0.02)

        def half(net, x, y):
            x = x.bfloat16()
            with torch.autocast("cpu", torch.bfloat16):
                t = net.p(pool(x))
            return x + t

        check(Net(half), maps(), tolerance=0.02)


def half_weights(net, x, y):
    return net.a(x) + F.conv2d(y.half(), net.b.weight.half(), net.b.bias.half()).mean((2, 3), keepdim=True)


@pytest.mark.parametrize(
    "forward",
    [
        lambda n, x, y: x.double() + n.p(pool(x)),
        lambda n, x, y: F.relu(n.a(x) + up(n.b(y), x).double()),
        lambda n, x, y: F.relu(n.a(x) + up(n.b(y).half(), x)),
        half_weights,
        lambda n, x, y: (x * 3).long() + n.p(pool(x)).long(),
        lambda n, x, y: x + n.p(pool(x)) + (1 + 2j),
        lambda n, x, y: x + 0j + n.p(pool(x)),
        lambda n, x, y: n.a(x) + True + up(n.b(y), x),
    ],
)
def test_mixed_dtypes(forward):
    check(Net(forward), maps())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype):
    tolerance = 1e-12 if dtype == torch.float64 else 0.03
    model = Net(lambda n, x, y: (chain(n, x), F.relu(n.a(x) + up(n.b(y), x)))).to(dtype)
    report = check(model, tuple(x.to(dtype) for x in maps()), tolerance=tolerance)
    assert counts(report) == {"crp": 1, "fusion": 1}


@pytest.mark.parametrize("shape", [(0, 8, 6, 4), (1, 8, 1, 1), (1, 8, 1, 7), (3, 8, 2, 1)], ids=str)
def test_small_maps(shape):
    x = torch.randn(shape)
    model = Net(lambda n, x, y: (chain(n, x), F.relu(n.a(x) + up(n.b(y), x)), pool(x), F.max_pool2d(x, 9, 1, 4)))
    check(model, (x, torch.randn(shape[0], 4, 2, 2)))


def test_no_batch():
    x = torch.randn(8, 12, 10)
    check(Net(lambda n, x, y: (chain(n, x), F.relu(n.a(x) + n.a(-x)), pool(x))), (x, x))


def test_rank_differs():
    x, y = maps(1)
    check(Net(lambda n, x, y: F.relu(n.a(x[0]) + up(n.b(y), x))), (x, y))
    check(Net(lambda n, x, y: x[0] + n.p(pool(x))), (x, y))


@pytest.mark.parametrize("length", [7, 8])
def test_batch_norm_of_three_dimensions(length):
    """Channels are the second dimension of (N, C, L), and the first of an image without a batch."""
    norm = nn.BatchNorm2d(8).eval()
    nn.init.normal_(norm.running_mean)

    def forward(net, x, y):
        return x + F.batch_norm(net.p(pool(x)), norm.running_mean[:length], norm.running_var[:length])

    x = torch.randn(8, length, 9)
    check(Net(forward), (x, x))


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.BatchNorm2d(8, momentum=None),
        nn.BatchNorm2d(8, affine=False),
        nn.BatchNorm2d(8, eps=0.5),
        nn.SyncBatchNorm(8),
        nn.InstanceNorm2d(8),
        nn.GroupNorm(2, 8),
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
def test_normalisations(norm, training, dynamic):
    if training and isinstance(norm, nn.SyncBatchNorm):
        pytest.skip("torch.nn.SyncBatchNorm trains on GPUs alone")
    norm = copy.deepcopy(norm).train(training)
    other = copy.deepcopy(norm)
    x, y = maps()
    function, report = compiled(Net(lambda n, x, y: x + other(n.p(pool(x)))), dynamic)
    model = copy.deepcopy(function._orig_mod)
    model.run = lambda n, x, y: x + norm(n.p(pool(x)))
    for _ in range(2):
        same(flat(function(x, y)), flat(model(x, y)), 1e-4)
    same(list(other.state_dict().values()), list(norm.state_dict().values()))
    running = not training and type(norm) is nn.BatchNorm2d and norm.track_running_stats
    assert report.count("crp") == (running or isinstance(norm, nn.SyncBatchNorm))


class TestUsedElsewhere:
    @pytest.mark.parametrize(
        "forward",
        [
            lambda n, x, y: (x + (t := n.p(pool(x))), t),
            lambda n, x, y: (x + (t := n.p(pool(x))) + n.q(pool(t)), t.mean()),
            lambda n, x, y: (x + n.p(t := pool(x)), t),
            lambda n, x, y: (F.relu((s := n.a(x)) + up(n.b(y), x)), s),
            lambda n, x, y: (F.relu(n.a(x) + (s := up(n.b(y), x))), s),
            lambda n, x, y: (F.relu(n.a(x) + up(s := n.b(y), x)), s),
            lambda n, x, y: (F.relu(s := n.a(x) + up(n.b(y), x)), s),
            lambda n, x, y: (s := F.relu(n.a(x) + up(n.b(y), x)), s, s + 1),
        ],
    )
    def test_results_inside(self, forward):
        check(Net(forward), maps())

    def test_hooks(self):
        seen = []
        model = Net(lambda n, x, y: chain(n, x))
        model.p.register_forward_hook(lambda module, args, out: out * 2)
        model.q.register_forward_hook(lambda module, args, out: seen.append(out.shape))
        report = check(model, maps())
        assert [finding.what for finding in report if finding.kind == "crp"] == ["1 stage of 8 channels"]  # the second
        assert len(seen) == 2

    def test_detached(self):
        model = Net(lambda n, x, y: x + (t := n.p(pool(x))) + n.q(pool(t.detach())))
        grads = []
        for function in (model, compiled(model)[0]):
            model.zero_grad()
            torch.manual_seed(1)
            function(*maps()).sum().backward()
            grads.append(model.p.weight.grad.clone())
        assert torch.allclose(*grads)

    def test_weights_change(self):
        model = Net(lambda n, x, y: (chain(n, x), F.relu(n.a(n.q(x)) + up(n.b(y), x))))
        function, report = compiled(model)
        inputs = maps()
        for change in (lambda p: p.data.mul_(2), nn.init.normal_, lambda p: setattr(p, "data", torch.ones_like(p))):
            with torch.no_grad():
                same(flat(function(*inputs)), flat(model(*inputs)))
                for parameter in model.parameters():
                    change(parameter)
                same(flat(function(*inputs)), flat(model(*inputs)))
        assert counts(report) == {"crp": 1, "fusion": 1}

    def test_parametrized(self):
        model = Net(lambda n, x, y: chain(n, x))
        nn.utils.parametrizations.weight_norm(model.p)
        nn.utils.parametrizations.spectral_norm(model.q)
        assert check(model, maps()).count("crp") == 1


FORMATS = {
    "view": lambda z: z.view(2, -1),
    "view behind others": lambda z: (z.sin() * 2).view(2, -1),
    "view behind a convolution": lambda z: F.conv2d(z, torch.ones(3, 8, 3, 3)).view(2, 3, -1),
    "view of a transposition": lambda z: z.permute(0, 2, 3, 1),
    "as_strided": lambda z: z.as_strided((2, 3), (7, 2)),
    "strides": lambda z: z * z.stride(1),
    "contiguous?": lambda z: z + z.is_contiguous(),
    "a write through reshape": lambda z: write(z, lambda z: z.reshape(-1)[:7].zero_()),
    "a write through flatten": lambda z: (f := z.flatten(1), f.add_(1), z)[2],
    "a write into contiguous": lambda z: (f := z.contiguous(), f.add_(1), z)[2],
    "a part": lambda z: z[:, 2:, 1:],
    "both": lambda z: (z, z.view(2, -1)),
    "twice": lambda z: (z, z, z[0]),
    "random": lambda z: torch.rand_like(z),
    "dropout": lambda z: F.dropout(z, 0.5, training=True),
    "empty": lambda z: torch.zeros_like(z),
    "bytes": lambda z: z.view(torch.int32),
    "in a list": lambda z: [z, [z + 1], (z.mean(1),)],
    "in place": lambda z: z.relu_(),
    "pooled": lambda z: F.avg_pool2d(z, 2).reshape(2, -1),
    "real": lambda z: torch.view_as_complex(z.unflatten(3, (-1, 2))),
}


@pytest.mark.parametrize("layout", ["contiguous", "weights", "transposed"])
@pytest.mark.parametrize("use", FORMATS.values(), ids=FORMATS.keys())
def test_memory_formats(use, layout):
    """The model's own code sees the strides that it has without us."""
    x, y = maps()
    model = Net(lambda n, x, y: use(chain(n, x)))
    if layout == "transposed":
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
    elif layout == "weights":
        model.to(memory_format=torch.channels_last)
    results = []
    for function in (model, compiled(model)[0]):
        torch.manual_seed(1)
        try:
            with torch.no_grad():
                results.append(flat(function(x, y)))
        except RuntimeError:  # a view that these strides do not allow
            results.append(None)
    assert (results[0] is None) == (results[1] is None)
    if results[0] is not None and use is not FORMATS["bytes"]:
        same(results[1], results[0])


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_no_conversions_between_our_ops(last):
    """Only the graph's results are converted back."""
    model = Net(lambda n, x, y: F.conv2d(chain(n, F.relu(n.p(chain(n, x)) + n.q(x))), n.a.weight))
    x, y = maps()
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    seen = []

    def inner(graph, inputs):
        seen.extend(str(getattr(node.target, "__name__", "")) for node in graph.graph.nodes)
        return graph

    function, report = compiled(model, backend=inner)
    with torch.no_grad():
        function(x, y)
    assert counts(report)["crp"] == 2
    assert seen.count("run_format") == 1


def test_dynamic_formats():
    model = Net(lambda n, x, y: (chain(n, x), F.relu(n.a(x) + up(n.b(y), x)).view(x.shape[0], -1)))
    function, _ = compiled(model, dynamic=True)
    for batch in (2, 3, 4):
        inputs = maps(batch)
        with torch.no_grad():
            same(flat(function(*inputs)), flat(model(*inputs)))


def test_report_is_in_the_order_of_the_graph():
    def forward(net, x, y):
        first = pool(net.p(x))
        x = F.relu(net.p(first) + up(net.q(first[:, :, ::2]), x))
        return pool(chain(net, x))

    report = check(Net(forward), maps())
    assert [finding.kind for finding in report] == ["pool", "fusion", "crp"]
