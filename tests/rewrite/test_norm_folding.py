"""Batch normalisations folded into convolutions, in modules and in captured graphs."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lwrn_fast
from lwrn_fast.accelerate import fold_norms
from support.third_party_models import SAME, difference, outputs, same


def test_norms_that_stay():
    """A convolution keeps its weights if its result is used elsewhere, or if it is called twice or shared."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), None
            self.other = nn.BatchNorm2d(4)

        def forward(self, x):
            a = self.a(x)
            b = self.other(self.b(a))
            return self.norm(a) + a + self.b(b)

    model, x = Net().eval(), torch.rand(1, 3, 5, 5)
    nn.init.uniform_(model.norm.running_var)
    expected, before = model(x), copy.deepcopy(model.state_dict())
    fold_norms(model)
    assert same([model(x)], [expected])
    assert list(before) == list(model.state_dict())

    conv = nn.Conv2d(3, 4, 1)
    model = nn.ModuleList(nn.Sequential(conv, nn.BatchNorm2d(4)) for _ in range(2)).eval()
    nn.init.uniform_(model[1][1].running_var)
    expected = [branch(x) for branch in model]
    fold_norms(model)
    assert same([branch(x) for branch in model], expected)


def test_norm_with_an_identity_behind():
    x = torch.rand(1, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Identity(), nn.Conv2d(4, 2, 1)).eval()
    nn.init.uniform_(model[1].running_mean)
    expected = model(x)
    fold_norms(model)
    assert isinstance(model[1], nn.Identity)
    torch.testing.assert_close(model(x), expected)


def test_norms_are_folded_in_the_graph():
    """torch.nn's normalisations are folded, and those whose class does more, as timm's BatchNormAct2d."""

    class BatchNormAct2d(nn.BatchNorm2d):
        def forward(self, x):
            return torch.relu(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3)
            self.norm_a, self.norm_b = BatchNormAct2d(4), nn.BatchNorm2d(4, affine=False)

        def forward(self, x):
            return self.norm_b(self.b(self.norm_a(self.a(x))))

    model, x = Net().eval(), torch.rand(1, 3, 16, 16)
    for norm in (model.norm_a, model.norm_b):
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    optimized = lwrn_fast.optimize(model, x, how="eager")
    with torch.no_grad(), torch.profiler.profile() as profile:
        torch.testing.assert_close(optimized(x), model.double()(x.double()).float(), rtol=1e-4, atol=1e-5)
    # the model itself, in float64, has two
    assert sum(event.count for event in profile.key_averages() if event.key == "aten::batch_norm") == 2


def test_norms_one_after_another(caplog):
    """Folded convolutions in a row, as in a linear bottleneck, feed each other."""
    model = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))).eval()
    for norm in model[1::2]:
        nn.init.uniform_(norm.running_mean)
    x = torch.rand(1, 3, 8, 8)
    optimized = lwrn_fast.optimize(model, x, how="eager")
    with torch.profiler.profile() as profile:
        got = optimized(x)
    assert not any("batch_norm" in event.key for event in profile.key_averages())
    assert not [record for record in caplog.records if record.name == "lwrn_fast"]
    with torch.no_grad():
        torch.testing.assert_close(got, model(x), rtol=1e-5, atol=1e-5)


class Normalised(nn.Module):
    """Batch normalisation written as a function, with an epsilon that a program may change."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.eps = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), 1e-5

    def forward(self, x):
        norm = self.norm
        return nn.functional.batch_norm(
            self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=self.eps
        )


@pytest.mark.parametrize("model", [nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), Normalised()])
@pytest.mark.parametrize("dynamic", [False, True])
def test_norms_are_folded_for_any_size(model, dynamic, caplog):
    """With dynamic=True Dynamo captures every number that a module holds as one that may change."""
    model = copy.deepcopy(model).eval()
    nn.init.uniform_(model.get_submodule("norm" if isinstance(model, Normalised) else "1").running_var, 0.01, 1)
    x = torch.rand(1, 3, 9, 11)
    optimized = lwrn_fast.optimize(model, x, how="eager", dynamic=dynamic)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        got = outputs(optimized, x)
    names = {event.name for event in profile.events()}
    assert "aten::conv2d" in names
    assert "aten::batch_norm" not in names
    assert difference(got, outputs(model, x)) < SAME
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not warnings  # such as that the model cannot be captured
    if isinstance(model, Normalised):
        for eps in (0.1, 0.2, 1e-5):
            model.eps = optimized.network.eps = eps
            assert difference(outputs(optimized, x), outputs(model, x)) < SAME
