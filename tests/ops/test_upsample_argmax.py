"""lwrn_fast.upsample_argmax and lwrn_fast.UpsampleArgmax."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lwrn_fast
from lwrn_fast import reference
from support.comparing import COPIES, DTYPES, LAYOUTS, far_apart, name
from support.upsample_argmax import check

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.in_turn("dtype"), pytest.mark.op("upsample_argmax")]

SIZES = [
    ((1, 1), (1, 1)),
    ((1, 1), (5, 3)),
    ((2, 3), (2, 3)),
    ((3, 2), (7, 9)),
    ((5, 8), (20, 32)),
    ((8, 5), (33, 17)),
    ((4, 33), (16, 132)),
    ((15, 16), (31, 65)),
    ((17, 1), (40, 1)),
    ((9, 11), (4, 5)),
    ((6, 7), (1, 1)),
    ((3, 4), (100, 130)),
]
CLASSES = [1, 2, 3, 7, 8, 16, 17, 21, 33, 150, 255, 256]


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
@pytest.mark.parametrize(("source", "size"), SIZES, ids=name)
def test_sizes(backend, source, size, align_corners, dtype):
    check(LAYOUTS["channels_last"](torch.randn(2, 21, *source).to(dtype)), size, align_corners)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("classes", CLASSES)
def test_classes(backend, classes, dtype):
    check(torch.randn(2, classes, 7, 9).to(dtype), (29, 35))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, layout, dtype):
    check(LAYOUTS[layout](torch.randn(3, 19, 12, 13).to(dtype)), (40, 50))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_an_empty_batch(backend, dtype):
    assert lwrn_fast.upsample_argmax(torch.empty(0, 5, 3, 4, dtype=dtype), 8).shape == (0, 8, 8)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("classes", [2, 9, 80])
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
def test_exact_logits_give_exactly_the_labels_of_argmax(backend, align_corners, classes, dtype):
    """Use whole numbers and interpolation weights that are quarters: all logits are exact, and ties are everywhere."""
    once = torch.randint(-4, 5, (2, classes, 9, 5)).to(dtype)
    logits = torch.cat([once, once, once], 1)
    size = (17, 9) if align_corners else (18, 10)
    labels = lwrn_fast.upsample_argmax(logits, size, align_corners)
    assert torch.equal(labels, reference.upsample_argmax(logits.double(), size, align_corners))
    assert int(labels.max()) < classes


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("sign", [1, -1], ids=["nan", "negative_nan"])
def test_nan_counts_as_the_largest_and_the_first_wins(backend, sign, dtype):
    # No weight of this interpolation is 0 inside, so that rounding does not decide which pixels a NaN reaches
    logits = torch.randn(2, 12, 5, 6).to(dtype)
    nan = torch.copysign(torch.tensor(torch.nan), torch.tensor(float(sign))).to(dtype)
    logits[0, 7, 2, 3] = nan
    logits[0, 4, 3, 4] = nan
    logits[1, 0, 0, 0] = nan
    logits[1, 11, 4, 5] = nan
    got = check_nan(logits, (12, 14))
    assert {4, 7} <= set(got[0].unique().tolist())
    assert got[1, 0, 0] == 0
    assert got[1, -1, -1] == 11


def check_nan(logits: Tensor, size: tuple[int, int]) -> Tensor:
    labels = lwrn_fast.upsample_argmax(logits, size, False)
    exact = reference.resize(logits.double(), *size, False)
    nan = exact.isnan().any(1)
    assert torch.equal(labels[nan], exact.argmax(1)[nan].to(torch.uint8))
    return labels


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_infinities(backend, dtype):
    """A weight of 0 makes an infinity NaN, as in eager."""
    logits = torch.randn(2, 9, 5, 6).to(dtype)
    logits[0, 3] = torch.inf
    logits[0, 5] = torch.inf
    logits[1, :6] = -torch.inf
    logits[1, 7:, 2:] = -torch.inf
    size = (12, 14)
    expected = reference.upsample_argmax(logits.double(), size, align_corners=False)
    assert {0, 3, 6} <= set(expected.unique().tolist())
    assert torch.equal(lwrn_fast.upsample_argmax(logits, size, align_corners=False), expected)


@pytest.mark.not_interpreted
@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads(backend, threads, count):
    torch.set_num_threads(count)
    check(torch.randn(2, 21, 19, 15), (77, 61))


@pytest.mark.not_interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_repeated_runs_and_positions_in_the_batch_give_the_same_labels(backend, dtype):
    a, b = torch.randn(2, 1, 21, 19, 15).to(dtype)
    alone = lwrn_fast.upsample_argmax(a, (77, 61))
    together = lwrn_fast.upsample_argmax(torch.cat([b, a, b, a]), (77, 61))
    assert torch.equal(together[1:2], alone)
    assert torch.equal(together[3:4], alone)
    for _ in range(5):
        assert torch.equal(lwrn_fast.upsample_argmax(a, (77, 61)), alone)


@pytest.mark.parametrize("dim", range(4))
def test_more_than_two_billion_elements_between_neighbours(backend, dim):
    shape = [2 if d == dim else size for d, size in enumerate((2, 9, 7, 8))]
    check(far_apart(torch.randn(shape).to(torch.bfloat16), dim), (20, 30))


@pytest.mark.slow
def test_more_than_two_billion_labels(native):
    """Class 1 wins in the lower half; all instruction sets share this code's addresses."""
    logits = torch.tensor([[[[1.0], [0.0]], [[0.0], [1.0]]]])
    height, width = 2**16, 2**15 + 8
    labels = lwrn_fast.upsample_argmax(logits, (height, width))[0]
    assert not labels[: height // 2].any()
    assert labels[height // 2 :].all()


@pytest.mark.not_interpreted
def test_several_python_threads_at_once(backend):
    jobs = [torch.randn(1, 21, 17, 19) for _ in range(6)]
    expected = [lwrn_fast.upsample_argmax(job, 64) for job in jobs]

    def run(i: int) -> Tensor:
        with lwrn_fast.use_backend(backend.name):
            return lwrn_fast.upsample_argmax(jobs[i % 6], 64)

    with ThreadPoolExecutor(4) as pool:
        for i, result in enumerate(pool.map(run, range(60))):
            assert torch.equal(result, expected[i % 6])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shapes_and_strides(data):
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 12), st.integers(1, 30)))
    size = data.draw(st.tuples(st.integers(1, 50), st.integers(1, 70)))
    torch.manual_seed(data.draw(st.integers(0, 9)))
    layout = data.draw(st.sampled_from(sorted(LAYOUTS)))
    logits = LAYOUTS[layout](torch.randn(shape).to(data.draw(st.sampled_from(DTYPES))))
    check(logits, size, data.draw(st.booleans()))


def test_labels_have_no_gradient(backend):
    assert not lwrn_fast.upsample_argmax(torch.randn(1, 3, 4, 4, requires_grad=True), 8).requires_grad


@pytest.mark.parametrize("duplicate", COPIES)
def test_module(backend, duplicate):
    logits = torch.randn(1, 5, 4, 4)
    module = duplicate(lwrn_fast.UpsampleArgmax((9, 8), align_corners=False))
    assert torch.equal(module(logits), lwrn_fast.upsample_argmax(logits, [9, 8], False))
    assert "size=(9, 8), align_corners=False" in repr(module)


X = torch.zeros(2, 4, 5, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (torch.zeros(1, 257, 2, 2), 4),
            "upsample_argmax: logits must be of at most 256 classes, .* got 257",
        ),
        ((X[0], 4), r"upsample_argmax: logits must be \(batch, channels, height, width\), got \(4, 5, 6\)"),
        ((X[:, :0], 4), r"upsample_argmax: logits must be of channels, height and width >= 1, got \(2, 0, 5, 6\)"),
        ((X.int(), 4), "upsample_argmax: logits must be of a floating-point dtype, got torch.int32"),
        ((X, 0), r"upsample_argmax: size must be of integers >= 1, got \(0, 0\)"),
        ((X, (4, 2.5)), r"upsample_argmax: size must be of integers >= 1, got \(4, 2.5\)"),
        ((X, (4,)), r"upsample_argmax: size must be an integer or \(height, width\), got \(4,\)"),
        ((X, "44"), "upsample_argmax: size must be an integer or"),
        ((X, None), "upsample_argmax: size must be an integer or"),
    ],
)
def test_wrong_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        lwrn_fast.upsample_argmax(*arguments)


def test_wrong_type():
    with pytest.raises(TypeError, match="upsample_argmax: logits must be a torch.Tensor, got list"):
        lwrn_fast.upsample_argmax([1.0], 4)
