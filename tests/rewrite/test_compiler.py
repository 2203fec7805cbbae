"""The backend "lwrn_fast" of torch.compile: it replaces patterns in captured graphs, and changes nothing else."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lwrn_fast
from lwrn_fast import compiler
from support import third_party_models
from support.third_party_models import SAME, SIZES, difference, outputs


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


EAGER = [pytest.param(style, "eager", id=f"{style.__name__}-eager") for style in third_party_models.STYLES]
# inductor takes half a minute for each
INDUCTOR = [
    pytest.param(style, "inductor", id=f"{style.__name__}-inductor")
    for style in (third_party_models.Published, third_party_models.Heads)
]
LEARNING = [case for case in EAGER if case.values[0] is not third_party_models.Inline]  # label maps have no gradient


def compiled(model: nn.Module, inner: str = "eager", dynamic: bool | None = None, **options):
    report = lwrn_fast.Report()
    options |= {"backend": inner, "report": report}
    return torch.compile(model, backend="lwrn_fast", fullgraph=True, dynamic=dynamic, options=options), report


def test_is_registered():
    assert "lwrn_fast" in torch._dynamo.list_backends()


@pytest.fixture(params=third_party_models.STYLES, ids=lambda style: style.__name__)
def style(request):
    return request.param


class TestStyles:
    @pytest.mark.parametrize(("style", "inner"), EAGER + INDUCTOR)
    def test_same_results(self, style, inner):
        model, x = third_party_models.make(style), torch.rand(SIZES[0])
        function, report = compiled(model, inner)
        with torch.no_grad():
            expected, got = outputs(model, x), outputs(function, x)
        assert (report.count("crp"), report.count("fusion")) == (style.crps, style.fusions), str(report)
        if style is third_party_models.Inline:
            assert report.count("labels") == 1
            assert (got[0] == expected[0]).float().mean() > 0.999
        else:
            assert difference(got, expected) < SAME

    @pytest.mark.parametrize(("style", "inner"), LEARNING + INDUCTOR)
    def test_gradients(self, style, inner):
        """Batch normalisations by running statistics, since those of a batch of two enlarge every rounding."""
        model, x = third_party_models.make(style), torch.rand(2, 3, 37, 51)
        other = copy.deepcopy(model)
        function, report = compiled(model, inner)
        for run in (function, other):
            sum(out.square().sum() for out in outputs(run, x)).backward()
        assert report.count("crp") == style.crps
        for (name, got), expected in zip(model.named_parameters(), other.parameters(), strict=True):
            assert (got.grad - expected.grad).abs().max() <= 1e-4 * expected.grad.abs().max(), name

    @pytest.mark.slow
    def test_training(self, style):
        model, x = third_party_models.make(style).train(), torch.rand(2, 3, 64, 96)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        function, report = compiled(model)
        expected, got = outputs(copy.deepcopy(model), x), outputs(function, x)
        # a normalisation by a batch's own statistics is no part of an op
        normalised = style is third_party_models.Inline
        assert report.count("crp") == style.crps - normalised
        assert normalised or difference(got, expected) < 1e-4

    @pytest.mark.slow
    def test_any_size(self, style):
        model = third_party_models.make(style)
        function, report = compiled(model, dynamic=True)
        with torch.no_grad():
            for shape in ((2, 3, 64, 96), (3, 3, 80, 72), (4, 3, 37, 51)):
                x = torch.rand(shape)
                expected, got = outputs(model, x), outputs(function, x)
                if style is third_party_models.Inline:
                    assert (got[0] == expected[0]).float().mean() > 0.999
                else:
                    assert difference(got, expected) < SAME
        if style is not third_party_models.Inline:  # it crops by sizes, so each size is compiled
            assert report.count("crp") == style.crps


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rf_lw50", "rf101"])
def test_third_party_package(name):
    """No graph break, all chained residual poolings and all fusions, for inference and for training."""
    torch.manual_seed(0)
    model = getattr(third_party_models.package(), name)(21, pretrained=None).eval()
    x = torch.rand(1, 3, 64, 96)
    function, report = compiled(model)
    with torch.no_grad():
        assert difference(outputs(function, x), outputs(model, x)) < SAME
    expected = (4, 4 if name == "rf_lw50" else 0)
    assert (report.count("crp"), report.count("fusion")) == expected, str(report)
    report.findings.clear()
    loss = function(x).square().sum()  # with gradients, another graph
    loss.backward()
    assert (report.count("crp"), report.count("fusion")) == expected
    got = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (got[name] - parameter.grad).abs().max() <= 1e-3 * parameter.grad.abs().max(), name


def test_report_names_modules():
    function, report = compiled(third_party_models.make(third_party_models.Published))
    function(torch.rand(SIZES[0]))
    assert [finding.where for finding in report if finding.kind == "crp"] == ["pool2.0", "pool1.0"]


@pytest.mark.slow
def test_frozen():
    model, x = third_party_models.make(third_party_models.Mobile), torch.rand(SIZES[0])
    function, _ = compiled(model, "inductor")
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        assert difference(outputs(function, x), outputs(model, x)) < SAME


def test_parts():
    model, x = third_party_models.make(third_party_models.Published), torch.rand(SIZES[0])
    function, report = compiled(model, crp=False)
    function(x)
    assert report.count("crp") == 0
    assert report.count("fusion") == 1  # the other begins with a chained residual pooling


def test_nothing_found_is_compiled_as_ever():
    model, x = nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8)
    function, report = compiled(model)
    assert torch.equal(function(x), model(x))
    assert not report.findings


def test_quantised_and_dilated_stay():
    class Dilated(third_party_models.Chain):
        def forward(self, x):
            return x + self.convs[0](self.pool(F.pad(x, (2, 2, 2, 2))))

    model, x = Dilated(dilation=2), torch.rand(1, 8, 16, 16)
    function, report = compiled(model)
    assert torch.equal(function(x), model(x))
    assert [finding.reason for finding in report] == ["a pool has dilation (2, 2)"]


def test_logs_what_was_found(caplog):
    function, _ = compiled(third_party_models.make(third_party_models.Published))
    with caplog.at_level(logging.INFO, "lwrn_fast"):
        function(torch.rand(SIZES[0]))
    assert "4 stages of 16 channels" in caplog.text


class TestWrongOptions:
    def graph(self):
        return torch.fx.symbolic_trace(nn.ReLU()), [torch.rand(3)]

    def test_unknown(self):
        with pytest.raises(ValueError, match=r"options must be of backend, .* or inductor's, got 'frezing'"):
            compiler.backend(*self.graph(), options={"frezing": True})

    def test_inductor_s_with_another(self):
        with pytest.raises(ValueError, match=r"options and mode are for inductor, got 'freezing' with 'eager'"):
            compiler.backend(*self.graph(), options={"freezing": True, "backend": "eager"})
        with pytest.raises(ValueError, match=r"options and mode are for inductor, got 'max-autotune' with 'eager'"):
            compiler.backend(*self.graph(), mode="max-autotune", options={"backend": "eager"})
