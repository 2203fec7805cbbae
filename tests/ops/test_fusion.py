"""lwrn_fast.fusion and lwrn_fast.Fusion."""

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
    enough_images,
    far_apart,
    name,
)
from support.fusion import check, maps, parameters

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.in_turn("dtype"), pytest.mark.op("fusion")]

# Sizes of the result and of a second input: equal, enlarged by whole and odd factors, from and to one pixel, shrunk
SIZES = [
    ((1, 1), (1, 1)),
    ((2, 3), (1, 1)),
    ((5, 5), (3, 2)),
    ((8, 16), (4, 8)),
    ((9, 17), (8, 16)),
    ((15, 33), (7, 17)),
    ((16, 16), (16, 8)),
    ((33, 31), (1, 31)),
    ((63, 65), (32, 33)),
    ((1, 1), (3, 4)),
    ((4, 5), (9, 11)),
    ((7, 1), (3, 1)),
]
CHANNELS = [1, 2, 3, 7, 8, 15, 16, 17, 21, 31, 32, 33, 48, 64, 65]


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("align_corners", [True, False], ids=["corners", "centres"])
@pytest.mark.parametrize(("size", "other"), SIZES, ids=name)
def test_sizes(backend, size, other, align_corners, dtype):
    batch = enough_images(17 * size[0] * size[1])
    inputs = maps(batch, [5, 9], [size, other], dtype)
    check(inputs, *parameters([5, 9], 17, dtype), align_corners=align_corners)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("channels", CHANNELS)
def test_channels(backend, channels, dtype):
    in_channels = [channels, 24]
    inputs = maps(enough_images(channels * 90), in_channels, [(9, 10), (5, 5)], dtype)
    check(inputs, *parameters(in_channels, channels, dtype, bias=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("activation", ["relu", "relu6", "none"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_numbers_of_inputs(backend, count, activation, dtype):
    channels, sizes = [12, 7, 16, 3][:count], [(13, 18), (13, 18), (7, 9), (2, 5)][:count]
    weights, biases = parameters(channels, 19, dtype, bias=True)
    inputs, biases = maps(2, channels, sizes, dtype), [b + 3 for b in biases]
    if backend.name == "triton" and count > 3:
        with pytest.raises(RuntimeError, match="it takes at most 3 inputs, not 4"):
            lwrn_fast.fusion(inputs, weights, biases)
        return
    check(inputs, weights, biases, activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, layout, dtype):
    inputs = [LAYOUTS[layout](x) for x in maps(3, [10, 11, 6], [(12, 13), (6, 5), (12, 13)], dtype)]
    check(inputs, *parameters([10, 11, 6], 20, dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_weights(backend, layout):
    weights, biases = parameters([10, 11], 20, torch.float32, bias=True)
    check(maps(2, [10, 11], [(9, 8), (4, 4)], torch.float32), [LAYOUTS[layout](w) for w in weights], biases)


@pytest.mark.not_interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_map_larger_than_a_cache(backend, batch, dtype):
    check(maps(batch, [64, 48], [(75, 67), (38, 34)], dtype), *parameters([64, 48], 64, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_an_empty_batch(backend, dtype):
    inputs = [torch.empty(0, 8, 5, 6, dtype=dtype), torch.empty(0, 3, 2, 3, dtype=dtype)]
    result = lwrn_fast.fusion(inputs, *parameters([8, 3], 4, dtype))
    assert result.shape == (0, 4, 5, 6)
    assert result.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_whole_numbers_are_exact(backend, dtype):
    """Use permutations as weights, and weights of interpolation that are halves: every sum is exact in every dtype."""
    inputs = [torch.randint(-3, 4, (2, 16, *size)).to(dtype) for size in ((9, 13), (5, 7))]
    weights = [torch.eye(16)[torch.randperm(16)].view(16, 16, 1, 1).to(dtype) for _ in range(2)]
    assert torch.equal(lwrn_fast.fusion(inputs, weights), reference.fusion(inputs, weights))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("activation", ["relu", "relu6", "none"])
@pytest.mark.parametrize("sign", [1, -1], ids=["nan", "negative_nan"])
@pytest.mark.parametrize("which", [0, 1], ids=["first_input", "second_input"])
def test_nan_passes(backend, which, sign, activation, dtype):
    # Odd sizes whose interpolation weights are never 0 between pixels, so that NaN stays at one pixel
    inputs = maps(2, [8, 5], [(11, 16), (4, 6)], dtype)
    inputs[which][1, 2, 0, 0] = torch.copysign(torch.tensor(torch.nan), torch.tensor(float(sign))).to(dtype)
    weights, _ = parameters([8, 5], 9, dtype)
    got = check(inputs, weights, activation=activation)
    assert not got[0].isnan().any()
    assert got[1, :, 0, 0].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("activation", ["relu", "relu6", "none"])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf], ids=["inf", "minus_inf"])
def test_infinities(backend, value, activation, dtype):
    # Where the processor multiplies pairs of bfloat16, PyTorch makes a pair of a last, odd channel and the next pixel's
    # first, and multiplies that by 0.
    channels = [8, 6 if backend.name == "reference" else 5]
    inputs = maps(2, channels, [(11, 16), (11, 16)], dtype)
    inputs[0][1, 2, 3, 4] = value
    inputs[1][0, :, 5] = value
    check(inputs, [w.abs() + 0.01 for w in parameters(channels, 9, dtype)[0]], activation=activation)


@pytest.mark.not_interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads(backend, threads, count, dtype):
    torch.set_num_threads(count)
    check(maps(2, [20, 33], [(37, 29), (19, 15)], dtype), *parameters([20, 33], 18, dtype))


@pytest.mark.not_interpreted
@pytest.mark.kernels_only
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_repeated_runs_and_places_in_the_batch_give_the_same_bits(backend, dtype):
    inputs = maps(2, [20, 33], [(37, 29), (19, 15)], dtype)
    weights, _ = parameters([20, 33], 18, dtype)
    alone = lwrn_fast.fusion([x[:1] for x in inputs], weights)
    together = lwrn_fast.fusion([x[[1, 0, 1, 0]] for x in inputs], weights)
    assert torch.equal(together[1:2], alone)
    assert torch.equal(together[3:4], alone)
    for _ in range(5):
        assert torch.equal(lwrn_fast.fusion([x[:1] for x in inputs], weights), alone)


@pytest.mark.parametrize("change", ["in_place", "through_data"])
def test_changed_weights_count_at_once(backend, change):
    block = lwrn_fast.Fusion([8, 5], 16)
    inputs = maps(1, [8, 5], [(9, 9), (4, 4)], torch.float32)
    before, weight = block(inputs), block.convs[1].weight
    if change == "in_place":
        with torch.no_grad():
            weight.mul_(2)
    else:
        weight.data[3] += 1
    assert not torch.equal(before, block(inputs))
    check(inputs, [conv.weight.detach() for conv in block.convs])


@pytest.mark.parametrize("dim", range(4))
def test_more_than_two_billion_elements_between_neighbours(backend, dim):
    inputs = maps(2, [2, 2], [(2, 2), (2, 2)], torch.bfloat16)
    for far in (far_apart(inputs[0], dim), far_apart(inputs[1], dim)):
        check([inputs[0], far, inputs[0][:, :, :1]], *parameters([2, 2, 2], 7, torch.bfloat16))


@pytest.mark.not_interpreted
def test_several_python_threads_at_once(backend):
    jobs = [
        (maps(1, [24, 8], [(17, 19), (9, 9)], torch.float32), parameters([24, 8], 16, torch.float32)[0])
        for _ in range(6)
    ]
    expected = [lwrn_fast.fusion(*job) for job in jobs]

    def run(i: int) -> Tensor:
        with lwrn_fast.use_backend(backend.name):
            return lwrn_fast.fusion(*jobs[i % 6])

    with ThreadPoolExecutor(4) as pool:
        for i, result in enumerate(pool.map(run, range(60))):
            torch.testing.assert_close(result, expected[i % 6])


SIZE = st.tuples(st.integers(1, 20), st.integers(1, 40))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shapes_and_strides(data):
    batch, out_planes = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40))
    dtype = data.draw(st.sampled_from(DTYPES))
    torch.manual_seed(data.draw(st.integers(0, 9)))
    inputs = []
    for _ in range(data.draw(st.integers(1, 3))):
        channels, size = data.draw(st.integers(1, 20)), data.draw(SIZE)
        layout = data.draw(st.sampled_from(sorted(LAYOUTS)))
        inputs.append(LAYOUTS[layout](torch.randn(batch, channels, *size).to(dtype)))
    weights, biases = parameters([x.shape[1] for x in inputs], out_planes, dtype, data.draw(st.booleans()))
    activation = data.draw(st.sampled_from(["relu", "relu6", "none"]))
    check(inputs, weights, biases, activation, data.draw(st.booleans()))


class TestModule:
    def test_names(self):
        block = lwrn_fast.Fusion([6, 4], 5, bias=True)
        assert {key: tuple(value.shape) for key, value in block.state_dict().items()} == {
            "convs.0.weight": (5, 6, 1, 1),
            "convs.0.bias": (5,),
            "convs.1.weight": (5, 4, 1, 1),
            "convs.1.bias": (5,),
        }

    @pytest.mark.parametrize("as_list", [False, True], ids=["arguments", "list"])
    @pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
    def test_equals_the_function(self, backend, bias, as_list):
        block = lwrn_fast.Fusion([6, 4], 5, "relu6", False, bias)
        inputs = maps(2, [6, 4], [(9, 8), (5, 4)], torch.float32)
        expected = reference.fusion(
            inputs, [c.weight for c in block.convs], [c.bias for c in block.convs] if bias else None, "relu6", False
        )
        torch.testing.assert_close(block(inputs) if as_list else block(*inputs), expected)

    @pytest.mark.parametrize("duplicate", COPIES)
    def test_copies_are_independent(self, backend, duplicate):
        block, x = lwrn_fast.Fusion([8], 8), torch.randn(1, 8, 7, 7)
        before = block(x)
        twin = duplicate(block)
        assert torch.equal(twin(x), before)
        with torch.no_grad():
            twin.convs[0].weight.neg_()
        assert torch.equal(block(x), before)
        assert not torch.equal(twin(x), before)

    def test_repr(self):
        assert "activation='none', align_corners=False" in repr(lwrn_fast.Fusion([4], 2, "none", align_corners=False))

    def test_children_with_hooks_are_called(self):
        block, calls = lwrn_fast.Fusion([8, 4], 6), []
        inputs = maps(1, [8, 4], [(7, 7), (4, 4)], torch.float32)
        expected = block(inputs)
        block.convs[1].register_forward_pre_hook(lambda *_: calls.append(1))
        torch.testing.assert_close(block(inputs), expected)
        assert calls == [1]
        with lwrn_fast.use_backend("cpu"), pytest.raises(RuntimeError, match="has hooks"):
            block(inputs)

    def test_replaced_children_are_called(self):
        block, x = lwrn_fast.Fusion([8], 8), torch.randn(1, 8, 7, 7)
        block.convs[0] = nn.Identity()
        torch.testing.assert_close(block(x), x.relu())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([], 4), r"Fusion: in_planes must be one number >= 1 for each input, got \[\]"),
            ((8, 4), "Fusion: in_planes must be one number >= 1 for each input, got 8"),
            (([8], 0), "Fusion: out_planes must be >= 1, got 0"),
            (([8], 8, "gelu"), "Fusion: activation must be"),
        ],
    )
    def test_impossible_blocks(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            lwrn_fast.Fusion(*arguments)

    def test_wrong_number_of_inputs(self):
        with pytest.raises(ValueError, match="Fusion: inputs must be 2 tensors, got 1"):
            lwrn_fast.Fusion([4, 4], 4)(torch.zeros(1, 4, 3, 3))


X = torch.zeros(2, 4, 5, 6)
W = torch.zeros(3, 4, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "fusion: inputs must be of at least one tensor, got none"),
        (([X, X], [W]), "fusion: weights must be 2 tensors, got 1"),
        (([X, X[:1]], [W, W]), r"fusion: inputs\[1\] must be of batch size 2, as inputs\[0\], got 1"),
        (
            ([X, X.half()], [W, W]),
            r"fusion: inputs\[1\] must be of dtype torch.float32, as the input, got torch.float16",
        ),
        (([X, X], [W, W[:2]]), r"fusion: weights\[1\] must be \(3, 4, 1, 1\), got \(2, 4, 1, 1\)"),
        (([X], [W[:0]]), r"fusion: weights\[0\] must be \(out_channels, in_channels, 1, 1\) with out_channels >= 1"),
        (([X], [W], [torch.zeros(4)]), r"fusion: biases\[0\] must be \(3,\), got \(4,\)"),
        (([X], [W], None, "tanh"), 'fusion: activation must be "relu", "relu6" or "none", got \'tanh\''),
        (([X[0]], [W]), r"fusion: inputs\[0\] must be \(batch, channels, height, width\), got \(4, 5, 6\)"),
        (([X, X[..., :0]], [W, W]), r"fusion: inputs\[1\] must be of channels, height and width >= 1"),
    ],
)
def test_wrong_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        lwrn_fast.fusion(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, [W]), "fusion: inputs must be a list or tuple of tensors, got Tensor"),
        (([X], [[1.0]]), r"fusion: weights\[0\] must be a torch.Tensor, got list"),
    ],
)
def test_wrong_types(arguments, message):
    with pytest.raises(TypeError, match=message):
        lwrn_fast.fusion(*arguments)
