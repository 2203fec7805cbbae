"""lwrn_fast.accelerate: modules that cannot be replaced stay as they are."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lwrn_fast
from support import third_party_models
from support.accelerated import accelerated
from support.third_party_models import SAME, difference, same


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.crp = third_party_models.Pooling(4)

    def forward(self, x):
        return self.crp(x) if x.sum() > 0 else x


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool, self.calls = nn.MaxPool2d(5, 1, 2), 0

    def forward(self, x):
        self.calls += 1
        return self.pool(x)


class Keeps(nn.Module):
    """Returns a stage's result too."""

    def __init__(self):
        super().__init__()
        self.pool, self.conv = nn.MaxPool2d(5, 1, 2), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        t = self.conv(self.pool(x))
        return x + t, t


class WritesInput(nn.Module):
    """Adds to the tensor of its caller."""

    def __init__(self):
        super().__init__()
        self.pool, self.conv = nn.MaxPool2d(3, 1, 1), nn.Conv2d(8, 8, 1)
        self.five = nn.MaxPool2d(5, 1, 2)

    def forward(self, x):
        x += self.conv(self.five(x))
        return x


class TestLeftAlone:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"kernel": 3, "padding": 1}, "a pool is 3x3 with padding (1, 1), not 5x5"),
            ({"groups": 4}, "a convolution has 4 groups, neither 1 nor 8"),
        ],
        ids=["3x3", "groups"],
    )
    def test_another_chain(self, changes, reason):
        model, x = nn.Sequential(third_party_models.Chain(**changes)), torch.rand(1, 8, 16, 16)
        expected, strides = model(x), [p.stride() for p in model.parameters()]
        report = lwrn_fast.accelerate(model, crp=True)
        assert report.count("crp") == 0
        assert reason in str(report)
        assert difference([model(x)], [expected]) < SAME
        if not report:
            assert not accelerated(model)
            assert [p.stride() for p in model.parameters()] == strides

    def test_dilated(self):
        """Padded by one pixel more on each side, it has the same size."""

        class Dilated(third_party_models.Chain):
            def forward(self, x):
                out = t = x
                for conv in self.convs:
                    t = conv(self.pool(F.pad(t, (2, 2, 2, 2), value=-torch.inf)))
                    out = out + t
                return out

        model, x = Dilated(dilation=2), torch.rand(1, 8, 16, 16)
        expected = model(x)
        report = lwrn_fast.accelerate(model)
        assert not report
        assert {finding.reason for finding in report} == {"a pool has dilation (2, 2)"}
        assert same([model(x)], [expected])

    def test_no_match(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        report = lwrn_fast.accelerate(model)
        assert not report.findings
        assert "nothing of ours was found" in str(report)
        assert not accelerated(model)

    def test_scripted(self):
        model = nn.Sequential(torch.jit.trace(third_party_models.Pooling(4), torch.rand(1, 4, 9, 9)))
        report = lwrn_fast.accelerate(model)
        assert not report
        assert [finding.reason for finding in report] == ["is scripted"]

    def test_quantised(self):
        from torch.ao.nn import quantized

        model = nn.Sequential(quantized.Conv2d(4, 4, 1), quantized.ReLU6())
        report = lwrn_fast.accelerate(model)
        assert not report
        assert {finding.reason for finding in report} == {"is quantised"}

    def test_data_dependent_forward_costs_only_itself(self):
        model, x = Branches(), torch.rand(1, 4, 9, 9)
        report = lwrn_fast.accelerate(model)
        assert report.count("crp") == 1
        assert any("seen at its first call" in (finding.reason or "") for finding in report)
        assert torch.equal(model(-x), -x)
        assert report.count("crp") == 0
        assert any("captured in parts (test_left_alone.py:" in (finding.reason or "") for finding in report)
        assert difference([model(x)], [third_party_models.Pooling.forward(model.crp, x)]) < SAME
        assert report.count("crp") == 1

    def test_forward_with_side_effects(self):
        model = Counts()
        report = lwrn_fast.accelerate(model)
        assert report.count("pool") == 1
        assert model.calls == 0
        for call in range(1, 5):
            model(torch.rand(1, 1, 6, 6))
            assert model.calls == call

    def test_stage_that_is_wanted_elsewhere(self):
        model, x = Keeps(), torch.rand(1, 8, 9, 9)
        expected = model(x)
        assert lwrn_fast.accelerate(model).count("crp") == 0
        assert difference(list(model(x)), list(expected)) < SAME

    def test_caller_s_tensor_that_is_written_to(self):
        model, x = WritesInput(), torch.rand(1, 8, 9, 9)
        twin, other = copy.deepcopy(model), x.clone()
        report = lwrn_fast.accelerate(model)
        assert report.count("crp") == 0
        with torch.no_grad():
            model(x)
            twin(other)
        assert difference([x], [other]) < SAME

    def test_forward_of_an_instance(self):
        model = third_party_models.Pooling(4)
        model.forward = lambda x: x
        report = lwrn_fast.accelerate(model)
        assert not report
        assert [finding.reason for finding in report if not finding.where] == ["has a forward of its own instance"]
        lwrn_fast.restore(model)
        assert model(3) == 3
