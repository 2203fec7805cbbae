"""lwrn_fast.optimize: a copy of any model for inference, with equal results."""

import copy
import gc
import logging
import pickle
import random
import sys
import threading
import weakref

import pytest
import torch
from torch import nn

import lwrn_fast
from lwrn_fast import models
from lwrn_fast.rewrite import compiling
from support import third_party_models
from support.third_party_models import SAME, SIZES, difference, outputs


@pytest.fixture(scope="module")
def fast():
    torch._dynamo.reset()
    model = third_party_models.make(third_party_models.Published)
    return model, lwrn_fast.optimize(model, torch.rand(SIZES[0]))


def test_compiled(fast):
    model, optimized = fast
    x = torch.rand(SIZES[0])
    assert difference(outputs(optimized, x), outputs(model, x)) < SAME
    assert (optimized.report.count("crp"), optimized.report.count("fusion")) == (2, 2)
    assert not optimized(x).requires_grad


def test_compiled_once_for_all_modes(fast):
    """Inference mode needs no other code, inside or outside, with its tensors or others."""
    model, optimized = fast
    count = len(optimized.report.findings)
    x = torch.rand(SIZES[0])
    expected = optimized(x)
    with torch.inference_mode():
        assert torch.equal(optimized(x.clone()), expected)
        other = x.clone()
    assert torch.equal(optimized(other), expected)
    assert not optimized(other).is_inference()
    assert len(optimized.report.findings) == count


@pytest.mark.slow
def test_another_size_is_compiled_for(fast):
    model, optimized = fast
    x = torch.rand(SIZES[1])
    assert difference(outputs(optimized, x), outputs(model, x)) < SAME


def test_model_stays_as_it_was(fast):
    model, _ = fast
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in model.parameters())


def test_is_for_inference_alone(fast):
    _, optimized = fast
    assert optimized.eval() is optimized
    with pytest.raises(RuntimeError, match="for inference"):
        optimized.train()
    for copied in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="compiled code can be neither copied nor pickled"):
            copied(optimized)


@pytest.mark.parametrize("style", third_party_models.STYLES, ids=lambda style: style.__name__)
def test_eager(style):
    model, x = third_party_models.make(style), torch.rand(SIZES[0])
    optimized = lwrn_fast.optimize(model, x, how="eager")
    assert optimized.report.count("crp") == style.crps
    if style is third_party_models.Inline:
        assert (optimized(x) == model(x)).float().mean() > 0.999
    else:
        assert difference(outputs(optimized, x), outputs(model, x)) < SAME


def test_our_own_model():
    model = models.rf_lw_mbv2(num_classes=5).eval()
    x = torch.rand(1, 3, 64, 96)
    optimized = lwrn_fast.optimize(model, x, how="eager")
    assert difference(outputs(optimized, x), outputs(model, x)) < SAME


def test_dtype():
    x = torch.rand(SIZES[0])
    model = third_party_models.make(third_party_models.Heads)
    optimized = lwrn_fast.optimize(model, x, how="eager", dtype=torch.bfloat16)
    assert optimized(x.bfloat16())[0].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("already", [False, True], ids=["asked for", "the model's"])
def test_in_float32_where_the_processor_has_no_16_bit_types(dtype, already, caplog, monkeypatch):
    monkeypatch.setattr(sys.modules["lwrn_fast.optimize"], "_why_wide", {dtype: "there is no such instruction"}.get)
    model, x = third_party_models.make(third_party_models.Heads), torch.rand(SIZES[0])
    with caplog.at_level(logging.WARNING, "lwrn_fast"):
        if already:
            optimized = lwrn_fast.optimize(model.to(dtype), x.to(dtype), how="eager")
        else:
            optimized = lwrn_fast.optimize(model, x, how="eager", dtype=dtype)
    assert caplog.messages == ["optimize computes in float32: there is no such instruction"]
    assert {parameter.dtype for parameter in optimized.network.parameters()} == {torch.float32}
    expected = outputs(model.float(), x.to(dtype).float())
    for got, reference in zip(optimized(x.to(dtype)), expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, reference.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


def test_without_compiler(caplog):
    model, x = third_party_models.make(third_party_models.Heads), torch.rand(SIZES[0])
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


class Offset(nn.Module):
    """A class with a forward of its own; its models differ in weights and in more than one plain value."""

    def __init__(self, channels: int = 4, gain: float = 1.0) -> None:
        super().__init__()
        self.conv, self.pool, self.gain = nn.Conv2d(3, channels, 1), nn.MaxPool2d(5, 1, 2), gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * self.conv(self.pool(x))


class TestManyModels:
    """Compiled code of one model never answers for another."""

    @pytest.mark.slow
    @pytest.mark.parametrize("how", ["compile", "eager"])
    @pytest.mark.parametrize("name", ["weights", "channels", "attribute", "published"])
    def test_second_of_a_class(self, how, name):
        made = {
            "weights": lambda i: Offset(),
            "channels": lambda i: Offset(4 + i),
            "attribute": lambda i: Offset(gain=1.0 + i),
            "published": lambda i: lwrn_fast.models.Decoder([3], 2 + i, planes=4),
        }[name]
        originals = [made(i).eval() for i in range(2 if how == "compile" else 12)]
        inputs = torch.rand(1, 3, 9, 11)
        x = [inputs] if name == "published" else inputs
        fast = [lwrn_fast.optimize(original, [x], how=how) for original in originals]
        with torch.no_grad():
            for i in random.Random(0).choices(range(len(originals)), k=3 * len(originals)):
                torch.testing.assert_close(fast[i](x), originals[i](x), rtol=1e-4, atol=1e-4)

    def test_ninth(self, monkeypatch):
        """Dynamo compiles one function eight times, and then never again."""
        graphs = []
        backend = compiling.backend
        noting = lambda *args, **kwargs: graphs.append(args) or backend(*args, **kwargs)  # noqa: E731
        monkeypatch.setattr(compiling, "backend", noting)
        x = torch.rand(1, 3, 9, 11)
        for channels in range(1, 12):
            lwrn_fast.optimize(Offset(channels), x, how="eager")
        assert len(graphs) == 11

    @pytest.mark.slow
    def test_after_another_was_deleted(self):
        x = torch.rand(1, 3, 9, 11)
        for _ in range(12):
            original = Offset().eval()
            fast = lwrn_fast.optimize(original, x, how="eager")
            with torch.no_grad():
                torch.testing.assert_close(fast(x), original(x), rtol=1e-4, atol=1e-4)
            weight = weakref.ref(fast.network.conv.weight)
            del fast, original
            gc.collect()
        assert weight() is None

    @pytest.mark.slow
    def test_in_threads(self):
        originals = [Offset(4 + i % 2).eval() for i in range(6)]
        differ = []

        def work(original: nn.Module, height: int) -> None:
            x = torch.rand(1, 3, height, 11)
            fast = lwrn_fast.optimize(original, x, how="eager")
            with torch.no_grad():
                differ.extend(not torch.allclose(fast(x), original(x), rtol=1e-4, atol=1e-4) for _ in range(20))

        threads = [threading.Thread(target=work, args=(original, 7 + i)) for i, original in enumerate(originals)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(differ) == 120
        assert not any(differ)
        assert not torch._inductor.config.freezing


class Remembers(nn.Module):
    """Keeps earlier results, in every way there is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.before, self.calls, self.kept = None, 0, []
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("last", torch.zeros(1, 3, 8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x) + self.last
        y = y if self.before is None else y + self.before
        self.before, self.last = y.detach(), 0.5 * y
        self.count += 1
        self.calls += 1
        self.kept.append(self.calls)
        return y * SETTING["gain"] + self.count * self.calls


SETTING = {"gain": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["compile", "eager"])
def test_models_with_a_memory(how, monkeypatch):
    original, x = Remembers().eval(), torch.rand(1, 3, 8, 8)
    fast = lwrn_fast.optimize(original, x, how=how)
    with torch.no_grad():
        original(x)  # as for the example
        for call in range(4):
            if call == 3:
                monkeypatch.setitem(SETTING, "gain", 3.0)
            torch.testing.assert_close(fast(x), original(x), rtol=1e-4, atol=1e-4)
    assert fast.network.kept == original.kept


@pytest.mark.slow
@pytest.mark.parametrize("how", ["compile", "eager"])
def test_random_branch(how):
    class Coin(Offset):
        def forward(self, x):
            return x if random.random() < 0.5 else super().forward(x)

    original, x = Coin(3).eval(), torch.rand(1, 3, 8, 8)
    fast, tossed = lwrn_fast.optimize(original, x, how=how), []
    for run in (fast, original):
        random.seed(1)
        with torch.no_grad():
            tossed.append([torch.equal(run(x), x) for _ in range(40)])
    assert tossed[0] == tossed[1]
    assert 0 < sum(tossed[0]) < 40


class Looks(nn.Module):
    """Reads strides, as only contiguous memory has them."""

    def __init__(self) -> None:
        super().__init__()
        norm, pool = nn.BatchNorm2d(8), nn.MaxPool2d(5, 1, 2)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm, nn.Identity(), pool)
        self.register_buffer("grid", torch.ones(1, 3, 2, 2, 2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.body(x) * self.grid.sum()
        return y, y.view(len(y), -1).mean(1)


@pytest.mark.parametrize("how", ["compile", "eager"])
def test_third_party_models(how):
    """Buffers of any rank, Conv-BatchNorm-Identity, a view that needs contiguous memory, two results."""
    original, x = Looks().eval(), torch.rand(2, 3, 16, 16)
    nn.init.uniform_(original.body[1].running_mean)
    with torch.no_grad():
        expected = original(x)
    for got, reference in zip(lwrn_fast.optimize(original, x, how=how)(x), expected, strict=True):
        torch.testing.assert_close(got, reference, rtol=1e-4, atol=1e-5)
        assert got.is_contiguous()


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("original", [Offset(), lwrn_fast.CRP(3, 3)], ids=["third party", "ours"])
def test_copies_of_eager_ones(original, copied):
    x = torch.rand(1, 3, 9, 9)
    fast = lwrn_fast.optimize(original, x, how="eager")
    torch.testing.assert_close(copied(fast)(x), fast(x))


class Breaks(nn.Module):
    """Ends the captured graph within an inner module, as a print does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 4, 1), nn.ModuleList(Offset(4, gain) for gain in (1.0, 2.0))
        for inner in self.inner:
            inner.conv = nn.ModuleList([nn.Conv2d(4, 4, 1)])

    def forward(self, x):
        x = self.stem(x)
        for inner in self.inner:
            x = x + inner.gain * self.part(inner, x)
        return x

    def part(self, inner, x):
        torch._dynamo.graph_break()
        return inner.conv[0](inner.pool(x))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["compile", "eager"])
def test_behind_a_graph_break(how):
    originals, x = [Breaks().eval() for _ in range(3)], torch.rand(1, 3, 9, 9)
    fast = [lwrn_fast.optimize(original, x, how=how) for original in originals]
    with torch.no_grad():
        for i in (0, 2, 1, 0):
            torch.testing.assert_close(fast[i](x), originals[i](x), rtol=1e-4, atol=1e-5)
