"""Test the Triton kernels of the backward passes, beyond test_gradients.py, which runs on them too."""

import dataclasses
import re

import pytest
import torch

import lwrn_fast
from lwrn_fast import ops, reference
from lwrn_fast.backends import triton
from lwrn_fast.ops import backward
from support.arguments import crp_arguments, fusion_arguments, tensors_of, whole_crp
from support.comparing import DTYPES, LAYOUTS, in_double, name

if triton.missing() is not None:
    pytest.skip(triton.missing(), allow_module_level=True)

from lwrn_fast.kernels import configs, crp, crp_backward, fusion_backward, products, taps
from lwrn_fast.kernels.launch import Launch

# The device of all tensors: where there is no GPU, the kernels run in the interpreter.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPS = torch.ops.lwrn_fast
# Tiles that overhang, blocks of channels, weights summed in several splits.
SMALL_TILES = {
    "square": {"config": configs.Tile(4, 4, 16, 4), "products_config": configs.Products(16, 16, 16, 32, 1, 4)},
    "flat": {"config": configs.Tile(1, 16, 32, 4), "products_config": configs.Products(32, 16, 32, 64, 1, 4)},
}
DEPTHWISE = pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.filterwarnings("ignore:invalid value encountered")]


@pytest.fixture(autouse=True)
def _on_device():
    with torch.device(DEVICE):
        yield


def crp_launches(grad, x, weights, biases, groups, needs_grad=None, stages=None, **tiles):
    if stages is None:
        stages = ops.crp.compute_stages(x, weights[:-1], biases, groups)
    needs_grad = needs_grad or [True] * (1 + len(weights) + len(biases))
    return crp_backward.prepare(grad, x, stages, weights, biases, groups, needs_grad, **tiles)


def crp_expected(grad, x, weights, biases, groups):
    return ops.crp.gradients(grad, x, [], weights, biases, groups, [True] * (1 + len(weights) + len(biases)))


def assert_same(gradients, expected):
    for gradient, exact in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, exact.to(gradient.dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@DEPTHWISE
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 2, 1), (2, 20, 9, 7)], ids=name)
def test_crp_in_integers(shape, depthwise, dtype):
    given = whole_crp(shape, groups=shape[1] if depthwise else 1, dtype=dtype)
    assert_same(crp_launches(*given).run(), crp_expected(*in_double(given)))


@pytest.mark.parametrize("tiles", SMALL_TILES)
@DEPTHWISE
def test_crp_in_tiles(depthwise, tiles):
    given = whole_crp((1, 20, 5, 9), stages=2, groups=20 if depthwise else 1)
    assert_same(crp_launches(*given, **SMALL_TILES[tiles]).run(), crp_expected(*in_double(given)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@DEPTHWISE
def test_crp_as_exact_as_eager(depthwise, dtype):
    """Compare one stage, for rounding changes the argmax of the next; and several problems together, for in one it is
    luck."""
    shape, channels = (2, 48, 21, 25), 48
    squares = torch.zeros(3, 2, dtype=torch.double)  # errors of x, weight and bias, of ours and eager
    for _ in range(3):
        grad, x = torch.randn(shape).to(dtype), torch.randn(shape).relu().to(dtype)
        weights = [(torch.randn(channels, 1 if depthwise else channels, 1, 1) / 7).to(dtype)]
        given = [grad, x, weights, [torch.randn(channels).to(dtype)], channels if depthwise else 1]
        results = crp_launches(*given).run(), crp_expected(*given), crp_expected(*in_double(given))
        for i, (ours, eager, exact) in enumerate(zip(*results, strict=True)):
            squares[i] += torch.stack([(g.double() - exact).square().sum() for g in (ours, eager)])
    ours, eager = squares.unbind(1)
    assert (ours <= 1.1 * eager).all(), ours / eager


@pytest.mark.in_turn("value")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("share", [0.02, 0.7, 1.0], ids=str)
@DEPTHWISE
def test_crp_of_nonfinite_maps(depthwise, share, value):
    given = whole_crp((2, 10, 9, 11), stages=2, groups=10 if depthwise else 1)
    given[1][torch.rand(given[1].shape) < share] = value
    assert_same(crp_launches(*given).run(), crp_expected(*given))


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_crp_of_a_nonfinite_gradient(value):
    given = whole_crp((2, 10, 9, 11), stages=2)
    given[0][torch.rand(given[0].shape) < 0.05] = value
    assert_same(crp_launches(*given).run(), crp_expected(*given))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_crp_of_any_layout(layout):
    grad, x, *others = whole_crp((3, 6, 5, 4), stages=1)
    for given in ([LAYOUTS[layout](grad), x, *others], [grad, LAYOUTS[layout](x), *others]):
        assert_same(crp_launches(*given).run(), crp_expected(*given))


def test_crp_of_transposed_weights():
    grad, x, weights, *others = whole_crp((2, 6, 5, 4), stages=2)
    given = [grad, x, [w.transpose(0, 1) for w in weights], *others]
    assert_same(crp_launches(*given).run(), crp_expected(*given))


def test_crp_with_stages_kept_or_recomputed():
    given = whole_crp((2, 6, 5, 4))
    forward = crp.prepare(*given[1:])
    assert torch.equal(forward.run(), OPS.crp(*given[1:]))
    assert_same(list(forward.kept), ops.crp.compute_stages(given[1], given[2][:-1], *given[3:]))
    assert_same(crp_launches(*given, stages=list(forward.kept)).run(), crp_expected(*given))
    assert_same(crp_launches(*given, stages=[]).run(), crp_expected(*given))


# The kernels that run, by the gradients that are needed: of x, three weights, three biases.
KERNELS_OF_CRP = {
    "x......": ["crp_backward", "input", "crp_backward", "input", "crp_backward", "input", "crp_backward"],
    "...w...": ["crp_backward", "weight"],
    "......b": ["crp_backward", "reduce"],
    "..w.b..": ["crp_backward", "input", "crp_backward", "input", "weight", "crp_backward", "reduce"],
    ".......": [],
}


def kernel_names(launches):
    """Return the kernels' names, without the endings that tell nothing apart here."""
    endings = re.compile("(_gradient|_partials)?_kernel$")
    return [endings.sub("", launch.kernel.__name__) for launch in launches.launches]


@pytest.mark.parametrize("pattern", KERNELS_OF_CRP)
def test_crp_computes_only_the_needed_gradients(pattern):
    given = whole_crp((1, 6, 5, 4))
    needs_grad = [letter != "." for letter in pattern]
    launches = crp_launches(*given, needs_grad=needs_grad)
    assert kernel_names(launches) == KERNELS_OF_CRP[pattern]
    assert_same(launches.run(), [e for e, need in zip(crp_expected(*given), needs_grad, strict=True) if need])


def test_crp_of_an_empty_batch():
    given = whole_crp((0, 6, 5, 4))
    for gradient, tensor in zip(crp_launches(*given).run(), tensors_of(given[1:]), strict=True):
        assert torch.equal(gradient, torch.zeros_like(tensor))


def fusion_problem(sizes, dtype=torch.float32, channels=5, activation="relu", align_corners=True, whole=False):
    """Return grad, out and the arguments of fusion, in integers if `whole`, else in random numbers."""
    if whole:
        inputs = [torch.randint(-2, 3, (2, k + 3, *size)).to(dtype) for k, size in enumerate(sizes)]
        weights = [torch.randint(-1, 2, (channels, x.shape[1], 1, 1)).to(dtype) for x in inputs]
        grad, out = (torch.randint(-2, high, (2, channels, *sizes[0])).to(dtype) for high in (3, 9))
    else:
        inputs = [torch.randn(2, k + 3, *size).to(dtype) for k, size in enumerate(sizes)]
        weights = [torch.randn(channels, x.shape[1], 1, 1).to(dtype) for x in inputs]
        grad, out = (torch.randn(2, channels, *sizes[0]).to(dtype) for _ in range(2))
    biases = [torch.zeros(channels, dtype=dtype) for _ in inputs]
    return [grad, None if activation == "none" else out, inputs, weights, biases, activation, align_corners]


def fusion_launches(*given, needs_grad=None, **tiles):
    return fusion_backward.prepare(*given, needs_grad or [True] * len(tensors_of(given[2:])), **tiles)


def fusion_expected(*given):
    return ops.fusion.gradients(*given, [True] * len(tensors_of(given[2:])))


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("align_corners", [True, False])
def test_fusion_in_integers(align_corners, dtype, activation):
    """Use sizes whose pixels lie at halves or quarters, so that results are exact."""
    sizes = [(5, 9), (3, 5), (5, 9)] if align_corners else [(6, 8), (3, 4), (6, 8)]
    given = fusion_problem(sizes, dtype, 5, activation, align_corners, whole=True)
    assert_same(fusion_launches(*given).run(), fusion_expected(*in_double(given)))


@pytest.mark.parametrize("tiles", SMALL_TILES)
def test_fusion_in_tiles(tiles):
    given = fusion_problem([(9, 17), (5, 9), (9, 17)], channels=20, whole=True)
    assert_same(fusion_launches(*given, **SMALL_TILES[tiles]).run(), fusion_expected(*in_double(given)))


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (3, 5), (7, 4), (7, 9), (13, 20), (2, 40)], ids=name)
def test_fusion_of_any_sizes(size, align_corners):
    for full in ((7, 9), (1, 16)):
        given = fusion_problem([full, size], align_corners=align_corners)
        for gradient, exact in zip(fusion_launches(*given).run(), fusion_expected(*in_double(given)), strict=True):
            torch.testing.assert_close(gradient, exact.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("align_corners", [True, False])
def test_fusion_as_exact_as_eager(align_corners, dtype):
    squares = torch.zeros(6, 2, dtype=torch.double)
    for _ in range(2):
        given = fusion_problem([(32, 33), (16, 17)], dtype, 24, align_corners=align_corners)
        results = fusion_launches(*given).run(), fusion_expected(*given), fusion_expected(*in_double(given))
        for i, (ours, eager, exact) in enumerate(zip(*results, strict=True)):
            squares[i] += torch.stack([(g.double() - exact).square().sum() for g in (ours, eager)])
    ours, eager = squares.unbind(1)
    assert (ours <= 1.1 * eager).all(), ours / eager


@pytest.mark.in_turn("value")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("align_corners", [True, False])
def test_fusion_of_nonfinite_maps(align_corners, activation, value):
    given = fusion_problem([(7, 9), (3, 4), (7, 9)], activation=activation, align_corners=align_corners, whole=True)
    for tensor in [given[0], *given[2], *([given[1]] if activation == "relu" else [])]:
        tensor[torch.rand(tensor.shape) < 0.02] = value
    expected = fusion_expected(*given)
    expected[7] = expected[6]  # eager's sum of an interpolated gradient has NaN where weights of 0 meet infinities
    for gradient, eager in zip(fusion_launches(*given).run(), expected, strict=True):
        torch.testing.assert_close(gradient, eager, equal_nan=True)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_fusion_where_its_result_is_nan(activation):
    """Check that the gradient passes. In PyTorch, only the vectorised hardtanh_backward of CPUs stops it."""
    grad, out, *others = fusion_problem([(5, 9)], activation=activation, whole=True)
    exact = fusion_expected(grad, torch.ones_like(out), *others)
    assert_same(fusion_launches(grad, torch.full_like(out, torch.nan), *others).run(), exact)


def test_fusion_computes_only_the_needed_gradients():
    given = fusion_problem([(5, 9), (3, 5)], activation="none", whole=True)
    exact = fusion_expected(*in_double(given))
    kernels_of_fusion = {
        "x.....": ["input"],
        ".x....": ["upsample_backward", "input"],
        "...w..": ["upsample_backward", "weight"],
        "....bb": ["activation_backward", "reduce", "reduce"],
        "......": [],
    }
    for pattern, kernels in kernels_of_fusion.items():
        needs_grad = [letter != "." for letter in pattern]
        launches = fusion_launches(*given, needs_grad=needs_grad)
        assert kernel_names(launches) == kernels
        assert_same(launches.run(), [e for e, need in zip(exact, needs_grad, strict=True) if need])


def test_fusion_of_an_empty_batch():
    given = fusion_problem([(5, 9), (3, 5)])
    given[:3] = [given[0][:0], given[1][:0], [x[:0] for x in given[2]]]
    for gradient, tensor in zip(fusion_launches(*given).run(), tensors_of(given[2:]), strict=True):
        assert torch.equal(gradient, torch.zeros_like(tensor))


class TestEveryLaunch:
    """Leave each launch out: the results differ without it, so none is superfluous, and these tests see each."""

    def without_each(self, prepare, expected):
        for i in range(len(prepare().launches)):
            launches = prepare()
            del launches.launches[i]
            with pytest.raises(AssertionError):
                assert_same(launches.run(), expected)

    @pytest.mark.slow
    @DEPTHWISE
    def test_of_crp(self, depthwise):
        given = whole_crp((1, 4, 4, 9), stages=2, groups=4 if depthwise else 1)
        self.without_each(lambda: crp_launches(*given, **SMALL_TILES["flat"]), crp_expected(*given))

    def test_of_fusion(self):
        given = fusion_problem([(9, 5), (5, 3)], whole=True)
        self.without_each(lambda: fusion_launches(*given, **SMALL_TILES["square"]), fusion_expected(*given))


@pytest.mark.skipif(DEVICE == "cuda", reason="compiled kernels do not see a patched function")
class TestPlantedFaults:
    def test_an_argmax_in_the_next_row(self, monkeypatch):
        monkeypatch.setattr(crp_backward, "_position", lambda y, x: y * 2 + x)
        given = whole_crp((2, 6, 5, 4), stages=1)
        assert not torch.equal(crp_launches(*given).run()[0], crp_expected(*given)[0])

    def test_the_last_maximum(self):
        """Search the windows as if from their ends."""
        given = whole_crp((2, 6, 5, 4), stages=1)
        flipped = [t.flip(2, 3) for t in given[:2]]
        gradient = crp_launches(*flipped, *given[2:]).run()[0].flip(2, 3)
        assert not torch.equal(gradient, crp_expected(*given)[0])

    def test_a_pixel_too_late(self, monkeypatch):
        first_beyond = taps.first_beyond
        monkeypatch.setattr(fusion_backward, "first_beyond", lambda *given: first_beyond(*given) + 1)
        given = fusion_problem([(9, 5), (5, 3)], whole=True)
        assert not torch.equal(fusion_launches(*given).run()[1], fusion_expected(*given)[1])


@pytest.mark.slow
def test_the_same_bits_again():
    x = torch.randn(1, 18, 3, 5)
    given = [torch.randn(x.shape), x, [torch.randn(18, 18, 1, 1)], [torch.randn(18)], 1]
    fused = fusion_problem([(4, 3), (2, 3)])
    calls = [
        lambda: crp_launches(*given, **SMALL_TILES["flat"]).run(),
        lambda: fusion_launches(*fused, **SMALL_TILES["flat"]).run(),
    ]
    for call in calls:
        first = call()
        for _ in range(20):
            assert all(torch.equal(a, b) for a, b in zip(first, call(), strict=True))


class TestInt64:
    def test_is_used_where_offsets_need_it(self):
        def products_int64(*shape):
            return products._plan(*shape, 256, "half", torch.device("cpu"), None).arguments["USE_INT64"]

        def upsample_int64(*sizes):
            plan = fusion_backward._upsample_plan(1, 8, *sizes, True, "half", torch.device("cpu"), None)
            return plan.arguments["USE_INT64"]

        assert [products_int64(8, 256, 1000, 1000), products_int64(9, 256, 1000, 1000)] == [False, True]
        assert [upsample_int64(2, 30000, 4, 30000), upsample_int64(2, 40000, 4, 40000)] == [False, True]

    def test_gives_the_same(self):
        given = fusion_problem([(9, 5), (5, 3)], whole=True)
        launches = fusion_launches(*given)
        for launch in launches.launches:
            if "USE_INT64" in launch.arguments:
                launch.arguments["USE_INT64"] = True
        assert_same(launches.run(), fusion_expected(*given))


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter checks it")
def test_no_integer_overflows(monkeypatch):
    from triton.runtime.interpreter import interpreter_builder

    checked = dataclasses.replace(interpreter_builder.options, sanitize_overflow=True)
    monkeypatch.setattr(interpreter_builder, "options", checked)
    crp_launches(*whole_crp((1, 6, 5, 4), stages=1), **SMALL_TILES["square"]).run()
    fusion_launches(*fusion_problem([(9, 5), (5, 3)]), **SMALL_TILES["square"]).run()


class TestThroughAutograd:
    @pytest.fixture(autouse=True)
    def kernels_run(self, monkeypatch):
        """List the kernels that ran, by name. PyTorch's own gradients are disabled."""
        names = []
        run = Launch.run

        def record(launch):
            names.append(launch.kernel.__name__)
            return run(launch)

        monkeypatch.setattr(Launch, "run", record)
        monkeypatch.setattr(backward, "convolution", None)
        with lwrn_fast.use_backend("triton"):
            yield names

    def test_crp(self, kernels_run):
        x, *others = crp_arguments(grad=True)
        lwrn_fast.crp(x, *others).sum().backward()
        assert kernels_run.count("crp_kernel") == 1, "the stages are kept"
        assert kernels_run.count("crp_backward_kernel") == 4
        assert kernels_run.count("input_gradient_kernel") == kernels_run.count("weight_gradient_kernel") == 3

    def test_crp_whose_stages_were_not_kept(self, kernels_run):
        x, *others = crp_arguments(grad=True)
        OPS.triton_crp(x, *others).sum().backward()
        assert kernels_run.count("crp_kernel") == 2
        assert kernels_run.count("crp_backward_kernel") == 4

    def test_fusion(self, kernels_run):
        lwrn_fast.fusion(*fusion_arguments(grad=True)).sum().backward()
        assert kernels_run[:2] == ["fusion_kernel", "activation_backward_kernel"]
        assert kernels_run.count("upsample_backward_kernel") == 1
        assert kernels_run.count("input_gradient_kernel") == kernels_run.count("weight_gradient_kernel") == 3

    def test_autocast(self, kernels_run):
        x, weights, biases, groups = crp_arguments(grad=True)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            out = lwrn_fast.crp(x, weights, biases, groups)
        out.float().sum().backward()
        assert out.dtype == torch.bfloat16
        assert x.grad.dtype == weights[0].grad.dtype == torch.float32
        assert "input_gradient_kernel" in kernels_run


# Checks of torch.library.opcheck.
CHECKS = ("test_schema", "test_faketensor")


def test_the_ops_agree_with_their_fake_kernels():
    triton.load()
    grad, *given = whole_crp((2, 6, 5, 4), stages=2)
    torch.library.opcheck(OPS.triton_crp_training.default, given, test_utils=CHECKS)
    x, weights, biases, groups = given
    arguments = (grad, x, [x], weights, biases, groups, [True, False, True, True, False])
    torch.library.opcheck(OPS.triton_crp_backward.default, arguments, test_utils=CHECKS)
    arguments = (*fusion_problem([(5, 4), (2, 3)]), [True, False, True, True, False, True])
    torch.library.opcheck(OPS.triton_fusion_backward.default, arguments, test_utils=CHECKS)
