"""An accelerated model follows every change: of weights, modules, hooks, attributes, classes and global variables."""

import os
import types

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

from support.accelerated import Block, maps, pair, same


class Settings:
    gain = 1.0


GAIN, NAMES, SETTINGS = 1.0, {"gain": 1.0}, Settings()


def helper():
    return 1.0


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Reset compiled code, and the globals, environment and modes that tests change."""
    for name, value in {"GAIN": 1.0, "NAMES": {"gain": 1.0}, "SETTINGS": Settings(), "helper": helper}.items():
        monkeypatch.setitem(globals(), name, value)
    monkeypatch.setattr(Settings, "gain", 1.0)
    monkeypatch.setenv("GAIN", "1")
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)


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
    "body of the class": lambda m: setattr(m.own_class, "body", lambda self, x: x * 2),
    "forward of the class": lambda m: setattr(m.own_class, "forward", lambda self, x: x * 2),
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
    "method of the class": (lambda m: m.factor(), lambda m: setattr(m.own_class, "factor", lambda m: 3.0)),
    "value of the class": (lambda m: m.K, lambda m: setattr(m.own_class, "K", 3.0)),
    "value of the type": (lambda m: type(m).K, lambda m: setattr(m.own_class, "K", 3.0)),
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
    """A change after the first call shows in the next."""
    plain, accelerated = pair(forward)
    x = maps()
    before = plain(x)
    same(accelerated(x), before)
    for module in (plain, accelerated):
        change(module)
    after = plain(x)
    same(accelerated(x), after)
    assert not torch.allclose(after, before)
