"""lwrn_fast.accelerate and restore: patterns in other authors' models are replaced, with the same results."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lwrn_fast
from lwrn_fast import models
from lwrn_fast.rewrite import compiling
from support import third_party_models
from support.accelerated import accelerated
from support.comparing import COPIES
from support.third_party_models import SAME, SIZES, difference, outputs, same


@pytest.fixture(params=third_party_models.STYLES, ids=lambda style: style.__name__)
def style(request):
    return request.param


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rf_lw50", "rf101"])
def test_third_party_package(name):
    make = getattr(third_party_models.package(), name)
    torch.manual_seed(0)
    model, other = make(21, pretrained=None).eval(), make(21, pretrained=None).eval()
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected, others = outputs(model, x), outputs(other, x)
        before = copy.deepcopy(model.state_dict())
        report = lwrn_fast.accelerate(model)
        assert report.count("crp") == 4
        assert report.count("fusion") == (4 if name == "rf_lw50" else 0)
        assert difference(outputs(model, x), expected) < SAME
        assert list(before) == list(model.state_dict())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert same(outputs(other, x), others)
        assert report.count("crp") == 4  # as run
        assert report.count("fusion") == (4 if name == "rf_lw50" else 0)
        lwrn_fast.restore(model)
        assert same(outputs(model, x), expected)
    assert not accelerated(model)


class TestStyles:
    @pytest.mark.parametrize("shape", SIZES, ids=str)
    def test_same_results(self, style, shape):
        model, x = third_party_models.make(style), torch.rand(shape)
        expected = outputs(model, x)
        report = lwrn_fast.accelerate(model)
        for _ in ("expected", "run"):
            assert report.count("crp") == style.crps, str(report)
            assert report.count("fusion") == style.fusions, str(report)
            got = outputs(model, x)
        assert not report.expected
        if style is third_party_models.Inline:
            assert report.count("labels") == 1
            assert expected[0].unique().numel() > 2
            assert (got[0] == expected[0]).float().mean() > 0.999
        else:
            assert difference(got, expected) < SAME
        assert [g.is_contiguous() for g in got] == [e.is_contiguous() for e in expected]

    # label maps have none
    @pytest.mark.parametrize(
        "style",
        [style for style in third_party_models.STYLES if style is not third_party_models.Inline],
        ids=lambda style: style.__name__,
    )
    def test_gradients(self, style):
        model, x = third_party_models.make(style), torch.rand(2, 3, 37, 51, requires_grad=True)
        other = copy.deepcopy(model)
        lwrn_fast.accelerate(model)
        for run in (model, other):
            sum(out.square().sum() for out in outputs(run, x)).backward()
        for (name, got), expected in zip(model.named_parameters(), other.parameters(), strict=True):
            assert (got.grad - expected.grad).abs().max() <= 1e-4 * expected.grad.abs().max(), name

    def test_mode_changes(self, style):
        """Training is with dropout and batch statistics, and evaluation is without, in any order."""
        model = third_party_models.make(style)
        other, x = copy.deepcopy(model), torch.rand(2, 3, 64, 96)
        lwrn_fast.accelerate(model)
        for mode in (True, False, True):
            results = []
            for run in (model, other):
                run.train(mode)
                torch.manual_seed(1)
                results.append(outputs(run, x))
            if style is third_party_models.Inline:
                assert (results[0][0] == results[1][0]).float().mean() > 0.99
            else:
                assert difference(*results) < 1e-4  # a batch normalisation divides by small deviations

    @pytest.mark.slow
    def test_compiled_and_exported(self, style):
        """Compilers and exporters see the own forward of an accelerated model."""
        model, x = third_party_models.make(style), torch.rand(SIZES[0])
        expected = outputs(model, x)
        lwrn_fast.accelerate(model)
        torch._dynamo.reset()
        report = lwrn_fast.Report()
        ours = {"backend": "lwrn_fast", "options": {"backend": "eager", "report": report}}
        for run in (
            torch.compile(model, fullgraph=True, backend="eager"),
            torch.compile(copy.deepcopy(model), fullgraph=True, **ours),
            torch.export.export(model, (x,)).module(),
        ):
            assert difference(outputs(run, x), expected) < (2 if style is third_party_models.Inline else SAME)
        assert report.count("crp") == style.crps

    @pytest.mark.parametrize("copied", COPIES)
    def test_copies(self, style, copied):
        model, x = third_party_models.make(style), torch.rand(SIZES[0])
        lwrn_fast.accelerate(model)
        expected = outputs(model, x)
        other = copied(model)
        assert accelerated(other)
        assert type(other) is type(model)
        assert same(outputs(other, x), expected)
        nn.init.zeros_(list(model.parameters())[-2])
        assert same(outputs(other, x), expected)
        lwrn_fast.restore(other)
        assert not accelerated(other)
        assert accelerated(model)

    def test_restored_bit_for_bit(self, style):
        model, x = third_party_models.make(style), torch.rand(SIZES[0])
        expected, strides = outputs(model, x), [p.stride() for p in model.parameters()]
        lwrn_fast.accelerate(model)
        lwrn_fast.accelerate(model)
        lwrn_fast.restore(model)
        assert same(outputs(model, x), expected)
        assert [p.stride() for p in model.parameters()] == strides


class TestFollows:
    """An accelerated model is the user's: it follows every change."""

    @pytest.fixture
    def model(self):
        model = third_party_models.make(third_party_models.Published)
        lwrn_fast.accelerate(model)
        return model

    def expected(self, model, x):
        other = copy.deepcopy(model)
        lwrn_fast.restore(other)
        return outputs(other, x)

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda m: nn.init.normal_(m.p1.weight), id="weight"),
            pytest.param(lambda m: m.p1.weight.data.mul_(2), id="data"),
            pytest.param(lambda m: setattr(m, "joint", nn.Conv2d(10, 8, 1)), id="module"),
            pytest.param(lambda m: setattr(m, "joint", nn.Conv2d(10, 8, 3, padding=1)), id="other kind of module"),
            pytest.param(lambda m: setattr(m.pool1[0], "stages", 2), id="attribute"),
            pytest.param(lambda m: m.double(), id="dtype"),
            pytest.param(lambda m: m.load_state_dict(third_party_models.Published().state_dict()), id="state dict"),
        ],
    )
    def test_change(self, model, change):
        x = torch.rand(SIZES[0])
        before = outputs(model, x)
        change(model)
        x = x.to(model.clf.weight.dtype)
        assert difference(outputs(model, x), self.expected(model, x)) < SAME
        assert model.clf.weight.dtype != torch.float32 or difference(outputs(model, x), before) > SAME

    def test_module_in_a_list(self):
        block, x = third_party_models.Chain(), torch.rand(1, 8, 9, 9)
        assert lwrn_fast.accelerate(block).count("crp") == 1
        block.convs[1] = nn.Conv2d(8, 8, 3, padding=1)
        assert difference(outputs(block, x), self.expected(block, x)) < SAME

    def test_hooks_are_called(self, model):
        seen = []
        model.p1.register_forward_hook(lambda *_: seen.append("p1"))
        getattr(model.pool1[0], "2_outvar_dimred").register_forward_hook(lambda *_: seen.append("crp"))
        x = torch.rand(SIZES[0])
        assert difference(outputs(model, x), self.expected(model, x)) < SAME
        assert sorted(seen) == ["crp", "crp", "p1", "p1"]

    def test_attributes_that_do_not_matter_cost_nothing(self, model, monkeypatch):
        model.steps = 2
        outputs(model, torch.rand(SIZES[0]))
        monkeypatch.setattr(compiling, "Rewriter", None)
        model.steps = 3
        outputs(model, torch.rand(SIZES[0]))

    def test_image_without_batch(self):
        block = third_party_models.Pooling(8)
        x = torch.rand(8, 9, 11)
        expected = block(x)
        assert lwrn_fast.accelerate(block)
        assert difference([block(x)], [expected]) < SAME

    def test_keywords(self, model):
        x = torch.rand(SIZES[0])
        assert difference([model(x=x)], [model(x)]) < SAME

    def test_autocast(self, model):
        x = torch.rand(SIZES[0])
        with torch.autocast("cpu", torch.bfloat16):
            assert model(x).dtype == torch.bfloat16

    def test_broadcast_map(self):
        """A map of one pixel, as of a global pooling, is added everywhere."""

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.c = (nn.Conv2d(4, 6, 1) for _ in range(3))

            def forward(self, x):
                mean = x.mean((2, 3), keepdim=True)
                up = F.interpolate(self.c(x[:, :, ::2, ::2]), size=x.shape[2:], mode="bilinear")
                return F.relu(self.a(mean) + self.b(x) + up)

        model, x = Net(), torch.rand(1, 4, 8, 6)
        expected = model(x)
        assert lwrn_fast.accelerate(model).count("fusion") == 1
        assert difference([model(x)], [expected]) < SAME


class TestOptions:
    def test_parts(self):
        model = third_party_models.make(third_party_models.Inline)
        assert lwrn_fast.accelerate(model, crp=False).count("crp") == 0
        assert lwrn_fast.accelerate(model, fusion=False).count("fusion") == 0
        assert lwrn_fast.accelerate(model, fusion=False).count("crp") == 1

    @pytest.mark.parametrize("channels_last", [True, False])
    def test_channels_last(self, channels_last):
        """Only values inside are channels-last: parameters and results keep their strides."""
        model, x, seen = third_party_models.make(third_party_models.Published), torch.rand(SIZES[0]), []
        expected, strides = outputs(model, x), [p.stride() for p in model.parameters()]
        getattr(model.pool1[0], "2_outvar_dimred").register_forward_hook(lambda m, i, out: seen.append(out.stride()))
        lwrn_fast.accelerate(model, channels_last=channels_last)
        assert outputs(model, x)[0].stride() == expected[0].stride()
        assert [p.stride() for p in model.parameters()] == strides
        assert seen

    def test_fold_changes_rounding_alone(self):
        model, x = third_party_models.make(third_party_models.Published), torch.rand(SIZES[0])
        with torch.no_grad():
            lwrn_fast.accelerate(model, fold=False)
            unfolded = outputs(model, x)
            lwrn_fast.accelerate(model)
            assert 0 < difference(outputs(model, x), unfolded) < SAME

    def test_not_a_module(self):
        with pytest.raises(TypeError, match=r"accelerate: model must be a torch.nn.Module, got function"):
            lwrn_fast.accelerate(lambda x: x)

    def test_our_own(self):
        report = lwrn_fast.accelerate(models.Decoder([8, 16], num_classes=3, planes=8))
        assert not report
        assert [finding.reason for finding in report] == ["is of lwrn_fast already"]


def test_other_threads_are_not_disturbed():
    """Other threads may call their models meanwhile: torch.fx's own tracer patches the modules of all threads."""
    seen = []

    class Looks(third_party_models.Pooling):
        def forward(self, x):
            seen.append((torch.fx._symbolic_trace.is_fx_symbolic_tracing(), nn.Module.__call__, nn.Module.__getattr__))
            return super().forward(x)

    before = (False, nn.Module.__call__, nn.Module.__getattr__)
    assert lwrn_fast.accelerate(Looks(4)).count("crp") == 1
    assert seen
    assert set(seen) == {before}


def test_report_prints_as_a_table():
    model = third_party_models.make(third_party_models.Published)
    report = lwrn_fast.accelerate(model)
    assert str(report).splitlines()[-1] == "to be replaced at the first call: 2 fusion, 2 crp"
    model(torch.rand(SIZES[0]))
    lines = str(report).splitlines()
    assert lines[0].split() == ["module", "found", "size"]
    assert lines[-1] == "replaced: 2 fusion, 2 crp"
    assert any("pool1.0" in line and "4 stages of 8 channels" in line for line in lines)
    assert pickle.loads(pickle.dumps(report)) == report
