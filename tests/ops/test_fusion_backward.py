"""The C++ kernel of fusion's backward pass, on every instruction set."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import lwrn_fast
from lwrn_fast.backends import native
from lwrn_fast.ops.fusion import gradients
from support.comparing import DTYPES, LAYOUTS, in_double, name

OPS = torch.ops.lwrn_fast
ISAS = native.extension().cpu_isas() if native.extension() is not None else ["missing"]

# Batch, channels of the result, (channels, height, width) of each input, align_corners: between these sizes an
# interpolation's weights are multiples of 1/16. One pixel, each side of a vector, a block, a tile, and many shares of
# tiles; inputs larger than the first; several of its size.
PROBLEMS = {
    "one_pixel": (1, 1, [(1, 1, 1)], True),
    "one_plane": (2, 1, [(1, 9, 5), (1, 3, 3)], True),
    "one_to_many": (1, 5, [(3, 9, 17), (4, 1, 1)], True),
    "many_to_one": (2, 3, [(4, 1, 1), (5, 8, 4)], False),
    "corners": (2, 17, [(33, 17, 9), (16, 5, 3)], True),
    "centres": (2, 21, [(7, 16, 8), (40, 4, 2)], False),
    "larger": (1, 6, [(6, 5, 9), (7, 17, 33), (8, 3, 17)], True),
    "larger_centres": (2, 4, [(6, 4, 8), (7, 16, 16)], False),
    "several": (2, 30, [(16, 9, 9), (18, 5, 5), (3, 9, 9), (1, 3, 9)], True),
    "alone": (3, 12, [(13, 7, 7)], True),
    "block": (1, 7, [(7, 6, 8)], True),
    "beyond_a_tile": (1, 33, [(20, 5, 29)], True),
    "many_images": (50, 8, [(9, 2, 2), (8, 1, 1)], False),
    "many_shares": (1, 9, [(8, 128, 160), (10, 64, 80)], False),
    "wide": (1, 3, [(2, 3, 4097), (3, 3, 2049)], True),
}
ACTIVATIONS = ["none", "relu", "relu6"]

pytestmark = [pytest.mark.usefixtures("poisoned", "native"), pytest.mark.op("fusion")]


@pytest.fixture(autouse=True, params=ISAS)
def _isa(request, monkeypatch):
    monkeypatch.setenv("LWRN_FAST_CPU_ISA", request.param)


def problem(key, activation="relu6", dtype=torch.float32):
    """Return all arguments but needs, in whole numbers so small that every sum is exact. out has both bounds in it."""
    batch, out_planes, sizes, align_corners = PROBLEMS[key]
    inputs = [torch.randint(-2, 3, (batch, *size)).to(dtype) for size in sizes]
    weights = [torch.randint(-1, 2, (out_planes, size[0], 1, 1)).to(dtype) for size in sizes]
    biases = [torch.zeros(out_planes, dtype=dtype) for _ in sizes]
    grad = torch.randint(-2, 3, (batch, out_planes, *sizes[0][1:])).to(dtype)
    out = torch.randint(-1, 8, grad.shape).to(dtype) if activation != "none" else None
    return [grad, out, inputs, weights, biases, activation, align_corners]


def everything(given):
    return [True] * sum(len(item) for item in given[2:5])


def backward(*given):
    return OPS.fusion_backward(*given, everything(given))


def expected(*given):
    return gradients(*given, everything(given))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("key", PROBLEMS)
def test_exact_in_whole_numbers(key, dtype):
    given = problem(key, dtype=dtype)
    for got, exact in zip(backward(*given), expected(*in_double(given)), strict=True):
        assert torch.equal(got, exact.to(dtype))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("key", ["corners", "centres", "larger", "several"])
def test_of_each_activation(key, activation):
    given = problem(key, activation)
    for got, exact in zip(backward(*given), expected(*given), strict=True):
        assert torch.equal(got, exact)


def random_problem(dtype=torch.float32, activation="relu", align_corners=True):
    """Return a problem of sizes between which every pixel is interpolated with other weights, down and up."""
    sizes, out_planes = [(40, 30, 41), (24, 13, 17), (33, 30, 41), (10, 47, 22)], 48
    inputs = [torch.randn(2, *size).to(dtype) for size in sizes]
    weights = [(torch.randn(out_planes, size[0], 1, 1) / 6).to(dtype) for size in sizes]
    biases = [torch.randn(out_planes).to(dtype) for _ in sizes]
    grad, out = (torch.randn(2, out_planes, 30, 41).to(dtype) for _ in range(2))
    return [grad, 4 * out, inputs, weights, biases, activation, align_corners]


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
def test_as_exact_as_eager(align_corners, dtype):
    """Compare the largest error of several problems, because that of one is luck."""
    squares = torch.zeros(12, 2, dtype=torch.double)  # the largest errors of inputs, weights and biases: ours, eager's
    for _ in range(6):
        given = random_problem(dtype, align_corners=align_corners)
        results = zip(backward(*given), expected(*given), expected(*in_double(given)), strict=True)
        for i, (got, eager, exact) in enumerate(results):
            squares[i] += torch.stack([(g.double() - exact).square().sum() for g in (got, eager)])
    ours, eagers = squares.unbind(1)
    assert (ours <= 1.1 * eagers).all(), ours / eagers


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("share", [0.02, 1.0], ids=str)
@pytest.mark.parametrize("where", ["inputs", "weights"])
def test_of_what_is_not_finite(where, share, value):
    given = problem("several")
    for tensor in given[2 if where == "inputs" else 3]:
        tensor[torch.rand(tensor.shape) < share] = value
    for got, eager in zip(backward(*given), expected(*given), strict=True):
        torch.testing.assert_close(got, eager, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("key", ["corners", "larger"])
def test_of_a_gradient_that_is_not_finite(key, value, activation):
    """The result is eager's, also where infinities meet the weights of 0 of their neighbours."""
    given = problem(key, activation)
    given[0][torch.rand(given[0].shape) < 0.02] = value
    tensors = 2 * len(given[2])
    for got, eager in zip(backward(*given)[:tensors], expected(*given)[:tensors], strict=True):
        torch.testing.assert_close(got, eager, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_what_is_nan_lets_the_gradient_pass(activation):
    """Eager's relu6 lets it pass in the last few elements alone, which its vectors do not reach."""
    given = problem("several", activation)
    missing = torch.rand(given[1].shape) < 0.3
    inside = [*given]
    given[1], inside[1] = given[1].masked_fill(missing, torch.nan), given[1].masked_fill(missing, 1)
    for got, exact in zip(backward(*given), expected(*inside), strict=True):
        assert torch.equal(got, exact)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_any_layout(layout):
    given = problem("several")
    for i in range(3):
        changed = [*given]
        changed[i] = [LAYOUTS[layout](x) for x in given[i]] if i == 2 else LAYOUTS[layout](given[i])
        for got, exact in zip(backward(*changed), expected(*changed), strict=True):
            assert torch.equal(got, exact)


def test_of_transposed_weights():
    given = problem("several")
    given[3] = [w.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3) for w in given[3]]
    for got, exact in zip(backward(*given), expected(*given), strict=True):
        assert torch.equal(got, exact)


def test_only_what_is_needed():
    given = problem("several")
    exact = expected(*given)
    for pattern in ("x...........", "............", ".x...w....b.", "....wwww....", "...........b", "..xx..w....."):
        needs = [letter != "." for letter in pattern]
        got = OPS.fusion_backward(*given, needs)
        wanted = [e for e, need in zip(exact, needs, strict=True) if need]
        assert len(got) == len(wanted)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_without_biases():
    given = problem("several")
    given[4] = []
    for got, exact in zip(backward(*given), expected(*given), strict=True):
        assert torch.equal(got, exact)


def test_of_large_weights():
    """The weights are so large that there is room for the sums of one share."""
    channels = 2900
    grad, x = torch.randint(-2, 3, (1, channels, 12, 13)).float(), torch.randint(-2, 3, (1, channels, 12, 13)).float()
    weight = torch.ones(channels, channels, 1, 1)
    got = OPS.fusion_backward(grad, None, [x], [weight], [], "none", True, [False, True])[0]
    assert torch.equal(got[:, :, 0, 0], grad.flatten(2)[0] @ x.flatten(2)[0].T)


def test_of_an_empty_batch():
    given = problem("several")
    given[:3] = [given[0][:0], given[1][:0], [x[:0] for x in given[2]]]
    for got, given_tensor in zip(backward(*given), [*given[2], *given[3], *given[4]], strict=True):
        assert torch.equal(got, torch.zeros_like(given_tensor))


@pytest.mark.parametrize("batch", [1, 11])
def test_the_same_bits_whatever_the_threads(threads, batch):
    given = random_problem()
    given[:3] = [given[0][:1], given[1][:1], [x[:1] for x in given[2]]]
    given[:3] = [t.repeat(batch, 1, 1, 1) for t in given[:2]] + [[x.repeat(batch, 1, 1, 1) for x in given[2]]]
    first = backward(*given)
    for run in range(20):
        torch.set_num_threads(1 + run % 3)
        for got, before in zip(backward(*given), first, strict=True):
            assert torch.equal(got, before)


def leaves_of(given):
    _, _, *lists, activation, align_corners = given
    return [[t.clone().requires_grad_() for t in tensors] for tensors in lists], (activation, align_corners)


def test_checkpointed():
    given = random_problem()
    results = []
    for run in (lwrn_fast.fusion, lambda *given: checkpoint(lwrn_fast.fusion, *given, use_reentrant=False)):
        lists, options = leaves_of(given)
        results.append(torch.autograd.grad(run(*lists, *options), [t for tensors in lists for t in tensors], given[0]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_accumulates():
    given = random_problem()
    lists, options = leaves_of(given)
    leaves = [t for tensors in lists for t in tensors]
    for _ in range(2):
        lwrn_fast.fusion(*lists, *options).backward(given[0])
    once = torch.autograd.grad(lwrn_fast.fusion(*lists, *options), leaves, given[0])
    assert all(torch.equal(leaf.grad, 2 * g) for leaf, g in zip(leaves, once, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.randn(1, 3, 5, 6)}, r"fusion: grad must be \(1, 3, 5, 5\), got \(1, 3, 5, 6\)"),
        ({0: torch.randn(1, 3, 5, 5).half()}, r"fusion: grad must have the dtype of inputs\[0\]"),
        ({1: None}, "fusion: out must be the result, for there is an activation, got None"),
        ({1: torch.randn(1, 3, 5, 4)}, r"fusion: out must be \(1, 3, 5, 5\), got \(1, 3, 5, 4\)"),
        ({2: [torch.randn(1, 4, 5, 5)]}, "fusion: weights must be 1 tensors, one for each input, got 2"),
        ({5: "elu"}, "fusion: activation must be 'relu', 'relu6' or 'none', got 'elu'"),
        ({7: [True]}, "fusion: needs must be 4 values, got 1"),
        ({2: [torch.randn(1, 4, 5, 5).double()] * 2}, r"fusion: inputs\[0\] must be float32, bfloat16 or float16"),
    ],
    ids=["shape", "dtype", "no_out", "shape_of_out", "inputs", "activation", "needs", "double"],
)
def test_wrong_arguments(change, message):
    inputs, weights = [torch.randn(1, 4, 5, 5)] * 2, [torch.randn(3, 4, 1, 1)] * 2
    given = [torch.randn(1, 3, 5, 5), torch.randn(1, 3, 5, 5), inputs, weights, [], "relu", True, [True] * 4]
    for i, value in change.items():
        given[i] = value
    with pytest.raises(RuntimeError, match=message):
        OPS.fusion_backward(*given)
