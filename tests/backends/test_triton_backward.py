"""The Triton kernels of the backward passes, beyond test_gradients.py, which runs on them too."""

import dataclasses

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

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPS = torch.ops.lwrn_fast
# Tiles that overhang, blocks of planes, weights summed in several places.
SMALL = {
    "square": {"config": configs.Tile(4, 4, 16, 4), "of_products": configs.Products(16, 16, 16, 32, 1, 4)},
    "flat": {"config": configs.Tile(1, 16, 32, 4), "of_products": configs.Products(32, 16, 32, 64, 1, 4)},
}
DEPTHWISE = pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.filterwarnings("ignore:invalid value encountered")]


@pytest.fixture(autouse=True)
def _on_the_device():
    with torch.device(DEVICE):
        yield


def crp_launches(grad, x, weights, biases, groups, needs=None, stages=None, **tiles):
    if stages is None:
        stages = ops.crp.compute_stages(x, weights[:-1], biases, groups)
    needs = needs or [True] * (1 + len(weights) + len(biases))
    return crp_backward.prepare(grad, x, stages, weights, biases, groups, needs, **tiles)


def crp_expected(grad, x, weights, biases, groups):
    return ops.crp.gradients(grad, x, [], weights, biases, groups, [True] * (1 + len(weights) + len(biases)))


def assert_same(found, expected):
    for got, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(got, exact.to(got.dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@DEPTHWISE
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 2, 1), (2, 20, 9, 7)], ids=name)
def test_crp_in_whole_numbers(shape, depthwise, dtype):
    given = whole_crp(shape, groups=shape[1] if depthwise else 1, dtype=dtype)
    assert_same(crp_launches(*given).run(), crp_expected(*in_double(given)))


@pytest.mark.parametrize("tiles", SMALL)
@DEPTHWISE
def test_crp_in_tiles(depthwise, tiles):
    given = whole_crp((1, 20, 5, 9), stages=2, groups=20 if depthwise else 1)
    assert_same(crp_launches(*given, **SMALL[tiles]).run(), crp_expected(*in_double(given)))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@DEPTHWISE
def test_crp_as_exact_as_eager(depthwise, dtype):
    """One stage, for rounding changes who wins the next; and some problems together, for in one it is luck."""
    shape, planes = (2, 48, 21, 25), 48
    squares = torch.zeros(3, 2, dtype=torch.double)  # of errors: of x, weight and bias, by ours and eager
    for _ in range(3):
        grad, x = torch.randn(shape).to(dtype), torch.randn(shape).relu().to(dtype)
        weights = [(torch.randn(planes, 1 if depthwise else planes, 1, 1) / 7).to(dtype)]
        given = [grad, x, weights, [torch.randn(planes).to(dtype)], planes if depthwise else 1]
        found = zip(crp_launches(*given).run(), crp_expected(*given), crp_expected(*in_double(given)), strict=True)
        for i, (got, eager, exact) in enumerate(found):
            squares[i] += torch.stack([(g.double() - exact).square().sum() for g in (got, eager)])
    ours, eagers = squares.unbind(1)
    assert (ours <= 1.1 * eagers).all(), ours / eagers


@pytest.mark.in_turn("value")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("share", [0.02, 0.7, 1.0], ids=str)
@DEPTHWISE
def test_crp_of_what_is_not_finite(depthwise, share, value):
    given = whole_crp((2, 10, 9, 11), stages=2, groups=10 if depthwise else 1)
    given[1][torch.rand(given[1].shape) < share] = value
    assert_same(crp_launches(*given).run(), crp_expected(*given))


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_crp_of_a_gradient_that_is_not_finite(value):
    given = whole_crp((2, 10, 9, 11), stages=2)
    given[0][torch.rand(given[0].shape) < 0.05] = value
    assert_same(crp_launches(*given).run(), crp_expected(*given))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_crp_of_any_layout(layout):
    grad, x, *others = whole_crp((3, 6, 5, 4), stages=1)
    for given in ([LAYOUTS[layout](grad), x, *others], [grad, LAYOUTS[layout](x), *others]):
        assert_same(crp_launches(*given).run(), crp_expected(*given))


def test_crp_of_transposed_weights():
    grad, x, weights, *others = whole_crp((2, 6, 5, 4), stages=2)
    given = [grad, x, [w.transpose(0, 1) for w in weights], *others]
    assert_same(crp_launches(*given).run(), crp_expected(*given))


def test_crp_with_the_stages_kept_or_computed_again():
    given = whole_crp((2, 6, 5, 4))
    kept = crp.prepare(*given[1:])
    assert torch.equal(kept.run(), OPS.crp(*given[1:]))
    assert_same(list(kept.kept), ops.crp.compute_stages(given[1], given[2][:-1], *given[3:]))
    assert_same(crp_launches(*given, stages=list(kept.kept)).run(), crp_expected(*given))
    assert_same(crp_launches(*given, stages=[]).run(), crp_expected(*given))


# what is needed: x, three weights, three biases; and the kernels that run for it
WORK = {
    "x......": ["stage", "input", "stage", "input", "stage", "input", "stage"],
    "...w...": ["stage", "weight"],
    "......b": ["stage", "add"],
    "..w.b..": ["stage", "input", "stage", "input", "weight", "stage", "add"],
    ".......": [],
}


@pytest.mark.parametrize("pattern", WORK)
def test_crp_only_what_is_needed(pattern):
    given = whole_crp((1, 6, 5, 4))
    needs = [letter != "." for letter in pattern]
    prepared = crp_launches(*given, needs=needs)
    assert [launch.kernel.__name__.split("_")[1] for launch in prepared.launches] == WORK[pattern]
    assert_same(prepared.run(), [e for e, need in zip(crp_expected(*given), needs, strict=True) if need])


def test_crp_of_an_empty_batch():
    given = whole_crp((0, 6, 5, 4))
    for got, tensor in zip(crp_launches(*given).run(), tensors_of(given[1:]), strict=True):
        assert torch.equal(got, torch.zeros_like(tensor))


def fusion_problem(sizes, dtype=torch.float32, planes=5, activation="relu", align_corners=True, whole=False):
    """grad, out and the arguments of fusion, in whole numbers or random ones."""
    if whole:
        inputs = [torch.randint(-2, 3, (2, k + 3, *size)).to(dtype) for k, size in enumerate(sizes)]
        weights = [torch.randint(-1, 2, (planes, x.shape[1], 1, 1)).to(dtype) for x in inputs]
        grad, out = (torch.randint(-2, most, (2, planes, *sizes[0])).to(dtype) for most in (3, 9))
    else:
        inputs = [torch.randn(2, k + 3, *size).to(dtype) for k, size in enumerate(sizes)]
        weights = [torch.randn(planes, x.shape[1], 1, 1).to(dtype) for x in inputs]
        grad, out = (torch.randn(2, planes, *sizes[0]).to(dtype) for _ in range(2))
    biases = [torch.zeros(planes, dtype=dtype) for _ in inputs]
    return [grad, None if activation == "none" else out, inputs, weights, biases, activation, align_corners]


def fusion_launches(*given, needs=None, **tiles):
    return fusion_backward.prepare(*given, needs or [True] * len(tensors_of(given[2:])), **tiles)


def fusion_expected(*given):
    return ops.fusion.gradients(*given, [True] * len(tensors_of(given[2:])))


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("align_corners", [True, False])
def test_fusion_in_whole_numbers(align_corners, dtype, activation):
    """Sizes whose pixels lie at halves or quarters."""
    sizes = [(5, 9), (3, 5), (5, 9)] if align_corners else [(6, 8), (3, 4), (6, 8)]
    given = fusion_problem(sizes, dtype, 5, activation, align_corners, whole=True)
    assert_same(fusion_launches(*given).run(), fusion_expected(*in_double(given)))


@pytest.mark.parametrize("tiles", SMALL)
def test_fusion_in_tiles(tiles):
    given = fusion_problem([(9, 17), (5, 9), (9, 17)], planes=20, whole=True)
    assert_same(fusion_launches(*given, **SMALL[tiles]).run(), fusion_expected(*in_double(given)))


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (3, 5), (7, 4), (7, 9), (13, 20), (2, 40)], ids=name)
def test_fusion_of_any_sizes(size, align_corners):
    for full in ((7, 9), (1, 16)):
        given = fusion_problem([full, size], align_corners=align_corners)
        for got, exact in zip(fusion_launches(*given).run(), fusion_expected(*in_double(given)), strict=True):
            torch.testing.assert_close(got, exact.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("align_corners", [True, False])
def test_fusion_as_exact_as_eager(align_corners, dtype):
    squares = torch.zeros(6, 2, dtype=torch.double)
    for _ in range(2):
        given = fusion_problem([(32, 33), (16, 17)], dtype, 24, align_corners=align_corners)
        found = fusion_launches(*given).run(), fusion_expected(*given), fusion_expected(*in_double(given))
        for i, (got, eager, exact) in enumerate(zip(*found, strict=True)):
            squares[i] += torch.stack([(g.double() - exact).square().sum() for g in (got, eager)])
    ours, eagers = squares.unbind(1)
    assert (ours <= 1.1 * eagers).all(), ours / eagers


@pytest.mark.in_turn("value")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("align_corners", [True, False])
def test_fusion_of_what_is_not_finite(align_corners, activation, value):
    given = fusion_problem([(7, 9), (3, 4), (7, 9)], activation=activation, align_corners=align_corners, whole=True)
    for tensor in [given[0], *given[2], *([given[1]] if activation == "relu" else [])]:
        tensor[torch.rand(tensor.shape) < 0.02] = value
    expected = fusion_expected(*given)
    expected[7] = expected[6]  # eager's sum of an interpolated gradient has NaN where weights of 0 meet infinities
    for got, eager in zip(fusion_launches(*given).run(), expected, strict=True):
        torch.testing.assert_close(got, eager, equal_nan=True)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_fusion_where_its_result_is_nan(activation):
    """The gradient passes. So it does in PyTorch, but for hardtanh_backward on a CPU, where it is one of a vector."""
    grad, out, *others = fusion_problem([(5, 9)], activation=activation, whole=True)
    exact = fusion_expected(grad, torch.ones_like(out), *others)
    assert_same(fusion_launches(grad, torch.full_like(out, torch.nan), *others).run(), exact)


def test_fusion_only_what_is_needed():
    given = fusion_problem([(5, 9), (3, 5)], activation="none", whole=True)
    exact = fusion_expected(*in_double(given))
    work = {
        "x.....": ["input"],
        ".x....": ["shrink", "input"],
        "...w..": ["shrink", "weight"],
        "....bb": ["stop", "add", "add"],
        "......": [],
    }
    for pattern, kernels in work.items():
        needs = [letter != "." for letter in pattern]
        prepared = fusion_backward.prepare(*given, needs)
        assert [launch.kernel.__name__.split("_")[1] for launch in prepared.launches] == kernels
        assert_same(prepared.run(), [e for e, need in zip(exact, needs, strict=True) if need])


def test_fusion_of_an_empty_batch():
    given = fusion_problem([(5, 9), (3, 5)])
    given[:3] = [given[0][:0], given[1][:0], [x[:0] for x in given[2]]]
    for got, tensor in zip(fusion_launches(*given).run(), tensors_of(given[2:]), strict=True):
        assert torch.equal(got, torch.zeros_like(tensor))


class TestEveryLaunch:
    """What any one launch writes is missed, were it left out: none is superfluous, and these tests see each."""

    def without_each(self, prepare, expected):
        for i in range(len(prepare().launches)):
            prepared = prepare()
            del prepared.launches[i]
            with pytest.raises(AssertionError):
                assert_same(prepared.run(), expected)

    @DEPTHWISE
    def test_of_crp(self, depthwise):
        given = whole_crp((1, 4, 4, 9), stages=2, groups=4 if depthwise else 1)
        self.without_each(lambda: crp_launches(*given, **SMALL["flat"]), crp_expected(*given))

    def test_of_fusion(self):
        given = fusion_problem([(9, 5), (5, 3)], whole=True)
        self.without_each(lambda: fusion_launches(*given, **SMALL["square"]), fusion_expected(*given))


@pytest.mark.skipif(DEVICE == "cuda", reason="compiled kernels do not see it")
class TestPlantedFaults:
    def test_a_winner_in_the_next_row(self, monkeypatch):
        monkeypatch.setattr(crp_backward, "_place", lambda y, x: y * 2 + x)
        given = whole_crp((2, 6, 5, 4), stages=1)
        assert not torch.equal(crp_launches(*given).run()[0], crp_expected(*given)[0])

    def test_the_last_maximum(self):
        """As if windows were searched from their ends."""
        given = whole_crp((2, 6, 5, 4), stages=1)
        flipped = [t.flip(2, 3) for t in given[:2]]
        found = crp_launches(*flipped, *given[2:]).run()[0].flip(2, 3)
        assert not torch.equal(found, crp_expected(*given)[0])

    def test_a_pixel_too_late(self, monkeypatch):
        right = taps.first_beyond
        monkeypatch.setattr(fusion_backward, "first_beyond", lambda *given: right(*given) + 1)
        given = fusion_problem([(9, 5), (5, 3)], whole=True)
        assert not torch.equal(fusion_launches(*given).run()[1], fusion_expected(*given)[1])


@pytest.mark.slow
def test_the_same_bits_again():
    x = torch.randn(1, 18, 3, 5)
    given = [torch.randn(x.shape), x, [torch.randn(18, 18, 1, 1)], [torch.randn(18)], 1]
    fused = fusion_problem([(4, 3), (2, 3)])
    calls = [
        lambda: crp_launches(*given, **SMALL["flat"]).run(),
        lambda: fusion_launches(*fused, **SMALL["flat"]).run(),
    ]
    for call in calls:
        first = call()
        for _ in range(20):
            assert all(torch.equal(a, b) for a, b in zip(first, call(), strict=True))


class TestSixtyFourBits:
    def test_are_used_where_offsets_need_them(self):
        def products_of(*shape):
            return products._plan(*shape, 256, "half", torch.device("cpu"), None).arguments["WIDE"]

        def shrink_of(*sizes):
            plan = fusion_backward._shrink_plan(1, 8, *sizes, True, "half", torch.device("cpu"), None)
            return plan.arguments["WIDE"]

        assert [products_of(8, 256, 1000, 1000), products_of(9, 256, 1000, 1000)] == [False, True]
        assert [shrink_of(2, 30000, 4, 30000), shrink_of(2, 40000, 4, 40000)] == [False, True]

    def test_give_the_same(self):
        given = fusion_problem([(9, 5), (5, 3)], whole=True)
        prepared = fusion_launches(*given)
        for launch in prepared.launches:
            if "WIDE" in launch.arguments:
                launch.arguments["WIDE"] = True
        assert_same(prepared.run(), fusion_expected(*given))


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter does the checking")
def test_no_whole_number_overflows(monkeypatch):
    from triton.runtime.interpreter import interpreter_builder

    checked = dataclasses.replace(interpreter_builder.options, sanitize_overflow=True)
    monkeypatch.setattr(interpreter_builder, "options", checked)
    crp_launches(*whole_crp((1, 6, 5, 4), stages=1), **SMALL["square"]).run()
    fusion_launches(*fusion_problem([(9, 5), (5, 3)]), **SMALL["square"]).run()


class TestThroughAutograd:
    @pytest.fixture(autouse=True)
    def ran(self, monkeypatch):
        """Names of the kernels that ran; PyTorch's own gradients are out of reach."""
        names = []
        run = Launch.run

        def recorded(launch):
            names.append(launch.kernel.__name__)
            return run(launch)

        monkeypatch.setattr(Launch, "run", recorded)
        monkeypatch.setattr(backward, "convolution", None)
        with lwrn_fast.use_backend("triton"):
            yield names

    def test_crp(self, ran):
        x, *others = crp_arguments(grad=True)
        lwrn_fast.crp(x, *others).sum().backward()
        assert ran.count("_crp") == 1, "the stages are kept"
        assert ran.count("_stage") == 4
        assert ran.count("_input_gradient") == ran.count("_weight_gradient") == 3

    def test_crp_whose_stages_were_not_kept(self, ran):
        x, *others = crp_arguments(grad=True)
        OPS.triton_crp(x, *others).sum().backward()
        assert ran.count("_crp") == 2
        assert ran.count("_stage") == 4

    def test_fusion(self, ran):
        lwrn_fast.fusion(*fusion_arguments(grad=True)).sum().backward()
        assert ran[:2] == ["_fusion", "_stop"]
        assert ran.count("_shrink") == 1
        assert ran.count("_input_gradient") == ran.count("_weight_gradient") == 3

    def test_autocast(self, ran):
        x, weights, biases, groups = crp_arguments(grad=True)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            out = lwrn_fast.crp(x, weights, biases, groups)
        out.float().sum().backward()
        assert out.dtype == torch.bfloat16
        assert x.grad.dtype == weights[0].grad.dtype == torch.float32
        assert "_input_gradient" in ran


CHECKS = ("test_schema", "test_faketensor")


def test_the_ops_are_what_their_fake_kernels_say():
    triton.load()
    grad, *given = whole_crp((2, 6, 5, 4), stages=2)
    torch.library.opcheck(OPS.triton_crp_training.default, given, test_utils=CHECKS)
    x, weights, biases, groups = given
    arguments = (grad, x, [x], weights, biases, groups, [True, False, True, True, False])
    torch.library.opcheck(OPS.triton_crp_backward.default, arguments, test_utils=CHECKS)
    arguments = (*fusion_problem([(5, 4), (2, 3)]), [True, False, True, True, False, True])
    torch.library.opcheck(OPS.triton_fusion_backward.default, arguments, test_utils=CHECKS)
