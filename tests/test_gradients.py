"""Gradients of crp and fusion on every backend."""

import pytest
import torch

import lwrn_fast
from arguments import DIFFERENTIABLE, leaves, refilled, tensors_of
from comparing import LAYOUTS, assert_as_exact, in_double, in_layout, name
from lwrn_fast import gradients, reference


def quarters(item):
    """Multiples of 1/4, of which every sum in crp is exact: all that these tests see is which values are summed."""
    if isinstance(item, list):
        return [quarters(i) for i in item]
    return (item * 4).round() / 4 if isinstance(item, torch.Tensor) else item


def factors(shape):
    return quarters(torch.randn(shape))


# what comes back from the result: gradients of any strides, that depend on no result
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
    """The backward op in double, around the forward of the reference."""
    _, _, plain, arguments = DIFFERENTIABLE[op]

    def backward(grad, out, first, *others):
        if op.startswith("crp"):  # the op's kernel has no double
            return gradients.crp(grad, first, [], *others)
        return gradients.fusion(grad, out, first, *others)

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


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_second_derivatives_are_refused_by_the_fused_op(op):
    _, fused, _, arguments = DIFFERENTIABLE[op]
    given = arguments(grad=True)
    (grad,) = torch.autograd.grad(fused(*given).square().sum(), tensors_of(given)[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available from the fused op; compute them with"):
        grad.sum().backward()


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_second_derivatives_with_the_reference(op):
    function, _, _, arguments = DIFFERENTIABLE[op]
    given = arguments(grad=True)
    with lwrn_fast.use_backend("reference"):
        (grad,) = torch.autograd.grad(function(*given).square().sum(), tensors_of(given)[:1], create_graph=True)
        grad.square().sum().backward()


def test_the_first_maximum_gets_it(backend):
    x = torch.zeros(1, 1, 7, 7, requires_grad=True)
    lwrn_fast.crp(x, [torch.ones(1, 1, 1, 1)])[0, 0, 3, 3].backward()
    assert x.grad.nonzero().tolist() == [[0, 0, 1, 1], [0, 0, 3, 3]]


def test_the_same_tensor_twice(backend):
    x, w = torch.randn(1, 4, 5, 5, requires_grad=True), torch.randn(3, 4, 1, 1, requires_grad=True)
    got = torch.autograd.grad(lwrn_fast.fusion([x, x], [w, w]).sum(), [x, w])
    expected = torch.autograd.grad(reference.fusion([x, x], [w, w]).sum(), [x, w])
    torch.testing.assert_close(got, expected)
