"""Any way to write a forward gives the same, accelerated and optimized, without tracebacks of Dynamo."""

import copy
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_flatten

import lwrn_fast
from support.accelerated import maps, pair, same, seeded
from support.compiling import TESTS


@pytest.fixture(autouse=True)
def fresh():
    """Reset compiled code and random numbers."""
    torch._dynamo.reset()
    torch.manual_seed(0)


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
    """Results, gradients, the module's state and the random numbers drawn are the same, in any mode and order."""

    def uses(module):
        yield module(maps())
        with torch.no_grad():
            yield module(maps(1, 8, 5, 6))
        x = maps().requires_grad_()
        out = module(x)
        results = [t.float().flatten() for t in tree_flatten(out)[0] if isinstance(t, torch.Tensor)]
        # weighted, for the sum of squares of what is normalised is a constant, whose gradient is rounding alone
        sum((torch.linspace(0.5, 1.5, len(t)) * t).square().sum() for t in results).backward()
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
    for arguments in calls:
        args, kwargs = ((maps(),), arguments) if isinstance(arguments, dict) else (arguments, {})
        same(accelerated(*args, **kwargs), plain(*args, **kwargs))


@pytest.mark.slow
@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS.keys())
def test_optimized(forward):
    """State that the copy keeps from call to call is kept, layers made at need too."""
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


# Prints the name and the message of each warning. A process of its own, for Dynamo remembers what it has met.
QUIET = """
import logging, sys
import lwrn_fast
from rewrite.test_capture_forwards import FORWARDS, goes_on
from support.accelerated import maps, pair

logging.basicConfig(format="%(name)s: %(message)s", stream=sys.stdout)
forward = goes_on if sys.argv[1] == "an error" else FORWARDS[sys.argv[1]]
plain, accelerated = pair(forward)
module = accelerated if sys.argv[2] == "accelerate" else lwrn_fast.optimize(plain, maps(), how="eager")
for _ in range(2):
    module(maps())
"""


@pytest.mark.parametrize("how", ["accelerate", "optimize"])
@pytest.mark.parametrize("forward", ["an error", "item"])
def test_dynamo_is_quiet(forward, how):
    """One line at most, and the report, instead of pages of tracebacks."""
    command = [sys.executable, "-W", "ignore", "-c", QUIET, forward, how]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == (forward == "an error")
    if forward == "an error":
        assert f"lwrn_fast: {how}: Net runs in parts as it is: Dynamo cannot capture it" in lines[0]
