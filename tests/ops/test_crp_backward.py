"""The C++ kernel of crp's backward pass, on every instruction set."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import lwrn_fast
from lwrn_fast import reference
from lwrn_fast.backends import native
from lwrn_fast.ops.crp import compute_stages, gradients
from support.arguments import whole_crp
from support.comparing import DTYPES, LAYOUTS, in_double, name

OPS = torch.ops.lwrn_fast
ISAS = native.extension().cpu_isas() if native.extension() is not None else ["missing"]

# Batch, channels, height, width: each side of a vector, a window, a tile, a band, and several bands
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 2, 1),
    (3, 6, 5, 4),
    (2, 16, 9, 17),
    (1, 33, 16, 129),
    (40, 7, 4, 4),
    (2, 17, 75, 300),
    (1, 8, 2, 9001),
]

pytestmark = [pytest.mark.usefixtures("poisoned", "native"), pytest.mark.op("crp")]


@pytest.fixture(autouse=True, params=ISAS)
def _isa(request, monkeypatch):
    monkeypatch.setenv("LWRN_FAST_CPU_ISA", request.param)


def backward(grad, x, weights, biases, groups, stages=()):
    return OPS.crp_backward(grad, x, list(stages), weights, biases, groups, [True] * (1 + len(weights) + len(biases)))


def expected(grad, x, weights, biases, groups):
    return gradients(grad, x, [], weights, biases, groups, [True] * (1 + len(weights) + len(biases)))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_exact_in_whole_numbers(shape, depthwise, dtype):
    given = whole_crp(shape, groups=shape[1] if depthwise else 1, dtype=dtype)
    for got, exact in zip(backward(*given), expected(*in_double(given)), strict=True):
        assert torch.equal(got, exact.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
def test_as_exact_as_eager(depthwise, dtype):
    """Compare one stage, because rounding changes the maxima of the next; several problems, because one is luck."""
    shape, channels = (2, 48, 30, 41), 48
    squares = torch.zeros(3, 2, dtype=torch.double)  # the largest errors of x, weight and bias: ours, eager's
    for _ in range(6):
        grad, x = torch.randn(shape).to(dtype), torch.randn(shape).relu().to(dtype)
        weights = [(torch.randn(channels, 1 if depthwise else channels, 1, 1) / 7).to(dtype)]
        given = [grad, x, weights, [torch.randn(channels).to(dtype)], channels if depthwise else 1]
        results = zip(backward(*given), expected(*given), expected(*in_double(given)), strict=True)
        for i, (got, eager, exact) in enumerate(results):
            squares[i] += torch.stack([(g.double() - exact).square().sum() for g in (got, eager)])
    ours, eagers = squares.unbind(1)
    assert (ours <= 1.1 * eagers).all(), ours / eagers


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("share", [0.02, 0.7, 1.0], ids=str)
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
def test_of_what_is_not_finite(depthwise, share, value):
    given = whole_crp((2, 10, 9, 21), groups=10 if depthwise else 1)
    given[1][torch.rand(given[1].shape) < share] = value
    for got, eager in zip(backward(*given), expected(*given), strict=True):
        torch.testing.assert_close(got, eager, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_of_a_gradient_that_is_not_finite(value):
    given = whole_crp((2, 10, 9, 21))
    given[0][torch.rand(given[0].shape) < 0.05] = value
    for got, eager in zip(backward(*given), expected(*given), strict=True):
        torch.testing.assert_close(got, eager, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_any_layout(layout):
    grad, x, *others = whole_crp((3, 6, 9, 11))
    for given in ([LAYOUTS[layout](grad), x, *others], [grad, LAYOUTS[layout](x), *others]):
        for got, exact in zip(backward(*given), expected(*given), strict=True):
            assert torch.equal(got, exact)


def test_of_transposed_weights():
    grad, x, weights, *others = whole_crp((2, 6, 9, 11))
    given = [grad, x, [w.transpose(0, 1) for w in weights], *others]
    for got, exact in zip(backward(*given), expected(*given), strict=True):
        assert torch.equal(got, exact)


@pytest.mark.parametrize("stages", [1, 2, 5])
def test_of_any_count_of_stages(stages):
    given = whole_crp((2, 6, 9, 11), stages=stages)
    for got, exact in zip(backward(*given), expected(*given), strict=True):
        assert torch.equal(got, exact)


def test_only_what_is_needed():
    given = whole_crp((2, 6, 9, 11))
    exact = expected(*given)
    for pattern in ("x......", ".......", ".w.w.b.", "..ww...", "......b"):
        needs = [letter != "." for letter in pattern]
        grad, x, *others = given
        got = OPS.crp_backward(grad, x, [], *others, needs)
        wanted = [e for e, need in zip(exact, needs, strict=True) if need]
        assert len(got) == len(wanted)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_of_an_empty_batch():
    given = whole_crp((0, 6, 9, 11))
    for got, exact in zip(backward(*given), expected(*given), strict=True):
        assert got.shape == exact.shape
        assert torch.equal(got, torch.zeros_like(got))


def test_of_no_stages():
    grad, x = torch.randn(2, 6, 5, 5), torch.randn(2, 6, 5, 5)
    assert torch.equal(backward(grad, x, [], [], 1)[0], grad)


def random_problem(shape=(3, 40, 50, 43)):
    channels = shape[1]
    grad, x = torch.randn(shape), torch.randn(shape).relu()
    weights, biases = torch.randn(3, channels, channels, 1, 1) / 6, torch.randn(3, channels)
    return [grad, x, list(weights), list(biases), 1]


@pytest.mark.parametrize("shape", [(3, 40, 50, 43), (5, 40, 9, 7)], ids=name)
def test_the_same_bits_whatever_the_threads(threads, shape):
    given = random_problem(shape)
    first = backward(*given)
    for run in range(20):
        torch.set_num_threads(1 + run % 3)
        for got, before in zip(backward(*given), first, strict=True):
            assert torch.equal(got, before)


def test_the_same_bits_with_the_stages_kept():
    given = random_problem()
    _, stages = OPS.crp_training(*given[1:])
    for got, again in zip(backward(*given, stages=stages), backward(*given), strict=True):
        assert torch.equal(got, again)


def test_training_returns_what_inference_does():
    _, *given = random_problem()
    out, stages = OPS.crp_training(*given)
    assert torch.equal(out, OPS.crp(*given))
    assert len(stages) == 2
    for got, exact in zip(stages, compute_stages(*given), strict=False):
        torch.testing.assert_close(got, exact)


def test_keeps_a_third_of_what_eager_keeps():
    sizes = []
    for function in (lwrn_fast.crp, reference.crp):
        x = torch.randn(1, 8, 40, 40, requires_grad=True)
        weights = [torch.randn(8, 8, 1, 1, requires_grad=True) for _ in range(4)]
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.setdefault(t.data_ptr(), t), lambda t: t
        ):
            function(x, weights)
        sizes.append(sum(t.numel() * t.element_size() for t in kept.values()))
    assert 3 * sizes[0] < sizes[1]


def test_checkpointed():
    grad, x, weights, biases, groups = random_problem()
    results = []
    for run in (lwrn_fast.crp, lambda *given: checkpoint(lwrn_fast.crp, *given, use_reentrant=False)):
        leaf = x.clone().requires_grad_()
        parameters = [w.clone().requires_grad_() for w in weights]
        results.append(torch.autograd.grad(run(leaf, parameters, biases, groups), [leaf, *parameters], grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_accumulates():
    grad, x, weights, biases, groups = random_problem()
    leaves = [w.clone().requires_grad_() for w in weights]
    for _ in range(2):
        lwrn_fast.crp(x, leaves, biases, groups).backward(grad)
    once = torch.autograd.grad(lwrn_fast.crp(x, leaves, biases, groups), leaves, grad)
    assert all(torch.equal(leaf.grad, 2 * g) for leaf, g in zip(leaves, once, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.randn(1, 4, 5, 6)}, r"crp: grad must be \(1, 4, 5, 5\), got \(1, 4, 5, 6\)"),
        ({0: torch.randn(1, 4, 5, 5).half()}, "crp: grad must have the dtype of x"),
        ({2: [torch.randn(1, 4, 5, 5)] * 2}, r"crp: stages must be empty or 1 tensors, got 2"),
        ({2: [torch.randn(1, 4, 5, 4)]}, r"crp: stages\[0\] must be \(1, 4, 5, 5\), got \(1, 4, 5, 4\)"),
        ({6: [True]}, "crp: needs must be 3 values, got 1"),
        ({1: torch.randn(1, 4, 5, 5).double()}, "crp: x must be float32, bfloat16 or float16"),
    ],
    ids=["shape", "dtype", "stages", "shape_of_a_stage", "needs", "double"],
)
def test_wrong_arguments(change, message):
    given = [torch.randn(1, 4, 5, 5), torch.randn(1, 4, 5, 5), [], [torch.randn(4, 4, 1, 1)] * 2, [], 1, [True] * 3]
    for i, value in change.items():
        given[i] = value
    with pytest.raises(RuntimeError, match=message):
        OPS.crp_backward(*given)
