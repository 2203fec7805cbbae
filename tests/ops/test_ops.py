"""The ops under opcheck, torch.compile, torch.export, autocast and torch.func."""

import ctypes
import subprocess
import sys

import pytest
import torch
import torch._dynamo.testing
from torch.utils.flop_counter import FlopCounterMode

import lwrn_fast
from lwrn_fast import reference
from support.arguments import DIFFERENTIABLE, OPS, crp_arguments, fusion_arguments, leaves, tensors_of
from support.comparing import name
from support.small_model import Model, inputs

pytestmark = pytest.mark.usefixtures("poisoned")


def crp_backward_arguments(stages, **given):
    x, *parameters = crp_arguments(**given)
    return [torch.randn(2, 6, 7, 9), x, stages, *parameters, [True] * 4 + [False] * 3]


OPCHECKS = {
    "crp": (OPS.crp, crp_arguments),
    "crp_depthwise": (OPS.crp, lambda **given: crp_arguments(groups=6, **given)),
    "fusion": (OPS.fusion, fusion_arguments),
    "upsample_argmax": (
        OPS.upsample_argmax,
        lambda **given: [leaves(torch.randn(2, 5, 3, 4), torch.float32, False), 7, 9, True],
    ),
    "package_input": (
        OPS.package_input,
        lambda **given: [leaves(torch.randn(2, 5, 3, 4), torch.float32, False), [-1, 5, 3, -1], torch.float32],
    ),
    "crp_backward": (
        OPS.crp_backward,
        lambda **given: crp_backward_arguments([], **given),
    ),
    "crp_backward_given_stages": (
        OPS.crp_backward,
        lambda **given: crp_backward_arguments([torch.randn(2, 6, 7, 9), torch.randn(2, 6, 7, 9)], **given),
    ),
    "crp_training": (OPS.crp_training, crp_arguments),
    "fusion_backward": (
        OPS.fusion_backward,
        lambda **given: [*torch.randn(2, 2, 5, 7, 9), *fusion_arguments(**given), [False, True, True] * 3],
    ),
    "fusion_backward_without_activation": (
        OPS.fusion_backward,
        lambda **given: [
            torch.randn(2, 5, 7, 9),
            None,
            *fusion_arguments(activation="none", **given),
            [False, True, True] * 3,
        ],
    ),
}


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("op", OPCHECKS)
def test_opcheck(op, grad):
    function, arguments = OPCHECKS[op]
    torch.library.opcheck(function.default, tuple(arguments(grad=grad and "backward" not in op)))


class Heap(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(f"before_{i}", ctypes.c_size_t) for i in range(7)] + [
        (name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")
    ]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library does not count what is in use")
@pytest.mark.parametrize("op", OPCHECKS)
def test_no_call_leaks(op):
    """A string argument once leaked 48 bytes with every call."""
    function, make = OPCHECKS[op]
    arguments = make(grad=False)
    in_use = ctypes.CDLL(None).mallinfo2
    in_use.restype = Heap

    def growth(calls: int = 50) -> float:
        before = in_use().uordblks
        for _ in range(calls):
            function(*arguments)
        return (in_use().uordblks - before) / calls

    assert min(growth() for _ in range(8)) < 16


SHAPES = [(1, 1, 1, 1), (2, 1, 3, 4), (1, 3, 1, 1), (3, 4, 1, 5), (0, 2, 3, 3), (2, 8, 5, 1)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_fake_strides_are_the_real_ones(shape, layout):
    x = torch.randn(shape).contiguous(memory_format=layout)
    square, other = torch.randn(shape[1], shape[1], 1, 1), torch.randn(1, shape[1], 1, 1)
    calls = [
        (OPS.crp, (x, [square], [], 1)),
        (OPS.fusion, ([x, x], [other, other], [], "relu", True)),
        (OPS.upsample_argmax, (x, 4, 3, False)),
        (OPS.crp_training, (x, [square, square], [], 1)),
        (OPS.crp_backward, (x, x, [], [square], [], 1, [True, True])),
    ]
    for op, arguments in calls:
        real = op(*arguments)
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
            fake = op(*arguments)
        reals, fakes = tensors_of(real), tensors_of(fake)
        for r, f in zip(reals, fakes, strict=True):
            assert (r.shape, r.stride(), r.dtype) == (f.shape, f.stride(), f.dtype)


def test_results_share_no_memory_with_inputs():
    x, weight = torch.rand(1, 3, 4, 4), torch.eye(3).view(3, 3, 1, 1)
    for backend in ("auto", "reference"):
        with lwrn_fast.use_backend(backend):
            lwrn_fast.crp(x, [weight]).zero_()
            lwrn_fast.fusion([x], [weight], activation="none").zero_()
    assert x.min() > 0 or x.count_nonzero() == x.numel()


class TestCompile:
    @pytest.fixture(autouse=True)
    def _fresh(self):
        torch._dynamo.reset()

    @pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
    def test_without_graph_breaks(self, backend, dynamic):
        model = Model()
        compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for size in [(8, 10), (12, 6), (7, 9)]:
            given = inputs(*size)
            expected, labels = model(*given)
            logits, compiled_labels = compiled(*given)
            torch.testing.assert_close(logits, expected)
            assert torch.equal(compiled_labels, labels)
            assert logits.stride() == expected.stride()

    def test_dynamic_shapes_compile_once(self, backend):
        model, counter = Model(), torch._dynamo.testing.CompileCounter()
        compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
        # No size equals a number of channels: torch.compile would take the two for one.
        for size in [(16, 22), (12, 26), (20, 14)]:
            compiled(*inputs(*size))
        assert counter.frame_count == 1

    def test_training(self, backend):
        model = Model()
        given = inputs()
        model(*given)[0].square().sum().backward()
        expected = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        torch.compile(model, fullgraph=True, backend="aot_eager")(*given)[0].square().sum().backward()
        for parameter, grad in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, grad)

    def test_with_inductor(self, native):
        model, given = Model().eval(), inputs()
        with torch.no_grad():
            logits, labels = torch.compile(model, fullgraph=True)(*given)
            expected, expected_labels = model(*given)
        torch.testing.assert_close(logits, expected)
        assert torch.equal(labels, expected_labels)

    def test_the_fall_back_is_said_while_tracing(self):
        model = Model().double()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        given = [x.double() for x in inputs()]
        torch.testing.assert_close(compiled(*given)[0], model(*given)[0])

    def test_another_backend_compiles_again(self):
        counter = torch._dynamo.testing.CompileCounter()
        compiled = torch.compile(Model(), fullgraph=True, backend=counter)
        given = inputs()
        for _ in range(2):
            with lwrn_fast.use_backend("reference"):
                compiled(*given)
            compiled(*given)
        assert counter.frame_count == 2

    def test_use_backend_inside(self, native):
        def function(x, w):
            with lwrn_fast.use_backend("reference"):
                first = lwrn_fast.crp(x, [w])
            return first, lwrn_fast.crp(x, [w])

        x, w = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 1, 1)
        graphs = []

        def keep(graph, _):
            graphs.append(graph.code)
            return graph

        first, second = torch.compile(function, fullgraph=True, backend=keep)(x, w)
        torch.testing.assert_close(first, second)
        assert graphs[0].count("lwrn_fast.crp") == 1

    def test_autocast(self, backend):
        model, given = Model(), inputs()
        with torch.autocast(backend.device, dtype=torch.bfloat16):
            expected = model(*given)[0]
            got = torch.compile(model, fullgraph=True, backend="aot_eager")(*given)[0]
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got, expected)


class TestExport:
    @pytest.mark.parametrize("strict", [False, True], ids=["non_strict", "strict"])
    def test_keeps_the_ops(self, native, strict):
        model, given = Model().eval(), inputs()
        height, width = 2 * torch.export.Dim("h", min=2, max=64), 2 * torch.export.Dim("w", min=2, max=64)
        half = {2: torch.export.Dim("h", min=2, max=64), 3: torch.export.Dim("w", min=2, max=64)}
        program = torch.export.export(model, given, dynamic_shapes=({2: height, 3: width}, half), strict=strict)
        names = [str(node.target) for node in program.graph.nodes]
        assert {"lwrn_fast.fusion.default", "lwrn_fast.crp.default", "lwrn_fast.upsample_argmax.default"} <= set(names)
        for size in [(8, 10), (16, 6)]:
            given = inputs(*size)
            got, expected = program.module()(*given), model(*given)
            torch.testing.assert_close(got[0], expected[0])
            assert torch.equal(got[1], expected[1])

    def test_saves_and_loads(self, tmp_path):
        model, given = Model().eval(), inputs()
        torch.export.save(torch.export.export(model, given), tmp_path / "model.pt2")
        loaded = torch.export.load(tmp_path / "model.pt2").module()
        torch.testing.assert_close(loaded(*given)[0], model(*given)[0])


class TestAutocast:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
    @pytest.mark.parametrize("op", DIFFERENTIABLE)
    def test_runs_in_the_autocast_dtype(self, backend, op, dtype):
        function, fused, _, arguments = DIFFERENTIABLE[op]
        given = arguments()
        expected = function(*leaves(given, dtype, False))
        with torch.autocast(backend.device, dtype=dtype):
            assert torch.equal(function(*given), expected)
            assert fused(*given).dtype == dtype

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
    def test_training_runs_in_the_autocast_dtype(self, dtype):
        given = crp_arguments()
        out, stages = OPS.crp_training(*leaves(given, dtype, False))
        with torch.autocast("cpu", dtype=dtype):
            got, got_stages = OPS.crp_training(*given)
        for ours, expected in zip([got, *got_stages], [out, *stages], strict=True):
            assert torch.equal(ours, expected)

    def test_casts_what_convolutions_return(self, backend):
        conv, block = torch.nn.Conv2d(3, 8, 1), lwrn_fast.CRP(8, 8)
        with torch.autocast(backend.device, dtype=torch.bfloat16):
            assert block(conv(torch.randn(1, 3, 5, 5))).dtype == torch.bfloat16

    def test_gradients_have_the_dtype_of_the_parameters(self, backend):
        block, x = lwrn_fast.CRP(8, 8), torch.randn(1, 8, 5, 5, requires_grad=True)
        with torch.autocast(backend.device, dtype=torch.bfloat16):
            loss = block(x).float().square().sum()
        loss.backward()
        assert {t.grad.dtype for t in [x, *block.parameters()]} == {torch.float32}

    def test_double_stays(self):
        given = crp_arguments(dtype=torch.float64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert lwrn_fast.crp(*given).dtype == torch.float64


class TestFunc:
    """torch.func transforms run on the reference."""

    def test_vmap(self):
        x, w = torch.randn(3, 2, 4, 5, 6), torch.randn(4, 4, 1, 1)
        got = torch.vmap(lambda image: lwrn_fast.crp(image, [w]))(x)
        torch.testing.assert_close(got, torch.stack([reference.crp(image, [w]) for image in x]))

    def test_jvp(self):
        x, w = torch.randn(2, 4, 5, 6), torch.randn(4, 4, 1, 1)
        got = torch.func.jvp(lambda x: lwrn_fast.crp(x, [w]), (x,), (torch.ones_like(x),))
        torch.testing.assert_close(got, torch.func.jvp(lambda x: reference.crp(x, [w]), (x,), (torch.ones_like(x),)))

    def test_forward_mode(self):
        x, w = torch.randn(2, 4, 5, 6), torch.randn(4, 4, 1, 1)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            out = torch.autograd.forward_ad.unpack_dual(lwrn_fast.crp(dual, [w]))
        assert out.tangent is not None

    def test_grad_of_grad(self):
        x, w = torch.randn(1, 2, 4, 4), torch.randn(2, 2, 1, 1)
        got = torch.func.hessian(lambda w: lwrn_fast.crp(x, [w]).square().sum())(w)
        torch.testing.assert_close(got, torch.func.hessian(lambda w: reference.crp(x, [w]).square().sum())(w))


class TestFlops:
    """torch.utils.flop_counter counts the same for every backend."""

    @pytest.mark.parametrize("kept", [None, 0, 1, -1], ids=["all", "first", "second", "last"])
    @pytest.mark.parametrize("op", DIFFERENTIABLE)
    def test_of_training(self, backend, op, kept):
        function, _, plain, arguments = DIFFERENTIABLE[op]
        counts = []
        for run in (function, plain):
            given = arguments(grad=kept is None)
            if kept is not None:
                tensors_of(given)[kept].requires_grad_()
            with FlopCounterMode(display=False) as counter:
                run(*given).sum().backward()
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0

    def test_of_stages_that_are_computed_again(self, native):
        x, weights, biases, groups = crp_arguments()
        grad, needs = torch.randn_like(x), [True] * 7
        _, stages = OPS.crp_training(x, weights, biases, groups)
        counts = []
        for given in (stages, []):
            with FlopCounterMode(display=False) as counter:
                OPS.crp_backward(grad, x, given, weights, biases, groups, needs)
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0

    @pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
    @pytest.mark.parametrize("name", ["rf_lw50", "rf_lw_mbv2"])
    def test_of_a_model(self, name, train):
        model, image = lwrn_fast.models.NETWORKS[name](3).train(train), torch.rand(2, 3, 64, 64)
        counts = []
        for backend in ("reference", "auto", "auto"):  # the first folds
            with lwrn_fast.use_backend(backend), torch.set_grad_enabled(train), FlopCounterMode(display=False) as c:
                out = model(image)
                if train:
                    out.sum().backward()
            counts.append((c.get_total_flops(), c.get_flop_counts().keys() >= {"Global"}))
        assert counts[0] == counts[1] == counts[2]

    @pytest.mark.slow
    @pytest.mark.parametrize("first", ["torch.utils.flop_counter", "lwrn_fast"])
    def test_in_either_order_of_imports(self, first):
        """lwrn_fast does not import the counter, which takes a third of a second."""
        script = f"""
import sys, torch, {first}
assert {first!r} != "lwrn_fast" or "torch.utils.flop_counter" not in sys.modules
import lwrn_fast
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    lwrn_fast.crp(torch.rand(1, 8, 6, 7), [torch.rand(8, 8, 1, 1)])
assert counter.get_total_flops() == 2 * 8 * 8 * 6 * 7, counter.get_total_flops()
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("lwrn_fast")]
"""
        subprocess.run([sys.executable, "-c", script], check=True)


def test_inference_mode(backend):
    with torch.inference_mode():
        model = Model()
        assert model(*inputs())[0].is_inference()


def test_the_native_op_names_what_is_wrong(native):
    with pytest.raises(RuntimeError, match=r"crp: weights\[0\] must be \(4, 4, 1, 1\), got \(4, 3, 1, 1\)"):
        OPS.crp(torch.zeros(1, 4, 2, 2), [torch.zeros(4, 3, 1, 1)], [], 1)
    with pytest.raises(RuntimeError, match="fusion: activation must be 'relu', 'relu6' or 'none', got 'elu'"):
        OPS.fusion([torch.zeros(1, 4, 2, 2)], [torch.zeros(4, 4, 1, 1)], [], "elu", True)
    with pytest.raises(RuntimeError, match="upsample_argmax: size must be at least"):
        OPS.upsample_argmax(torch.zeros(1, 4, 2, 2), 0, 3, True)
