"""lwrn_fast.crp and lwrn_fast.CRP."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lwrn_fast
from lwrn_fast import reference
from support.comparing import (
    COPIES,
    DTYPES,
    LAYOUTS,
    assert_as_exact,
    eager_error,
    enough_images,
    far_apart,
    in_double,
    name,
)
from support.crp import check, parameters, variants

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.in_turn("dtype"), pytest.mark.op("crp")]

# Sizes around the kernels' tiles (8 rows, 64 columns, 128 pixels) and register tiles (6 or 12 pixels)
SIZES = [(1, 1), (1, 2), (2, 1), (3, 3), (5, 5), (1, 33), (33, 1), (7, 9), (8, 16), (9, 17), (15, 15), (16, 33)]
SIZES += [(31, 64), (17, 65), (65, 12), (40, 63)]
CHANNELS = [1, 2, 3, 7, 8, 15, 16, 17, 21, 31, 32, 33, 48, 64, 65]


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("size", SIZES, ids=name)
def test_sizes(backend, size, dtype):
    channels = 17
    x = torch.randn(enough_images(channels * size[0] * size[1]), channels, *size).to(dtype)
    check(LAYOUTS["channels_last"](x), *parameters(channels, 4, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_channels(backend, channels, depthwise, dtype):
    groups = channels if depthwise else 1
    x = torch.randn(enough_images(channels * 90), channels, 9, 10).to(dtype)
    check(LAYOUTS["channels_last"](x), *parameters(channels, 2, dtype, groups), groups)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
@pytest.mark.parametrize("stages", [1, 2, 4, 5])
def test_stages_with_biases(backend, stages, depthwise, dtype):
    groups = 21 if depthwise else 1
    x = torch.randn(2, 21, 19, 23).to(dtype)
    check(x, *parameters(21, stages, dtype, groups, bias=True), groups)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, layout, dtype):
    check(LAYOUTS[layout](torch.randn(3, 19, 12, 13).to(dtype)), *parameters(19, 2, dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_weights(backend, layout):
    weights, _ = parameters(19, 3, torch.float32)
    weights = [LAYOUTS[layout](w.expand(19, 19, 1, 1)) for w in weights]
    check(
        torch.randn(2, 19, 9, 8), weights, [torch.randn(19, 2)[:, 0], torch.randn(1).expand(19), torch.randn(38)[::2]]
    )


@pytest.mark.not_interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_map_larger_than_a_cache(backend, batch, dtype):
    check(LAYOUTS["channels_last"](torch.randn(batch, 64, 75, 67).to(dtype)), *parameters(64, 4, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_an_empty_batch(backend, dtype):
    result = lwrn_fast.crp(torch.empty(0, 8, 5, 6, dtype=dtype), *parameters(8, 4, dtype))
    assert result.shape == (0, 8, 5, 6)
    assert result.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_the_border_alone(backend, dtype):
    """All values are far below zero: a padding with anything but -inf shows in the outer two pixels."""
    x = torch.randn(4, 16, 21, 34).to(dtype) - 20
    weights = [torch.rand(16, 16, 1, 1).to(dtype) / 16 for _ in range(4)]
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))

    def border(*arguments) -> Tensor:
        result = reference.crp(*arguments)
        result[inner] = 0
        return result

    got = lwrn_fast.crp(x, weights)
    got[inner] = 0
    assert_as_exact(got, border(x.double(), in_double(weights)), eager_error(border, variants(x, weights, None, 1)))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("channels", [3, 16, 21])
def test_whole_numbers_are_exact(backend, channels, dtype):
    """Use permutations as weights: every sum is exact in every dtype, and ties are everywhere."""
    x = torch.randint(-2, 3, (2, channels, 14, 19)).to(dtype)
    weights = [torch.eye(channels)[torch.randperm(channels)].view(channels, channels, 1, 1).to(dtype) for _ in range(4)]
    assert torch.equal(lwrn_fast.crp(x, weights), reference.crp(x, weights))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
@pytest.mark.parametrize("sign", [1, -1], ids=["nan", "negative_nan"])
@pytest.mark.parametrize("position", [(0, 0), (10, 16), (20, 33), (4, 0), (0, 31)], ids=name)
def test_nan_spreads_as_far_as_the_windows(backend, position, sign, depthwise, dtype):
    groups = 16 if depthwise else 1
    x = torch.randn(2, 16, 21, 34).to(dtype)
    x[1, 5, position[0], position[1]] = torch.copysign(torch.tensor(torch.nan), torch.tensor(float(sign))).to(dtype)
    got = check(LAYOUTS["channels_last"](x), *parameters(16, 2, dtype, groups), groups)
    assert not got[0].isnan().any()
    assert got[1].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("channels", [3, 16, 21])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf], ids=["inf", "minus_inf"])
def test_infinities(backend, value, channels, dtype):
    x = torch.randn(2, channels, 13, 18).to(dtype)
    x[0, 1, 3, 4] = value
    x[1, 2] = value
    check(x, [torch.rand(channels, channels, 1, 1).to(dtype) / channels + 0.01 for _ in range(2)])


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
def test_windows_of_nothing_but_minus_infinity(backend, depthwise, dtype):
    x = torch.full((1, 8, 9, 10), -torch.inf, dtype=dtype)
    weights = [torch.ones(8, 1 if depthwise else 8, 1, 1, dtype=dtype)] * 4
    assert (lwrn_fast.crp(x, weights, groups=8 if depthwise else 1) == -torch.inf).all()


@pytest.mark.not_interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads(backend, threads, count, dtype):
    torch.set_num_threads(count)
    check(torch.randn(2, 33, 37, 29).to(dtype), *parameters(33, 4, dtype))


@pytest.mark.not_interpreted
@pytest.mark.kernels_only
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_repeated_runs_and_places_in_the_batch_give_the_same_bits(backend, dtype):
    a, b = torch.randn(2, 1, 33, 37, 29).to(dtype)
    weights, _ = parameters(33, 4, dtype)
    alone = lwrn_fast.crp(a, weights)
    together = lwrn_fast.crp(torch.cat([b, a, b, a]), weights)
    assert torch.equal(together[1:2], alone)
    assert torch.equal(together[3:4], alone)
    for _ in range(5):
        assert torch.equal(lwrn_fast.crp(a, weights), alone)


@pytest.mark.parametrize("change", ["in_place", "through_data", "by_an_optimizer", "one_value"])
def test_changed_weights_count_at_once(backend, change):
    block = lwrn_fast.CRP(16, 16, n_stages=2)
    weight = block.get_parameter("2_outvar_dimred.weight")
    x = torch.randn(1, 16, 9, 9)
    before = block(x)
    if change == "in_place":
        with torch.no_grad():
            weight.mul_(2)
    elif change == "through_data":
        weight.data[:] = weight.data.flip(0)
    elif change == "one_value":
        weight.data.view(-1)[37] += 1
    else:
        optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
        before.sum().backward()
        optimizer.step()
    after = block(x)
    assert not torch.equal(before, after)
    check(x, [block.get_parameter(f"{i}_outvar_dimred.weight").detach() for i in (1, 2)])


def test_new_weights_at_an_old_address(backend):
    x = torch.randn(1, 16, 5, 5)
    for _ in range(20):
        check(x, *parameters(16, 2, torch.float32))


@pytest.mark.parametrize("dim", range(4))
def test_more_than_two_billion_elements_between_neighbours(backend, dim):
    shape = [2 if d == dim else size for d, size in enumerate((2, 9, 7, 8))]
    x = far_apart(torch.randn(shape).to(torch.bfloat16), dim)
    check(x, *parameters(shape[1], 2, torch.bfloat16))


@pytest.mark.not_interpreted
def test_several_python_threads_at_once(backend):
    jobs = [(torch.randn(1, 24, 17, 19), parameters(24, 3, torch.float32)[0]) for _ in range(6)]
    expected = [lwrn_fast.crp(*job) for job in jobs]

    def run(i: int) -> Tensor:
        with lwrn_fast.use_backend(backend.name):
            return lwrn_fast.crp(*jobs[i % 6])

    with ThreadPoolExecutor(4) as pool:
        for i, result in enumerate(pool.map(run, range(60))):
            torch.testing.assert_close(result, expected[i % 6])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_and_strides(data):
    sizes = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 20), st.integers(1, 40)))
    dtype = data.draw(st.sampled_from(DTYPES))
    order = data.draw(st.permutations(range(4)))
    steps = data.draw(st.tuples(*[st.integers(1, 3)] * 4))
    groups = data.draw(st.sampled_from([1, sizes[1]]))
    torch.manual_seed(data.draw(st.integers(0, 9)))
    larger = torch.randn([size * step for size, step in zip([sizes[d] for d in order], steps, strict=True)])
    x = larger[tuple(slice(None, None, step) for step in steps)].permute([order.index(d) for d in range(4)])
    check(x.to(dtype), *parameters(sizes[1], data.draw(st.integers(1, 4)), dtype, groups), groups)


class TestModule:
    def test_published_names(self):
        names = [f"{i}_outvar_dimred.weight" for i in range(1, 5)]
        with_bias = lwrn_fast.CRP(6, 6, 1, bias=True)
        dense, depthwise = lwrn_fast.CRP(6, 6), lwrn_fast.CRP(6, 6, 4, True)
        assert list(dense.state_dict()) == names
        assert {tuple(value.shape) for value in dense.state_dict().values()} == {(6, 6, 1, 1)}
        assert [tuple(value.shape) for value in depthwise.state_dict().values()] == [(6, 1, 1, 1)] * 4
        assert list(with_bias.state_dict()) == ["1_outvar_dimred.weight", "1_outvar_dimred.bias"]
        assert (dense.stride, dense.n_stages, dense.maxpool.kernel_size) == (1, 4, 5)

    @pytest.mark.parametrize("groups", [False, True], ids=["dense", "depthwise"])
    @pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
    def test_equals_the_published_block(self, backend, groups, bias):
        block = lwrn_fast.CRP(20, 20, 3, groups, bias)
        x = torch.randn(2, 20, 11, 12)
        out = top = x
        for i in range(1, 4):
            top = getattr(block, f"{i}_outvar_dimred")(block.maxpool(top))
            out = top + out
        torch.testing.assert_close(block(x), out)

    def test_loads_published_weights(self, backend):
        state = {f"{i}_outvar_dimred.weight": torch.randn(8, 8, 1, 1) / 8 for i in range(1, 5)}
        block = lwrn_fast.CRP(8, 8)
        block.load_state_dict(state, strict=True)
        x = torch.randn(1, 8, 7, 7)
        torch.testing.assert_close(block(x), reference.crp(x, list(state.values())))

    @pytest.mark.parametrize("duplicate", COPIES)
    def test_copies_are_independent(self, backend, duplicate):
        block, x = lwrn_fast.CRP(8, 8), torch.randn(1, 8, 7, 7)
        before = block(x)
        twin = duplicate(block)
        assert torch.equal(twin(x), before)
        with torch.no_grad():
            twin.get_parameter("1_outvar_dimred.weight").zero_()
        assert torch.equal(block(x), before)
        assert not torch.equal(twin(x), before)

    def test_dtype_follows_to(self, backend):
        block = lwrn_fast.CRP(8, 8).to(torch.bfloat16)
        assert block(torch.randn(1, 8, 7, 7).to(torch.bfloat16)).dtype == torch.bfloat16

    def test_repr(self):
        assert "n_stages=2, groups=True" in repr(lwrn_fast.CRP(4, 4, 2, groups=True))

    def test_parametrized_weights(self, backend):
        block, x = lwrn_fast.CRP(8, 8, 2), torch.randn(1, 8, 7, 7)
        weights = [conv.weight.detach() for conv in (block.get_submodule(f"{i}_outvar_dimred") for i in (1, 2))]
        nn.utils.parametrizations.weight_norm(block.get_submodule("1_outvar_dimred"))
        torch.testing.assert_close(block(x), reference.crp(x, weights))

    def test_children_with_hooks_are_called(self):
        block, x, calls = lwrn_fast.CRP(8, 8, 2), torch.randn(1, 8, 7, 7), []
        expected = block(x)
        block.get_submodule("2_outvar_dimred").register_forward_hook(lambda *_: calls.append(1))
        torch.testing.assert_close(block(x), expected)
        assert calls == [1]
        with lwrn_fast.use_backend("cpu"), pytest.raises(RuntimeError, match="has hooks"):
            block(x)

    def test_replaced_children_are_called(self):
        block, x = lwrn_fast.CRP(8, 8, 2), torch.randn(1, 8, 7, 7)
        setattr(block, "1_outvar_dimred", nn.Conv2d(8, 8, 3, padding=1))
        setattr(block, "2_outvar_dimred", nn.Identity())
        top = getattr(block, "1_outvar_dimred")(block.maxpool(x))
        torch.testing.assert_close(block(x), x + top + block.maxpool(top))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert block(x).dtype == torch.bfloat16

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((8, 4), "CRP: out_planes must equal in_planes and be >= 1, got 8 and 4"),
            ((0, 0), "got 0 and 0"),
            ((8, 8, 0), "CRP: n_stages must be >= 1, got 0"),
        ],
    )
    def test_impossible_blocks(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            lwrn_fast.CRP(*arguments)


X = torch.zeros(2, 4, 5, 6)
W = torch.zeros(4, 4, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, [W, W[:, :2]]), r"crp: weights\[1\] must be \(4, 4, 1, 1\), got \(4, 2, 1, 1\)"),
        ((X, [W.double()]), r"crp: weights\[0\] must be of dtype torch.float32, as the input, got torch.float64"),
        ((X, [W.to("meta")]), r"crp: weights\[0\] must be on cpu, as the input, got meta"),
        ((X, []), "crp: weights must be of at least one tensor, got none"),
        ((X, [W], None, 2), r"crp: groups must be 1 or the number of channels \(4\), got 2"),
        ((X, [W], None, 4), r"crp: weights\[0\] must be \(4, 1, 1, 1\), got \(4, 4, 1, 1\)"),
        ((X, [W], [torch.zeros(3)]), r"crp: biases\[0\] must be \(4,\), got \(3,\)"),
        ((X, [W], [torch.zeros(4)] * 2), "crp: biases must be 1 tensors, got 2"),
        ((X[0], [W]), r"crp: x must be \(batch, channels, height, width\), got \(4, 5, 6\)"),
        ((X[:, :, :0], [W]), r"crp: x must be of channels, height and width >= 1, got \(2, 4, 0, 6\)"),
        ((X.long(), [W]), "crp: x must be of a floating-point dtype, got torch.int64"),
    ],
)
def test_wrong_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        lwrn_fast.crp(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [W]), "crp: x must be a torch.Tensor, got list"),
        ((X, W), "crp: weights must be a list or tuple of tensors, got Tensor"),
        ((X, [W], [None]), r"crp: biases\[0\] must be a torch.Tensor, got NoneType"),
    ],
)
def test_wrong_types(arguments, message):
    with pytest.raises(TypeError, match=message):
        lwrn_fast.crp(*arguments)
