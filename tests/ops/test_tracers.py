"""PyTorch's tracers and exporters on our modules: each gives the module's results, or names the call to use."""

import io
import logging
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lwrn_fast
from lwrn_fast import crp as imported_crp
from lwrn_fast import models
from lwrn_fast.backends import Call
from lwrn_fast.models.networks import ResNetNetwork
from lwrn_fast.ops.crp import OP as CRP
from support.exporting import error, run_onnx

torch.fx.wrap("imported_crp")


class Labels(nn.Module):
    """A model whose labels have the size of its input, by the function upsample_argmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return lwrn_fast.upsample_argmax(self.conv(x), (x.shape[2] + 1, 2 * x.shape[3]))


class Mixed(nn.Module):
    """A third-party model with our modules and functions in it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.fusion, self.crp = lwrn_fast.Fusion([6, 8], 8, bias=True), lwrn_fast.CRP(8, 8, 2)
        self.scale = nn.ParameterList([torch.rand(8, 1, 1, 1)])

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stem(x).relu()
        x = self.crp(self.fusion(fine, self.down(fine)))
        return lwrn_fast.crp(x, list(self.scale), groups=8) + imported_crp(x, list(self.scale), groups=8)


def decoder() -> nn.Module:
    return models.Decoder([6, 8], 5, planes=8, align_corners=False)


def features(batch: int, fine: tuple[int, int], coarse: tuple[int, int]) -> tuple:
    return ([torch.randn(batch, 6, *fine), torch.randn(batch, 8, *coarse)],)


def image(*shape: int) -> tuple:
    return (torch.randn(*shape),)


# A module, the example, and inputs of other sizes: also maps of equal size where the example's differ, and reverse.
CASES = [
    pytest.param(lambda: lwrn_fast.CRP(8, 8), image(1, 8, 6, 7), [image(2, 8, 1, 9)], id="crp"),
    pytest.param(lambda: lwrn_fast.CRP(8, 8, groups=True, bias=True), image(1, 8, 6, 7), [image(3, 8, 5, 4)], id="dw"),
    pytest.param(
        lambda: lwrn_fast.Fusion([6, 8], 5),
        features(1, (6, 7), (6, 7))[0],
        [features(2, (9, 5), (4, 3))[0], features(1, (6, 6), (6, 6))[0]],
        id="fusion",
    ),
    pytest.param(decoder, features(1, (8, 6), (4, 3)), [features(2, (7, 5), (7, 5))], id="decoder"),
    pytest.param(lambda: lwrn_fast.UpsampleArgmax((9, 12)), image(1, 5, 3, 4), [image(2, 5, 4, 4)], id="labels"),
    pytest.param(Labels, image(1, 3, 8, 8), [image(2, 3, 5, 12)], id="labels_of_any_size"),
    pytest.param(Mixed, image(1, 3, 16, 16), [image(2, 3, 9, 21)], id="mixed"),
    pytest.param(
        lambda: ResNetNetwork("tiny", (1, 1, 1, 1), 5, torch.channels_last),
        image(1, 3, 64, 64),
        [image(2, 3, 70, 33)],
        id="model",
    ),
]


def check(run, module: nn.Module, inputs: list) -> None:
    for arguments in inputs:
        with torch.no_grad():
            expected, got = module(*arguments), run(*arguments)
        if expected.dtype == torch.uint8:
            assert got.shape == expected.shape
            assert (got != expected).float().mean() < 0.02
        else:
            assert error(got, expected) < 1e-5


def flat(arguments: tuple) -> list[Tensor]:
    return [each for item in arguments for each in (item if isinstance(item, list) else [item])]


@pytest.mark.parametrize(("make", "example", "others"), CASES)
class TestModules:
    @pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
    def test_jit_trace(self, make, example, others, grad, caplog):
        """The file needs no lwrn_fast, follows sizes and weights, and gives no warning."""
        module = make().eval()
        with warnings.catch_warnings(record=True) as said, torch.set_grad_enabled(grad):
            warnings.simplefilter("always")
            traced = torch.jit.trace(module, tuple(example))
        assert not [each for each in said if "deprecated" not in str(each.message)]
        assert not caplog.records
        assert "lwrn_fast::" not in str(traced.inlined_graph)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
        check(loaded, module, [tuple(example), *others])
        state = {name: value * 1.1 for name, value in module.state_dict().items() if value.is_floating_point()}
        module.load_state_dict(state, strict=False)
        loaded.load_state_dict(state, strict=False)
        check(loaded, module, [tuple(example)])

    def test_legacy_onnx(self, make, example, others, tmp_path):
        for package in ("onnx", "onnxruntime"):
            pytest.importorskip(package)
        module, path = make().eval(), tmp_path / "net.onnx"
        names = [f"input{i}" for i in range(len(flat(example)))]
        sizes = {name: {0: "batch", 2: f"height_{name}", 3: f"width_{name}"} for name in names}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(module, tuple(example), path, dynamo=False, input_names=names, dynamic_axes=sizes)
        check(lambda *arguments: run_onnx(path, *flat(arguments)), module, [tuple(example), *others])

    def test_onnx(self, make, example, others, tmp_path, caplog):
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
        module, path = make().eval(), tmp_path / "net.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(module, tuple(example), path, dynamo=True, verbose=False)
        check(lambda *arguments: run_onnx(path, *flat(arguments)), module, [tuple(example)])
        assert not [record for record in caplog.records if record.name == "lwrn_fast"]

    def test_export(self, make, example, others):
        module = make().eval()
        program = torch.export.export(module, tuple(example))
        check(program.module(), module, [tuple(example)])

    def test_script_says_what_to_call(self, make, example, others):
        module = make().eval()
        if isinstance(module, Labels):
            pytest.skip("a function of ours in someone's forward: the TorchScript compiler has its own message")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(TypeError, match=r"torch.jit.script cannot read this module; use torch.jit.trace"):
                torch.jit.script(nn.Sequential(module))


def test_a_backend_by_name_is_in_the_trace():
    block, x = lwrn_fast.CRP(8, 8).eval(), torch.randn(1, 8, 6, 7)
    if lwrn_fast.explain("crp", x, [torch.rand(8, 8, 1, 1)])["cpu"] != "ready":
        pytest.skip("the C++ engine is not there")
    with warnings.catch_warnings(), torch.no_grad(), lwrn_fast.use_backend("cpu"):
        warnings.simplefilter("ignore")
        assert "lwrn_fast::crp" in str(torch.jit.trace(block, x).inlined_graph)


def test_nothing_stays_behind_a_trace():
    block, x = lwrn_fast.CRP(8, 8).eval(), torch.randn(1, 8, 6, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(block, x)
        with pytest.raises(ValueError, match="crp: weights"):  # the check that fails puts the tracing state back
            torch.jit.trace(lambda t: lwrn_fast.crp(t, [torch.rand(3, 8, 1, 1)]), x)
    assert torch._C._get_tracing_state() is None
    traced = torch.fx.symbolic_trace(nn.Sequential(block))
    assert [node.op for node in traced.graph.nodes].count("call_function") == 1
    assert lwrn_fast.crp(x, [torch.rand(8, 8, 1, 1)]).shape == x.shape


class Spread(nn.Module):
    """A model with our modules as children, whose features are in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse, self.decoder = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1), decoder()

    def forward(self, x: Tensor) -> Tensor:
        fine = F.relu(self.fine(x))
        return self.decoder([fine, self.coarse(fine)])


@pytest.mark.parametrize(
    ("make", "ours"),
    [
        pytest.param(lambda: nn.Sequential(nn.Conv2d(3, 8, 1), lwrn_fast.CRP(8, 8)), 1, id="crp"),
        pytest.param(lambda: nn.Sequential(nn.Conv2d(3, 8, 1), lwrn_fast.UpsampleArgmax(20)), 1, id="labels"),
        pytest.param(Labels, 1, id="labels_of_any_size"),
        pytest.param(Mixed, 4, id="mixed"),
        pytest.param(Spread, 4, id="decoder"),
    ],
)
def test_fx_symbolic_trace(make, ours):
    """Our functions are one node each, of the module's own weights, and the result can be pickled."""
    module = make().eval()
    traced = torch.fx.symbolic_trace(module)
    called = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert sum(getattr(target, "__module__", "").startswith("lwrn_fast") for target in called) == ours
    check(traced, module, [image(1, 3, 16, 16), image(2, 3, 9, 20)])
    check(pickle.loads(pickle.dumps(traced)), module, [image(2, 3, 9, 20)])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.1)
    check(traced, module, [image(1, 3, 16, 16)])


def test_other_threads_keep_their_backend(caplog):
    """While one thread traces, the others use the fused ops."""
    import threading

    x, ops = torch.randn(1, 8, 6, 7), []

    class Waits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            thread = threading.Thread(target=lambda: ops.append(lwrn_fast.backends.select(Call(CRP, [x])).name))
            thread.start()
            thread.join()
            ops.append(lwrn_fast.backends.select(Call(CRP, [x])).name)
            return x + 1

    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("ignore")
        usual = lwrn_fast.backends.select(Call(CRP, [x])).name
        torch.jit.trace(Waits(), x, check_trace=False)
    assert ops == [usual, "reference"]
