"""lwrn_fast.optimize: any network for inference, equal to itself."""

import copy
import logging
import pickle
import sys

import pytest
import torch
from torch import nn

import foreign
import lwrn_fast
from lwrn_fast import models
from lwrn_fast.accelerate import fold_norms
from test_accelerate import SAME, SIZES, difference, outputs, same


@pytest.fixture(scope="module")
def fast():
    torch._dynamo.reset()
    model = foreign.network(foreign.Published)
    return model, lwrn_fast.optimize(model, torch.rand(SIZES[0]))


def test_compiled(fast):
    model, optimized = fast
    x = torch.rand(SIZES[0])
    assert difference(outputs(optimized, x), outputs(model, x)) < SAME
    assert (optimized.report.count("crp"), optimized.report.count("fusion")) == (2, 2)
    assert not optimized(x).requires_grad


def test_compiled_once_for_all_modes(fast):
    """Inside and outside of inference mode, with tensors of it and others."""
    model, optimized = fast
    found = len(optimized.report.findings)
    x = torch.rand(SIZES[0])
    expected = optimized(x)
    with torch.inference_mode():
        assert torch.equal(optimized(x.clone()), expected)
        other = x.clone()
    assert torch.equal(optimized(other), expected)
    assert not optimized(other).is_inference()
    assert len(optimized.report.findings) == found


def test_another_size_is_compiled_for(fast):
    model, optimized = fast
    x = torch.rand(SIZES[1])
    assert difference(outputs(optimized, x), outputs(model, x)) < SAME


def test_network_stays_as_it_was(fast):
    model, _ = fast
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in model.parameters())


def test_is_for_inference_alone(fast):
    _, optimized = fast
    assert optimized.eval() is optimized
    with pytest.raises(RuntimeError, match="for inference"):
        optimized.train()
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.deepcopy(optimized)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(optimized)


@pytest.mark.parametrize("style", foreign.STYLES, ids=lambda kind: kind.__name__)
def test_eager(style):
    model, x = foreign.network(style), torch.rand(SIZES[0])
    optimized = lwrn_fast.optimize(model, x, how="eager")
    assert optimized.report.count("crp") == style.crps
    assert not any(isinstance(module, nn.BatchNorm2d) for module in optimized.network.modules())
    if style is foreign.Inline:
        assert (optimized(x) == model(x)).float().mean() > 0.999
    else:
        assert difference(outputs(optimized, x), outputs(model, x)) < SAME


def test_our_own_network():
    model = models.rf_lw_mbv2(num_classes=5).eval()
    x = torch.rand(1, 3, 64, 96)
    optimized = lwrn_fast.optimize(model, x, how="eager")
    assert difference(outputs(optimized, x), outputs(model, x)) < SAME


def test_dtype():
    x = torch.rand(SIZES[0])
    optimized = lwrn_fast.optimize(foreign.network(foreign.Heads), x, how="eager", dtype=torch.bfloat16)
    assert optimized(x.bfloat16())[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("already", [False, True], ids=["asked for", "the network's"])
def test_in_float32_where_the_processor_has_no_16_bit_types(dtype, already, caplog, monkeypatch):
    monkeypatch.setattr(sys.modules["lwrn_fast.optimize"], "_why_wide", {dtype: "there is no such instruction"}.get)
    model, x = foreign.network(foreign.Heads), torch.rand(SIZES[0])
    with caplog.at_level(logging.WARNING, "lwrn_fast"):
        if already:
            optimized = lwrn_fast.optimize(model.to(dtype), x.to(dtype), how="eager")
        else:
            optimized = lwrn_fast.optimize(model, x, how="eager", dtype=dtype)
    assert caplog.messages == ["optimize computes in float32: there is no such instruction"]
    assert {parameter.dtype for parameter in optimized.network.parameters()} == {torch.float32}
    expected = outputs(model.float(), x.to(dtype).float())
    for got, want in zip(optimized(x.to(dtype)), expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, want.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


def test_without_compiler(caplog):
    model, x = foreign.network(foreign.Heads), torch.rand(SIZES[0])
    absent = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with caplog.at_level(logging.WARNING, "lwrn_fast"), absent:
        optimized = lwrn_fast.optimize(model, x)
    assert "without torch.compile" in caplog.text
    assert difference(outputs(optimized, x), outputs(model, x)) < SAME


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((lambda x: x, torch.rand(1)), TypeError, "optimize: model must be a torch.nn.Module, got function"),
        ((nn.ReLU(), 3), TypeError, "optimize: example must be a tensor, or all inputs in a list, got int"),
    ],
    ids=["model", "example"],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        lwrn_fast.optimize(*arguments)


def test_wrong_how():
    with pytest.raises(ValueError, match='optimize: how must be "compile" or "eager", got \'fast\''):
        lwrn_fast.optimize(nn.ReLU(), torch.rand(1), how="fast")


def test_norms_that_stay():
    """A convolution whose result is seen elsewhere, or that is called twice, keeps its weights, and so does one that
    belongs to two modules."""

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
        found = outputs(optimized, x)
    names = {event.name for event in profile.events()}
    assert "aten::conv2d" in names
    assert "aten::batch_norm" not in names
    assert difference(found, outputs(model, x)) < SAME
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not said  # such as that the network cannot be captured
    if isinstance(model, Normalised):
        for eps in (0.1, 0.2, 1e-5):
            model.eps = optimized.network.eps = eps
            assert difference(outputs(optimized, x), outputs(model, x)) < SAME
