"""Gradients of crp and fusion on every backend."""

import subprocess
import sys

import pytest
import torch

import lwrn_fast
from lwrn_fast import ops, reference
from support.arguments import DIFFERENTIABLE, OPS, leaves, refilled, tensors_of
from support.comparing import LAYOUTS, assert_as_exact, in_double, in_layout, name


def quarters(item):
    """Return multiples of 1/4, of which every sum in crp is exact: these tests see only which values are summed."""
    if isinstance(item, list):
        return [quarters(i) for i in item]
    return (item * 4).round() / 4 if isinstance(item, torch.Tensor) else item


def factors(shape):
    return quarters(torch.randn(shape))


# Gradients of the result: of any strides, independent of the result
GRADIENTS = {
    "random": lambda out: (out * factors(out.shape)).sum(),
    "expanded": lambda out: out.sum(),
    "sliced": lambda out: (out * factors(out.shape))[:, :, ::2, 1:].sum(),
    "one_pixel": lambda out: out[0, 1, 2, 3],
    "transposed": lambda out: (out.transpose(1, 3) * factors(out.transpose(1, 3).shape)).sum(),
    "one_image": lambda out: out[1].sum(),
}

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.in_turn("loss")
@pytest.mark.parametrize("loss", GRADIENTS)
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_are_those_of_eager(backend, op, loss):
    function, _, plain, arguments = DIFFERENTIABLE[op]
    given = leaves(in_layout(quarters(arguments()), torch.channels_last), torch.float32, True)
    torch.manual_seed(1)
    got = torch.autograd.grad(GRADIENTS[loss](function(*given)), tensors_of(given))
    torch.manual_seed(1)
    expected = torch.autograd.grad(GRADIENTS[loss](plain(*given)), tensors_of(given))
    for ours, eager in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, eager)


@pytest.mark.in_turn("dtype")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name)
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_in_sixteen_bits(backend, op, dtype):
    function, _, plain, arguments = DIFFERENTIABLE[op]
    given = arguments(dtype=dtype, grad=True)
    exact_given = leaves(in_double(given), torch.float64, True)
    got = torch.autograd.grad(function(*given).sum(), tensors_of(given))
    eager = torch.autograd.grad(plain(*given).sum(), tensors_of(given))
    exact = torch.autograd.grad(plain(*exact_given).sum(), tensors_of(exact_given))
    for ours, eagers, true in zip(got, eager, exact, strict=True):
        assert ours.dtype == dtype
        assert_as_exact(ours, true, float((eagers.double() - true).abs().max()))


@pytest.mark.in_turn("layout")
@pytest.mark.parametrize("op", DIFFERENTIABLE)
@pytest.mark.parametrize("layout", ["sliced_channels", "expanded_rows", "transposed_image"])
def test_of_inputs_in_any_layout(backend, op, layout):
    function, _, plain, arguments = DIFFERENTIABLE[op]
    first, *rest = quarters(arguments())
    is_list = isinstance(first, list)
    base = [t.detach() for t in tensors_of([first])]
    grads = []
    for run in (function, plain):
        views = [LAYOUTS[layout](t).detach().requires_grad_() for t in base]
        grads.append(torch.autograd.grad(run(views if is_list else views[0], *rest).sum(), views))
    for ours, eager in zip(*grads, strict=True):
        torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_only_what_is_needed(backend, op):
    function, _, plain, arguments = DIFFERENTIABLE[op]
    for kept in range(len(tensors_of(arguments()))):
        given = arguments()
        tensors_of(given)[kept].requires_grad_()
        function(*given).sum().backward()
        grads = [tensor.grad for tensor in tensors_of(given)]
        assert [grad is not None for grad in grads] == [i == kept for i in range(len(grads))]
        expected = torch.autograd.grad(plain(*given).sum(), tensors_of(given)[kept])
        torch.testing.assert_close(grads[kept], *expected)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_gradcheck_in_double(op):
    function, _, _, arguments = DIFFERENTIABLE[op]
    given = arguments(dtype=torch.float64, grad=True)
    flat = tensors_of(given)
    assert torch.autograd.gradcheck(lambda *tensors: function(*refilled(given, tensors)), flat, fast_mode=True)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_gradcheck_of_the_backward_op(op):
    """Check the backward op in double, around the forward of the reference."""
    _, _, plain, arguments = DIFFERENTIABLE[op]

    def backward(grad, out, first, *others):
        if op.startswith("crp"):  # the op's kernel has no double
            return ops.crp.gradients(grad, first, [], *others)
        return ops.fusion.gradients(grad, out, first, *others)

    class Recomputed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *flat):
            out = plain(*refilled(given, flat))
            ctx.save_for_backward(out, *flat)
            return out

        @staticmethod
        def backward(ctx, grad):
            out, *flat = ctx.saved_tensors
            return tuple(backward(grad, out, *refilled(given, flat), [True] * len(flat)))

    given = arguments(dtype=torch.float64, grad=True)
    assert torch.autograd.gradcheck(Recomputed.apply, tensors_of(given), fast_mode=True)


class TestSecondDerivatives:
    """Second derivatives of the fused ops, by the reference's first ones."""

    @pytest.mark.parametrize("op", DIFFERENTIABLE)
    def test_are_those_of_eager(self, backend, op):
        """Compare them in every tensor, of one and of all gradients; and third ones."""
        function, _, plain, arguments = DIFFERENTIABLE[op]
        given = leaves(in_layout(arguments(), torch.channels_last), torch.float64, True)
        exact = derivatives(plain, given)
        eager = derivatives(plain, leaves(given, torch.float32, True))
        got = derivatives(function, leaves(given, torch.float32, True))
        for ours, theirs, true in zip(got, eager, exact, strict=True):
            scale = float(true.abs().max()) or 1.0
            error = float((theirs.double() - true).abs().max())
            assert float((ours.double() - true).abs().max()) <= 2 * error + 1e-5 * scale

    @pytest.mark.parametrize("op", DIFFERENTIABLE)
    def test_gradgradcheck_in_double(self, op):
        function, _, _, arguments = DIFFERENTIABLE[op]
        given = arguments(dtype=torch.float64, grad=True)
        run = lambda *tensors: function(*refilled(given, tensors))  # noqa: E731
        assert torch.autograd.gradgradcheck(run, tensors_of(given), fast_mode=True)

    @pytest.mark.parametrize("vectorize", [False, True])
    def test_hessians(self, backend, vectorize):
        x = torch.randn(1, 3, 4, 5)
        weights = quarters([torch.randn(3, 3, 1, 1) for _ in range(2)])
        functional = torch.autograd.functional
        loss = lambda run: lambda v: run(v, weights).square().sum()  # noqa: E731
        got = functional.hessian(loss(lwrn_fast.crp), x, vectorize=vectorize)
        torch.testing.assert_close(got, functional.hessian(loss(reference.crp), x), rtol=1e-4, atol=1e-4)
        got = functional.hvp(loss(lwrn_fast.crp), x, torch.ones_like(x))[1]
        expected = functional.hvp(loss(reference.crp), x, torch.ones_like(x))[1]
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    def test_a_gradient_penalty_trains_a_block(self, backend):
        block, x = lwrn_fast.CRP(8, 8, 2), torch.randn(1, 8, 6, 7, requires_grad=True)
        (grad,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
        (grad.norm() - 1).square().backward()
        assert all(p.grad.abs().sum() > 0 for p in block.parameters())


def derivatives(function, given) -> list[torch.Tensor]:
    flat = tensors_of(given)
    (grad,) = torch.autograd.grad(function(*given).pow(3).sum(), flat[:1], create_graph=True)
    alone = torch.autograd.grad(grad.square().mean(), flat, retain_graph=True, allow_unused=True)
    grads = torch.autograd.grad(function(*given).pow(3).sum(), flat, create_graph=True)
    penalty = sum(g.square().mean() for g in grads)
    second = torch.autograd.grad(penalty, flat, create_graph=True)
    third = torch.autograd.grad(sum(g.square().mean() for g in second), flat, allow_unused=True)
    return [g for g in (*alone, *second, *third) if g is not None]


class TestBatchedGradients:
    @pytest.mark.parametrize("op", DIFFERENTIABLE)
    def test_are_those_one_by_one(self, backend, op):
        function, _, _, arguments = DIFFERENTIABLE[op]
        given = leaves(quarters(arguments()), torch.float32, True)
        flat, out = tensors_of(given), function(*given)
        grads = quarters(torch.randn(4, *out.shape))
        each = [torch.autograd.grad(out, flat, g, retain_graph=True) for g in grads]
        expected = [torch.stack(one) for one in zip(*each, strict=True)]
        got = torch.autograd.grad(out, flat, grads, retain_graph=True, is_grads_batched=True)
        torch.testing.assert_close(list(got), expected)
        got = torch.vmap(lambda g: torch.autograd.grad(out, flat, g, retain_graph=True))(grads)
        torch.testing.assert_close(list(got), expected)

    def test_vectorised_jacobians(self, backend):
        x, weight = torch.randn(1, 3, 4, 5), torch.randn(3, 3, 1, 1)
        run = lambda v: lwrn_fast.fusion([lwrn_fast.crp(v, [weight])], [weight]).mean((2, 3))  # noqa: E731
        expected = torch.autograd.functional.jacobian(run, x)
        torch.testing.assert_close(torch.autograd.functional.jacobian(run, x, vectorize=True), expected)
        for transform in (torch.func.jacrev, torch.func.jacfwd) if backend.name in ("reference", "auto") else ():
            torch.testing.assert_close(transform(run)(x), expected)

    def test_the_ops_under_vmap(self):
        """Call them as a captured graph does, along any dimension, with weights batched or not."""
        x, w = torch.randn(3, 2, 4, 6, 7), torch.randn(3, 4, 4, 1, 1)
        cases = [
            (lambda x, w: OPS.crp(x, [w, w], [], 1), (0, 0), (x, w)),
            (lambda x, w: OPS.crp(x, [w], [], 1), (1, None), (x.movedim(0, 1), w[0])),
            (lambda x, w: OPS.crp_training(x, [w, w], [], 1)[1][0], (0, 0), (x, w)),
            (lambda x, w: OPS.fusion([x, x[:, :, :3]], [w, w], [], "relu", True), (0, 0), (x, w)),
            (lambda x, w: OPS.upsample_argmax(x, 9, 11, True) + w.sum().mul(0).byte(), (0, None), (x, w[0])),
        ]
        for function, in_dims, arguments in cases:
            got = torch.vmap(function, in_dims)(*arguments)
            for i, result in enumerate(got):
                one = [a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims, strict=True)]
                torch.testing.assert_close(result, function(*one))


def contiguous(parameter: torch.nn.Parameter) -> torch.Tensor:
    return parameter.detach().clone(memory_format=torch.contiguous_format)


def channels_last(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Return it in channels-last strides, although a 1x1 weight counts as channels-last in others too."""
    out, inner = parameter.shape[:2]
    return contiguous(parameter).as_strided((out, inner, 1, 1), (inner, 1, inner, inner))


class TestStrides:
    """Gradients have their parameters' strides, even where those carry no meaning: DistributedDataParallel compares."""

    BLOCKS = {
        "crp": (lambda: lwrn_fast.CRP(8, 8, bias=True), [(2, 8, 6, 7)]),
        "crp_depthwise": (lambda: lwrn_fast.CRP(8, 8, groups=True), [(2, 8, 6, 7)]),
        "crp_of_one_channel": (lambda: lwrn_fast.CRP(1, 1), [(2, 1, 6, 7)]),
        "fusion": (lambda: lwrn_fast.Fusion([8, 4, 1], 5), [(2, 8, 6, 7), (2, 4, 3, 4), (2, 1, 6, 7)]),
        "fusion_to_one": (lambda: lwrn_fast.Fusion([8, 4], 1), [(2, 8, 6, 7), (2, 4, 3, 4)]),
    }

    @pytest.mark.kernels_only
    @pytest.mark.parametrize("layout", [contiguous, channels_last])
    @pytest.mark.parametrize("name", BLOCKS)
    def test_are_those_of_the_parameters(self, backend, name, layout):
        block, shapes = self.BLOCKS[name][0](), self.BLOCKS[name][1]
        for parameter in block.parameters():
            if parameter.dim() == 4:
                parameter.data = layout(parameter)
        block(*[torch.randn(shape) for shape in shapes]).square().sum().backward()
        for parameter in block.parameters():
            assert parameter.grad.stride() == parameter.stride()

    @pytest.mark.slow
    def test_distributed_training_does_not_warn(self, native, tmp_path):
        script = f"""
import sys, warnings
import torch, lwrn_fast
from torch import distributed, nn
warnings.filterwarnings("error", message=".*strides.*")
torch.set_warn_always(True)
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=rank, world_size=2)
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fusion, self.crp = lwrn_fast.Fusion([8, 4], 8), lwrn_fast.CRP(8, 8)
        self.decoder = lwrn_fast.models.Decoder([8, 8], 3, planes=8)
    def forward(self, fine, coarse):
        x = self.crp(self.fusion(fine, coarse))
        return self.decoder([x, x[:, :, ::2, ::2]])
for layout in (torch.contiguous_format, torch.channels_last):
    parallel = nn.parallel.DistributedDataParallel(Model().to(memory_format=layout))
    for _ in range(3):
        parallel(torch.rand(2, 8, 6, 8), torch.rand(2, 4, 3, 4)).square().mean().backward()
    del parallel
distributed.destroy_process_group()
"""
        ranks = [subprocess.Popen([sys.executable, "-c", script, str(rank)]) for rank in range(2)]
        assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]


def test_the_first_maximum_gets_it(backend):
    x = torch.zeros(1, 1, 7, 7, requires_grad=True)
    lwrn_fast.crp(x, [torch.ones(1, 1, 1, 1)])[0, 0, 3, 3].backward()
    assert x.grad.nonzero().tolist() == [[0, 0, 1, 1], [0, 0, 3, 3]]


def test_the_same_tensor_twice(backend):
    x, w = torch.randn(1, 4, 5, 5, requires_grad=True), torch.randn(3, 4, 1, 1, requires_grad=True)
    got = torch.autograd.grad(lwrn_fast.fusion([x, x], [w, w]).sum(), [x, w])
    expected = torch.autograd.grad(reference.fusion([x, x], [w, w]).sum(), [x, w])
    torch.testing.assert_close(got, expected)
