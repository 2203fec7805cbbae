"""An accelerated model is the module that it was: all uses of a module work, and its errors are its own."""

import copy
import io
import pickle
import random
import threading

import pytest
import torch
from torch import nn

import lwrn_fast
from support.accelerated import Block, Body, maps, pair, same, seeded, warned


@pytest.fixture(autouse=True)
def fresh():
    """Reset compiled code and random numbers."""
    torch._dynamo.reset()
    torch.manual_seed(0)


INVALID = {"7 planes": maps(1, 7, 5, 5), "a vector": maps(4), "None": None, "text": "text", "float64": maps().double()}


@pytest.mark.parametrize("invalid", INVALID.values(), ids=INVALID.keys())
def test_errors_are_the_models_own(invalid, caplog):
    plain, accelerated = pair()
    with pytest.raises(Exception) as expected:  # noqa: PT011
        plain(invalid)
    for module in (accelerated, lwrn_fast.optimize(plain, maps(), how="eager")):
        before = copy.deepcopy(plain).train(module.training)
        for _ in range(2):
            with pytest.raises(expected.type) as error:
                module(invalid)
            assert str(error.value) == str(expected.value)
        torch.testing.assert_close(module(maps()), before(maps()), rtol=1e-4, atol=1e-5)
    assert not warned(caplog)


def announced(**options):
    """Return a class that records its subclasses, and the list of their names."""
    names = []

    class Announced(Block):
        def __init_subclass__(cls, *, name=None, **kwargs):
            if name is None:
                raise TypeError("a name is needed")
            names.append(name)

    class Named(Announced, name="one"):
        pass

    return Named, names


def test_class_that_hears_of_subclasses():
    cls, names = announced()
    module = cls()
    expected = copy.deepcopy(module)(maps())
    lwrn_fast.accelerate(module)
    torch.testing.assert_close(module(maps()), expected)
    assert names == ["one"]
    assert isinstance(module, cls)
    with pytest.raises(TypeError, match="a name is needed"):
        type("Sub", (type(module),), {})


def test_traced_graph():
    """torch.fx writes the forward of a GraphModule into its class when the graph changes."""
    module = torch.fx.symbolic_trace(Block().eval())
    plain = copy.deepcopy(module)
    assert lwrn_fast.accelerate(module).count("crp") == 1
    for change in (lambda graph: None, lambda graph: setattr(graph.find_nodes(op="output")[0], "args", (last(graph),))):
        for one in (module, plain):
            change(one.graph)
            one.recompile()
        same(module(maps()), plain(maps()))
        same(copy.deepcopy(module)(maps()), plain(maps()))
        same(pickle.loads(pickle.dumps(module))(maps()), plain(maps()))  # noqa: S301


def last(graph):
    output = graph.find_nodes(op="output")[0]
    with graph.inserting_before(output):
        return graph.call_function(torch.neg, output.args)


def functional(module, x):
    doubled = {name: value * 2 for name, value in module.named_parameters()}
    yield torch.func.functional_call(module, doubled, (x,))
    yield torch.func.grad(lambda p: torch.func.functional_call(module, p, (x,)).square().sum())(doubled)


def transformed(module, x):
    yield torch.func.vmap(module)(torch.stack([x, -x]))
    yield torch.func.grad(lambda x: module(x).square().sum())(x)
    yield torch.func.jvp(module, (x,), (x.exp(),))
    with torch.autograd.forward_ad.dual_level():
        yield torch.autograd.forward_ad.unpack_dual(module(torch.autograd.forward_ad.make_dual(x, x.exp()))).tangent


def second_derivative(module, x):
    x.requires_grad_()
    (first,) = torch.autograd.grad(module(x).pow(3).sum(), x, create_graph=True)
    first.pow(2).sum().backward()
    yield first.contiguous(), x.grad.contiguous(), module.conv.weight.grad


def saved(module, x):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # our own bytes


def copied(module, x):
    for other in (copy.copy(module), copy.deepcopy(module), pickle.loads(pickle.dumps(module)), saved(module, x)):  # noqa: S301
        yield other(x), isinstance(other, Block)
    other = copy.deepcopy(module)
    other.conv.weight.data.mul_(3)
    yield other(x), module(x)
    mean = torch.optim.swa_utils.AveragedModel(module)
    mean.update_parameters(other)
    mean.update_parameters(other)
    yield mean(x)


def replicated(module, x):
    replica = module._replicate_for_data_parallel()
    replica.conv = copy.deepcopy(module.conv)
    replica.conv.weight.data.mul_(3)
    yield replica(x), module(x)


def traced(module, x):
    module.eval()
    yield torch.jit.trace(module, (x,))(x)
    yield torch.fx.symbolic_trace(module)(x)
    yield torch.export.export(module, (x,)).module()(x)
    yield torch.compile(module, backend="eager", fullgraph=True)(x)


def alternated(module, x):
    for i in range(3):
        with torch.no_grad():
            yield module(x)
        with torch.inference_mode():
            yield module(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=i == 1):
            yield module(x)
        module.zero_grad()
        module(x).square().sum().backward()
        yield module.conv.weight.grad


def in_other_dtypes(module, x):
    for t in (torch.float64, torch.bfloat16, torch.float32):
        yield module.to(t)(x.to(t))
    with torch.device("meta"):
        yield module(x)
    yield module.to("meta")(x.to("meta")).shape


def counted(module, x):
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        yield module(x)
    yield counter.get_total_flops()


def in_all_layouts(module, x):
    for view in (x[:, :, ::2], x[:1].expand(3, -1, -1, -1), x.permute(0, 1, 3, 2), x[..., 1:], x[0]):
        yield module(view)
    yield module(x.contiguous(memory_format=torch.channels_last))
    yield module(x[:0]).shape


def checkpointed(module, x):
    yield torch.utils.checkpoint.checkpoint(module, x.requires_grad_(), use_reentrant=False)


USES = [functional, transformed, second_derivative, copied, replicated, traced, alternated, in_other_dtypes, counted,
        in_all_layouts, checkpointed]  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_uses(use):
    """Common uses of a module work after its first call."""
    cls = Block if use in (copied, replicated, traced, counted, checkpointed) else Body
    plain = cls()
    accelerated = copy.deepcopy(plain)
    assert lwrn_fast.accelerate(accelerated)
    results = []
    for module in (plain, accelerated):
        module(maps())
        results.append(seeded(lambda module=module: list(use(module, maps()))))
    same(results[1], results[0])


def test_threads():
    """Several models of a class, some deleted, run in threads that take them in any order and mode."""
    pairs, failed = [pair() for _ in range(4)], []
    for plain, accelerated in pairs:
        nn.init.normal_(plain.conv.weight)
        accelerated.load_state_dict(plain.state_dict())
        plain.eval(), accelerated.eval()
    inputs = [maps(1, 8, 3 + i, 5) for i in range(5)]

    def work(seed):
        chosen = random.Random(seed)
        for _ in range(30):
            plain, accelerated = chosen.choice(pairs)
            x = chosen.choice(inputs)
            with torch.set_grad_enabled(chosen.random() < 0.5):
                if not torch.allclose(accelerated(x), plain(x), rtol=1e-4, atol=1e-5):
                    failed.append(seed)
            if chosen.random() < 0.1:
                lwrn_fast.accelerate(copy.deepcopy(plain))(x)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_captures_are_few():
    """Changing numbers and sizes are no reason to capture at each call."""
    counters = torch._dynamo.utils.counters
    _, accelerated = pair(lambda self, x, by: self.body(x) * self.gain * by)
    counters.clear()
    for i in range(40):
        accelerated.gain = i * 0.5
        accelerated(maps(1, 8, 3 + i % 9, 4 + i // 9), i * 0.37)
    assert counters["stats"]["unique_graphs"] <= 6
