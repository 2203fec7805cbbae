"""An accelerated network is the module that it was: it follows every change, whatever PyTorch users do to a module
works, any way to write a forward gives the same, and nobody hears of what Dynamo cannot do."""

import copy
import io
import logging
import os
import pickle
import random
import threading
import types
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn
from torch.utils._pytree import tree_flatten

import lwrn_fast


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.act = nn.Conv2d(8, 8, 1), nn.MaxPool2d(5, 1, 2), nn.Sequential(nn.ReLU())
        self.norm = nn.BatchNorm2d(8)
        self.gain, self.steps, self.names, self.items, self.kinds = 1.0, 1, {"a": 1.0}, [1.0], set()
        self.space, self.array = types.SimpleNamespace(gain=1.0), np.ones(2)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("grid", None)

    def body(self, x):
        return x + self.conv(self.pool(x))

    def factor(self):
        return 1.0

    def forward(self, x):
        return self.norm(self.act(self.body(x)))


class Body(Block):
    """Without a normalisation, which neither vmap nor bfloat16 takes in training."""

    def forward(self, x):
        return self.body(x)


class Settings:
    gain = 1.0


GAIN, NAMES, SETTINGS = 1.0, {"gain": 1.0}, Settings()


def helper():
    return 1.0


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Each test's own compiled code, and process."""
    for name, value in {"GAIN": 1.0, "NAMES": {"gain": 1.0}, "SETTINGS": Settings(), "helper": helper}.items():
        monkeypatch.setitem(globals(), name, value)
    monkeypatch.setattr(Settings, "gain", 1.0)
    monkeypatch.setenv("GAIN", "1")
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)


def pair(forward=Block.forward, **attributes):
    """The same network twice, of a class of its own, the second accelerated."""
    kind = type("Net", (Block,), {"forward": forward, "K": 1.0, "__module__": __name__, **attributes})
    plain = kind()
    plain.kind = kind
    accelerated = copy.deepcopy(plain)
    lwrn_fast.accelerate(accelerated)
    assert type(accelerated) is not kind
    return plain, accelerated


def maps(*shape):
    return torch.rand(shape or (2, 8, 9, 7), generator=torch.Generator().manual_seed(1))


def same(got, expected):
    got, expected = tree_flatten(got), tree_flatten(expected)
    assert got[1] == expected[1]
    for g, e in zip(got[0], expected[0], strict=True):
        assert type(g) is type(e)
        if isinstance(g, torch.Tensor):
            assert (g.shape, g.dtype, g.stride(), g.requires_grad) == (e.shape, e.dtype, e.stride(), e.requires_grad)
            close = (0.02, 0.05) if e.dtype == torch.bfloat16 else (1e-4, 1e-5)
            largest = max(1.0, float(e.detach().abs().max())) if e.numel() and e.is_floating_point() else 1.0
            torch.testing.assert_close(g, e, rtol=close[0], atol=close[1] * largest)  # sums round by their terms
        else:
            assert g == pytest.approx(e, rel=1e-4) if isinstance(e, float) else g == e


def seeded(function, *inputs):
    torch.manual_seed(2)
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    return function(*inputs)


def new_child_class(module):
    module.conv.__class__ = type("Other", (nn.Conv2d,), {"forward": lambda self, x: x * 2})


CHANGES = {
    "weights": lambda m: m.conv.weight.data.mul_(2),
    "data": lambda m: setattr(m.conv.weight, "data", torch.ones(8, 8, 1, 1)),
    "parameter": lambda m: setattr(m.conv, "weight", nn.Parameter(torch.ones(8, 8, 1, 1))),
    "no bias": lambda m: setattr(m.conv, "bias", None),
    "module": lambda m: setattr(m, "conv", nn.AvgPool2d(3, 1, 1)),
    "module of a container": lambda m: m.act.__setitem__(0, nn.Tanh()),
    "one more module": lambda m: m.act.append(nn.Tanh()),
    "kernel": lambda m: (setattr(m.pool, "kernel_size", 3), setattr(m.pool, "padding", 1)),
    "class of a child": new_child_class,
    "class": lambda m: setattr(m, "__class__", type("Other", (Block,), {"forward": lambda self, x: x * 2})),
    "mode": lambda m: m.eval(),
    "mode of a child": lambda m: m.norm.eval(),
    "forward of a child": lambda m: setattr(m.conv, "forward", lambda x: x * 0),
    "forward": lambda m: setattr(m, "forward", lambda x: x * 3),
    "hook": lambda m: m.register_forward_hook(lambda module, args, out: out * 2),
    "hook before": lambda m: m.register_forward_pre_hook(lambda module, args: (args[0] * 3,)),
    "hook of a child": lambda m: m.conv.register_forward_hook(lambda module, args, out: out * 2),
    "hook before a child": lambda m: m.act[0].register_forward_pre_hook(lambda module, args: -args[0]),
    "pruned": lambda m: torch.nn.utils.prune.l1_unstructured(m.conv, "weight", 0.5),
    "weight norm": lambda m: torch.nn.utils.parametrizations.weight_norm(m.conv).bias.data.mul_(2),
    "parametrized": lambda m: torch.nn.utils.parametrize.register_parametrization(m.conv, "weight", nn.Softmax(0)),
    "state": lambda m: m.load_state_dict({name: torch.ones_like(v) for name, v in m.state_dict().items()}),
    "memory format": lambda m: (m.to(memory_format=torch.channels_last), m.conv.bias.data.mul_(2)),
    "body of the class": lambda m: setattr(m.kind, "body", lambda self, x: x * 2),
    "forward of the class": lambda m: setattr(m.kind, "forward", lambda self, x: x * 2),
}
READS = {
    "attribute": (lambda m: m.gain, lambda m: setattr(m, "gain", 3.0)),
    "counter": (lambda m: m.steps, lambda m: setattr(m, "steps", 3)),
    "new attribute": (lambda m: getattr(m, "new", 1.0), lambda m: setattr(m, "new", 3.0)),
    "attribute?": (lambda m: 3.0 if hasattr(m, "new") else 1.0, lambda m: setattr(m, "new", 3.0)),
    "__dict__": (lambda m: m.__dict__.get("new", 1.0), lambda m: setattr(m, "new", 3.0)),
    "vars": (lambda m: 3.0 if "new" in vars(m) else 1.0, lambda m: setattr(m, "new", 3.0)),
    "attribute gone": (lambda m: getattr(m, "gain", 3.0), lambda m: delattr(m, "gain")),
    "dictionary": (lambda m: m.names["a"], lambda m: m.names.update(a=3.0)),
    "new key": (lambda m: m.names.get("b", 1.0), lambda m: m.names.update(b=3.0)),
    "list": (lambda m: m.items[0], lambda m: m.items.__setitem__(0, 3.0)),
    "length": (lambda m: float(len(m.items)), lambda m: m.items.append(1.0)),
    "set": (lambda m: 3.0 if "b" in m.kinds else 1.0, lambda m: m.kinds.add("b")),
    "namespace": (lambda m: m.space.gain, lambda m: setattr(m.space, "gain", 3.0)),
    "array": (lambda m: float(m.array[0]), lambda m: m.array.__setitem__(0, 3.0)),
    "buffer": (lambda m: m.scale, lambda m: m.scale.fill_(3)),
    "buffer's truth": (lambda m: 3.0 if m.scale > 2 else 1.0, lambda m: m.scale.fill_(3)),
    "buffer's number": (lambda m: m.scale.item(), lambda m: m.scale.fill_(3)),
    "modules": (lambda m: float(len(m._modules)), lambda m: m.add_module("new", nn.ReLU())),
    "isinstance": (lambda m: 3.0 if isinstance(m.act, nn.ReLU) else 1.0, lambda m: setattr(m, "act", nn.ReLU())),
    "method": (lambda m: m.factor(), lambda m: setattr(m, "factor", lambda: 3.0)),
    "bound method": (lambda m: m.factor(), lambda m: setattr(m, "factor", types.MethodType(lambda m: 3.0, m))),
    "method of the class": (lambda m: m.factor(), lambda m: setattr(m.kind, "factor", lambda m: 3.0)),
    "value of the class": (lambda m: m.K, lambda m: setattr(m.kind, "K", 3.0)),
    "value of the type": (lambda m: type(m).K, lambda m: setattr(m.kind, "K", 3.0)),
    "global variable": (lambda m: GAIN, lambda m: globals().update(GAIN=3.0)),
    "global dictionary": (lambda m: NAMES["gain"], lambda m: NAMES.update(gain=3.0)),
    "global object": (lambda m: SETTINGS.gain, lambda m: setattr(SETTINGS, "gain", 3.0)),
    "class of a global object": (lambda m: SETTINGS.gain, lambda m: setattr(Settings, "gain", 3.0)),
    "global function": (lambda m: helper(), lambda m: globals().update(helper=lambda: 3.0)),
    "environment": (lambda m: float(os.environ.get("GAIN", "1")), lambda m: os.environ.update(GAIN="3")),
    "learning": (lambda m: 3.0 if m.scale.requires_grad else 1.0, lambda m: m.scale.requires_grad_()),
    "grad mode": (lambda m: 3.0 if torch.is_grad_enabled() else 1.0, lambda m: torch.set_grad_enabled(False)),
    "default dtype": (
        lambda m: 3.0 if torch.get_default_dtype() == torch.double else 1.0,
        lambda m: torch.set_default_dtype(torch.double),
    ),
}
FOLLOWED = {name: (Block.forward, change) for name, change in CHANGES.items()} | {
    name: (lambda self, x, read=read: self.body(x) * read(self), change) for name, (read, change) in READS.items()
}


@pytest.mark.parametrize(("forward", "change"), FOLLOWED.values(), ids=FOLLOWED.keys())
def test_follows(forward, change):
    """What changes after the first call changes the next."""
    plain, accelerated = pair(forward)
    x = maps()
    before = plain(x)
    same(accelerated(x), before)
    for module in (plain, accelerated):
        change(module)
    after = plain(x)
    same(accelerated(x), after)
    assert not torch.allclose(after, before)


class Two(NamedTuple):
    a: Any
    b: int


@dataclass
class Three:
    a: torch.Tensor
    b: int


class Doubles(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 3


@torch.no_grad()
def decorated(self, x):
    return self.body(x)


def cached(self, x):
    if x.shape not in self.names:
        self.names[x.shape] = torch.rand(x.shape[2:])
    return self.body(x) + self.names[x.shape]


def lazy_layer(self, x):
    if not hasattr(self, "late"):
        self.late = nn.Conv2d(8, 8, 3, padding=1)
    return self.late(self.body(x))


def lazy_buffer(self, x):
    if self.grid is None or self.grid.shape != x.shape:
        self.grid = torch.rand_like(x)
    return self.body(x) + self.grid


def remembers(self, x):
    y = self.body(x) + getattr(self, "last", 0.0)
    self.last = y.detach()[:1, :, :1, :1]
    return y


def with_a_hook(self, x):
    got = []
    handle = self.pool.register_forward_hook(lambda module, args, out: got.append(out))
    y = self.body(x)
    handle.remove()
    return y, got


def goes_on(self, x):
    try:
        return self.body(x.view(1, 2, 3))
    except RuntimeError:
        return self.body(x)


def numbers_of(self, x):
    y = self.body(x)
    return y * float(np.percentile(y.detach().numpy(), 30))


def in_bfloat16(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        return self.body(x)


def gradient(self, x):
    if torch.is_inference_mode_enabled():
        return self.body(x)
    with torch.enable_grad():
        z = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(self.body(z).square().sum(), z, create_graph=True)
    return self.body(x) + grad


def counts(self, x):
    self.steps += 1
    return self.body(x) * self.steps


def random_depth(self, x):
    for _ in range(random.randint(1, 3)):
        x = self.body(x)
    return x


def drops(self, x):
    return self.body(x) if not self.training or random.random() < 0.5 else x + 0 * self.conv.weight.sum()


def trains_a_buffer(self, x):
    with torch.no_grad():
        self.scale.mul_(0.9).add_(x.mean())
    return self.body(x) * self.scale


FORWARDS = {
    "counter": counts,
    "cache": cached,
    "late layer": lazy_layer,
    "late buffer": lazy_buffer,
    "last result": remembers,
    "buffer": trains_a_buffer,
    "random depth": random_depth,
    "random branch": drops,
    "NumPy's random numbers": lambda self, x: self.body(x) * float(np.random.rand()),  # noqa: NPY002
    "NumPy": numbers_of,
    "item": lambda self, x: (y := self.body(x)) * y.max().item(),
    "branch of a value": lambda self, x: self.body(x) * 2 if x.mean() > 0.1 else x,
    "shape of values": lambda self, x: (y := self.body(x))[y > 0.7],
    "own hook": with_a_hook,
    "an error": goes_on,
    "autocast": in_bfloat16,
    "gradient": gradient,
    "checkpoint": lambda self, x: torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False),
    "function": lambda self, x: Doubles.apply(self.body(x)),
    "decorator": lambda self, x: decorated(self, x) + x,
    "modes": lambda self, x: self.norm(F.dropout(self.body(x), 0.3, self.training)),
    "views": lambda self, x: ((y := self.body(x))[:, :4], y[:, 4:], y),
    "of the input": lambda self, x: (self.body(x), x.view(-1), x[:, :4]),
    "like the input": lambda self, x: self.body(x) + torch.rand_like(x),
    "named tuple": lambda self, x: Two(self.body(x), 2),
    "dictionary of results": lambda self, x: {"out": self.body(x), "none": None, "text": "a"},
    "generator": lambda self, x: list(self.body(x) * i for i in range(3)),  # noqa: C400
    "weights": lambda self, x: (self.conv.weight.data.clamp_(-0.1, 0.1), self.body(x))[1],
}


@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS.keys())
def test_forwards(forward):
    """Results, gradients, what is left in the module and the random numbers drawn, in any modes, in any order."""

    def uses(module):
        yield module(maps())
        with torch.no_grad():
            yield module(maps(1, 8, 5, 6))
        x = maps().requires_grad_()
        out = module(x)
        sum(t.float().square().sum() for t in tree_flatten(out)[0] if isinstance(t, torch.Tensor)).backward()
        yield x.grad, module.conv.weight.grad
        yield module.eval()(maps())
        with torch.inference_mode():
            yield module.train()(maps())
        yield list(module.state_dict()), module.state_dict(), module.steps, torch.rand(()), random.random()

    plain, accelerated = pair(forward)
    results = [seeded(lambda module=module: list(uses(module))) for module in (plain, accelerated)]
    same(results[1], results[0])


def test_a_view_of_the_input_stays_one():
    _, accelerated = pair(lambda self, x: (self.body(F.conv2d(x, self.conv.weight)), x[:, :4]))
    x = maps()
    _, view = accelerated(x)
    view.data.zero_()
    assert x[:, :4].abs().max() == 0


def keyword_only(self, x, *, gain=None, **rest):
    return self.body(x) * (1 if gain is None else gain) + rest.get("more", 0)


def either(self, x=None, mask=None):
    return None if x is None else self.body(x) * (1 if mask is None else mask)


ARGUMENTS = {
    "by keyword": (keyword_only, [{}, {"gain": 2}, {"gain": 2.5}, {"more": maps()}, {"unused": None}]),
    "any number": (lambda self, *xs: [self.body(x) for x in xs], [(maps(),), (maps(), maps()), ()]),
    "list": (lambda self, xs: self.body(xs[0]) + sum(xs[1:]), [([maps()],), ((maps(), 1, 2.0),), ([maps()],)]),
    "dictionary": (
        lambda self, xs: {"out": self.body(xs["a"]), **xs},
        [({"a": maps()},), ({"b": 1, "a": maps(), "c": None},), ({"a": maps()},)],
    ),
    "dataclass": (lambda self, t: self.body(t.a) * t.b, [(Three(maps(), 2),), (Three(maps(1, 8, 5, 5), 3),)]),
    "None": (either, [(maps(),), (maps(), maps()), (None,), (), (maps(),)]),
    "text": (lambda self, x, text: self.body(x) * len(text), [(maps(), "a"), (maps(), "ab")]),
}


@pytest.mark.parametrize(("forward", "calls"), ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_arguments(forward, calls):
    plain, accelerated = pair(forward)
    for given in calls:
        args, kwargs = ((maps(),), given) if isinstance(given, dict) else (given, {})
        same(accelerated(*args, **kwargs), plain(*args, **kwargs))


@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS.keys())
def test_optimized(forward):
    """What the copy keeps from call to call is kept, layers made at need too."""
    module = pair(forward)[0].eval().requires_grad_(False)
    optimized = lwrn_fast.optimize(module, maps(), how="eager")
    for x in (maps(), maps(), maps(1, 8, 5, 6), maps()):
        with torch.no_grad():
            expected = seeded(copy.deepcopy(optimized.network), x)
        got = seeded(optimized, x)
        same(got, expected)


def late_in_a_dictionary(self, x):
    if "late" not in self.act:
        self.act["late"] = nn.Conv2d(8, 8, 1)
    return self.act["late"](self.body(x))


def late_in_a_list(self, x):
    if len(self.act) < 2:
        self.act.append(nn.Conv2d(8, 8, 1))
    for layer in self.act:
        x = layer(self.body(x))
    return x


@pytest.mark.parametrize("forward", [late_in_a_dictionary, late_in_a_list])
def test_optimized_with_late_layers(forward):
    module = pair(forward)[0].eval()
    module.act = nn.ModuleDict() if forward is late_in_a_dictionary else nn.ModuleList()
    optimized = lwrn_fast.optimize(module, maps(), how="eager")
    first = optimized(maps())
    torch.testing.assert_close(optimized(maps()), first)
    torch.testing.assert_close(first, optimized.network(maps()).detach())


def warned(caplog):
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("how", ["accelerate", "optimize"])
@pytest.mark.parametrize("forward", [goes_on, FORWARDS["item"]], ids=["an error", "item"])
def test_dynamo_is_quiet(forward, how, capsys, caplog):
    """One line at most, and the report, instead of pages of tracebacks."""
    plain, accelerated = pair(forward)
    module = accelerated if how == "accelerate" else lwrn_fast.optimize(plain, maps(), how="eager")
    for _ in range(2):
        module(maps())
    lines = warned(caplog)
    assert {record.name for record in lines} <= {"lwrn_fast"}
    assert len(lines) == (forward is goes_on)
    assert "Traceback" not in capsys.readouterr().err
    if forward is goes_on:
        assert f"{how}: Net runs in parts as it is: Dynamo cannot capture it" in lines[0].message


WRONG = {"7 planes": maps(1, 7, 5, 5), "a vector": maps(4), "None": None, "text": "text", "float64": maps().double()}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_errors_are_the_networks_own(wrong, caplog):
    plain, accelerated = pair()
    with pytest.raises(Exception) as expected:  # noqa: PT011
        plain(wrong)
    for module in (accelerated, lwrn_fast.optimize(plain, maps(), how="eager")):
        before = copy.deepcopy(plain).train(module.training)
        for _ in range(2):
            with pytest.raises(expected.type) as error:
                module(wrong)
            assert str(error.value) == str(expected.value)
        torch.testing.assert_close(module(maps()), before(maps()), rtol=1e-4, atol=1e-5)
    assert not warned(caplog)


def announced(**options):
    """A class that wants to hear of its subclasses."""
    heard = []

    class Announced(Block):
        def __init_subclass__(cls, *, name=None, **kwargs):
            if name is None:
                raise TypeError("a name is needed")
            heard.append(name)

    class Named(Announced, name="one"):
        pass

    return Named, heard


def test_class_that_hears_of_subclasses():
    kind, heard = announced()
    module = kind()
    expected = copy.deepcopy(module)(maps())
    lwrn_fast.accelerate(module)
    torch.testing.assert_close(module(maps()), expected)
    assert heard == ["one"]
    assert isinstance(module, kind)
    with pytest.raises(TypeError, match="a name is needed"):
        type("Sub", (type(module),), {})


def test_traced_graph():
    """torch.fx writes the forward of a GraphModule into its class when the graph changes."""
    module = torch.fx.symbolic_trace(Block().eval())
    plain = copy.deepcopy(module)
    assert lwrn_fast.accelerate(module).count("crp") == 1
    for change in (lambda graph: None, lambda graph: setattr(graph.find_nodes(op="output")[0], "args", (last(graph),))):
        for one in (module, plain):
            change(one.graph)
            one.recompile()
        same(module(maps()), plain(maps()))
        same(copy.deepcopy(module)(maps()), plain(maps()))
        same(pickle.loads(pickle.dumps(module))(maps()), plain(maps()))  # noqa: S301


def last(graph):
    output = graph.find_nodes(op="output")[0]
    with graph.inserting_before(output):
        return graph.call_function(torch.neg, output.args)


def functional(module, x):
    doubled = {name: value * 2 for name, value in module.named_parameters()}
    yield torch.func.functional_call(module, doubled, (x,))
    yield torch.func.grad(lambda p: torch.func.functional_call(module, p, (x,)).square().sum())(doubled)


def transformed(module, x):
    yield torch.func.vmap(module)(torch.stack([x, -x]))
    yield torch.func.grad(lambda x: module(x).square().sum())(x)
    yield torch.func.jvp(module, (x,), (x.exp(),))
    with torch.autograd.forward_ad.dual_level():
        yield torch.autograd.forward_ad.unpack_dual(module(torch.autograd.forward_ad.make_dual(x, x.exp()))).tangent


def second_derivative(module, x):
    x.requires_grad_()
    (first,) = torch.autograd.grad(module(x).pow(3).sum(), x, create_graph=True)
    first.pow(2).sum().backward()
    yield first.contiguous(), x.grad.contiguous(), module.conv.weight.grad


def saved(module, x):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # our own bytes


def copied(module, x):
    for other in (copy.copy(module), copy.deepcopy(module), pickle.loads(pickle.dumps(module)), saved(module, x)):  # noqa: S301
        yield other(x), isinstance(other, Block)
    other = copy.deepcopy(module)
    other.conv.weight.data.mul_(3)
    yield other(x), module(x)
    mean = torch.optim.swa_utils.AveragedModel(module)
    mean.update_parameters(other)
    mean.update_parameters(other)
    yield mean(x)


def replicated(module, x):
    replica = module._replicate_for_data_parallel()
    replica.conv = copy.deepcopy(module.conv)
    replica.conv.weight.data.mul_(3)
    yield replica(x), module(x)


def traced(module, x):
    module.eval()
    yield torch.jit.trace(module, (x,))(x)
    yield torch.fx.symbolic_trace(module)(x)
    yield torch.export.export(module, (x,)).module()(x)
    yield torch.compile(module, backend="eager", fullgraph=True)(x)


def alternated(module, x):
    for i in range(3):
        with torch.no_grad():
            yield module(x)
        with torch.inference_mode():
            yield module(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=i == 1):
            yield module(x)
        module.zero_grad()
        module(x).square().sum().backward()
        yield module.conv.weight.grad


def of_other_kinds(module, x):
    for t in (torch.float64, torch.bfloat16, torch.float32):
        yield module.to(t)(x.to(t))
    with torch.device("meta"):
        yield module(x)
    yield module.to("meta")(x.to("meta")).shape


def counted(module, x):
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        yield module(x)
    yield counter.get_total_flops()


def in_all_layouts(module, x):
    for view in (x[:, :, ::2], x[:1].expand(3, -1, -1, -1), x.permute(0, 1, 3, 2), x[..., 1:], x[0]):
        yield module(view)
    yield module(x.contiguous(memory_format=torch.channels_last))
    yield module(x[:0]).shape


def checkpointed(module, x):
    yield torch.utils.checkpoint.checkpoint(module, x.requires_grad_(), use_reentrant=False)


USES = [functional, transformed, second_derivative, copied, replicated, traced, alternated, of_other_kinds, counted,
        in_all_layouts, checkpointed]  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_uses(use):
    """What PyTorch users do to any module, after its first call."""
    kind = Block if use in (copied, replicated, traced, counted, checkpointed) else Body
    plain = kind()
    accelerated = copy.deepcopy(plain)
    assert lwrn_fast.accelerate(accelerated)
    results = []
    for module in (plain, accelerated):
        module(maps())
        results.append(seeded(lambda module=module: list(use(module, maps()))))
    same(results[1], results[0])


def test_threads():
    """Several networks of a class, some deleted, in threads that take them in any order and mode."""
    pairs, wrong = [pair() for _ in range(4)], []
    for plain, accelerated in pairs:
        nn.init.normal_(plain.conv.weight)
        accelerated.load_state_dict(plain.state_dict())
        plain.eval(), accelerated.eval()
    inputs = [maps(1, 8, 3 + i, 5) for i in range(5)]

    def work(seed):
        chosen = random.Random(seed)
        for _ in range(30):
            plain, accelerated = chosen.choice(pairs)
            x = chosen.choice(inputs)
            with torch.set_grad_enabled(chosen.random() < 0.5):
                if not torch.allclose(accelerated(x), plain(x), rtol=1e-4, atol=1e-5):
                    wrong.append(seed)
            if chosen.random() < 0.1:
                lwrn_fast.accelerate(copy.deepcopy(plain))(x)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_captures_are_few():
    """Changing numbers and sizes are no reason to capture at each call."""
    counters = torch._dynamo.utils.counters
    _, accelerated = pair(lambda self, x, by: self.body(x) * self.gain * by)
    counters.clear()
    for i in range(40):
        accelerated.gain = i * 0.5
        accelerated(maps(1, 8, 3 + i % 9, 4 + i // 9), i * 0.37)
    assert counters["stats"]["unique_graphs"] <= 6
