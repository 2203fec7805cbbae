"""Models to accelerate, each twice, and their comparison."""

import copy
import logging
import random
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

import lwrn_fast
from lwrn_fast.rewrite import capture


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


def pair(forward=Block.forward, **attributes):
    """Return the same model twice, of a class of its own, the second accelerated."""
    cls = type("Net", (Block,), {"forward": forward, "K": 1.0, "__module__": __name__, **attributes})
    plain = cls()
    plain.own_class = cls
    accelerated = copy.deepcopy(plain)
    lwrn_fast.accelerate(accelerated)
    assert type(accelerated) is not cls
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
            torch.testing.assert_close(g, e, rtol=close[0], atol=close[1])
        else:
            assert g == pytest.approx(e, rel=1e-4) if isinstance(e, float) else g == e


def seeded(function, *inputs):
    torch.manual_seed(2)
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    return function(*inputs)


def warned(caplog):
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def accelerated(model: nn.Module) -> bool:
    return any(capture.KEY in vars(module) or type(module) in capture._originals for module in model.modules())
