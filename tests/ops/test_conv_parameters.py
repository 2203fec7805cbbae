"""The modules inside a fused block: every change that a user makes to one of them counts in the block's result."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import lwrn_fast
from lwrn_fast.ops import conv_parameters
from support.conv_parameters import (
    CALLED,
    FUSED,
    POSITIONS,
    assert_agrees,
    assert_close,
    crp,
    crp_written_out,
    decoder,
    decoder_written_out,
    fusion_written_out,
    own_forward,
)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("change", CALLED)
def test_is_called(change, position):
    make, name = POSITIONS[position]
    block, inputs, written_out = make()
    block.eval()
    CALLED[change](block, name)
    if change == "weight_is_a_property":  # Conv2d initialised the property's result, not the kernel
        nn.init.normal_(block.get_submodule(name).kernel)
    if change == "lazy":
        block.eval()(*inputs)
    assert_agrees(block, inputs, written_out)
    with lwrn_fast.use_backend("cpu"), torch.no_grad():
        if change == "lazy":  # an ordinary convolution from its first call on
            block(*inputs)
        else:
            with pytest.raises(RuntimeError, match="the backend 'cpu' cannot run this call: "):
                block(*inputs)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("change", FUSED)
def test_is_fused(native, change, position):
    make, name = POSITIONS[position]
    block, inputs, written_out = make()
    block.eval()
    FUSED[change](block, name)
    with lwrn_fast.use_backend("cpu"):
        assert_agrees(block, inputs, written_out)


@pytest.mark.parametrize("position", POSITIONS)
def test_trains_with_a_pruned_weight(position):
    """The weight is computed before each call; a stale one would belong to a graph that is gone."""
    make, name = POSITIONS[position]
    block, inputs, written_out = make()
    prune.l1_unstructured(block.get_submodule(name), "weight", 0.5)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    for _ in range(3):
        twin = copy.deepcopy({key: value.detach() for key, value in block.state_dict().items()})
        block.zero_grad()
        block(*inputs).square().mean().backward()
        got = {key: p.grad.clone() for key, p in block.named_parameters()}
        block.load_state_dict(twin)
        block.zero_grad()
        written_out(block, *inputs).square().mean().backward()
        for key, parameter in block.named_parameters():
            torch.testing.assert_close(got[key], parameter.grad, msg=key)
        optimizer.step()


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("hook", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks_see_their_module(hook, position):
    make, name = POSITIONS[position]
    block, inputs, _ = make()
    seen = []
    getattr(block.get_submodule(name), hook)(lambda *given: seen.append(given))
    block(*inputs).sum().backward()
    assert len(seen) == 1


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_hooks_of_all_modules_see_each(register, position):
    make, name = POSITIONS[position]
    block, inputs, _ = make()
    seen = []
    handle = getattr(nn.modules.module, register)(lambda module, *given: seen.append(module) and None)
    try:
        block(*inputs)
    finally:
        handle.remove()
    assert seen.count(block.get_submodule(name)) == 1


def test_a_hook_of_all_modules_changes_results():
    block, inputs, _ = crp()
    halve = lambda module, args, out: out / 2 if isinstance(module, nn.Conv2d) else None  # noqa: E731
    handle = nn.modules.module.register_module_forward_hook(halve)
    try:
        assert_agrees(block, inputs, crp_written_out)
    finally:
        handle.remove()


@pytest.mark.parametrize("position", POSITIONS)
def test_a_patched_class_counts(monkeypatch, position):
    make, _ = POSITIONS[position]
    block, inputs, written_out = make()
    before = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: 2 * before(self, x))
    assert_agrees(block.eval(), inputs, written_out)


POOLS = {
    "average": lambda: nn.AvgPool2d(5, 1, 2),
    "larger": lambda: nn.MaxPool2d(7, 1, 3),
    "smaller": lambda: nn.MaxPool2d((3, 5), 1, (1, 2)),
    "none": nn.Identity,
    "chain": lambda: nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1)),
}


class TestPool:
    @pytest.mark.parametrize("plain", [False, True], ids=["ours", "plain"])
    @pytest.mark.parametrize("pool", POOLS)
    def test_another_pool_is_called(self, pool, plain):
        block, inputs, _ = crp()
        block.maxpool = POOLS[pool]()
        assert_agrees(block, inputs, crp_written_out)
        model, features, _ = decoder()
        model.plain = plain
        model.crp2.maxpool = POOLS[pool]()
        assert_agrees(model.eval(), features, decoder_written_out)

    @pytest.mark.parametrize("change", [own_forward, lambda pool: pool.register_forward_hook(lambda m, i, o: -o)])
    def test_a_changed_pool_is_called(self, change):
        block, inputs, _ = crp()
        change(block.maxpool)
        assert_agrees(block, inputs, crp_written_out)

    def test_sizes_written_in_another_way_are_fused(self, native):
        block, inputs, _ = crp()
        for pool in (nn.MaxPool2d((5, 5), (1, 1), (2, 2)), nn.MaxPool2d([5, 5], 1, [2, 2], ceil_mode=True)):
            block.maxpool = pool
            with lwrn_fast.use_backend("cpu"):
                assert_agrees(block, inputs, crp_written_out)

    def test_a_changed_attribute_counts(self):
        block, inputs, _ = crp()
        block.maxpool.kernel_size, block.maxpool.padding = 3, 1
        assert_agrees(block, inputs, crp_written_out)


def test_a_spectral_norm_makes_one_step_per_call():
    """Reading a parametrised weight changes it while training: once for each call, fused or not."""
    block, inputs, _ = crp()
    twin = copy.deepcopy(block)
    for each in (block, twin):
        torch.manual_seed(0)
        parametrizations.spectral_norm(each.get_submodule("1_outvar_dimred"))
        each.get_submodule("3_outvar_dimred").register_forward_hook(lambda *_: None)
    torch.testing.assert_close(block(*inputs), crp_written_out(twin, *inputs))
    for key, value in block.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key


def test_grouped_convolutions_are_called_where_no_kernel_has_them():
    for groups in (2, 4):
        block = lwrn_fast.CRP(8, 8, 2)
        for i in (1, 2):
            block.set_submodule(f"{i}_outvar_dimred", nn.Conv2d(8, 8, 1, groups=groups))
        assert_agrees(block, [torch.randn(1, 8, 6, 7)], crp_written_out)
        join = lwrn_fast.Fusion([8, 8], 8)
        for i in (0, 1):
            join.set_submodule(f"convs.{i}", nn.Conv2d(8, 8, 1, groups=groups))
        assert_agrees(join, [torch.randn(1, 8, 6, 7), torch.randn(1, 8, 3, 4)], fusion_written_out)


def test_a_tied_weight_learns_from_both():
    block, inputs, _ = crp()
    block.get_submodule("2_outvar_dimred").weight = block.get_submodule("1_outvar_dimred").weight
    grads = []
    for run in (lambda: block(*inputs), lambda: crp_written_out(block, *inputs)):
        block.zero_grad()
        run().square().sum().backward()
        grads.append([p.grad.clone() for p in block.parameters()])
    for ours, expected in zip(*grads, strict=True):
        assert_close(ours, expected)


@pytest.mark.parametrize("change", ["forward_hook", "own_forward", "parametrised", "nothing"])
def test_in_torch_compile(change):
    torch._dynamo.reset()
    block, inputs, written_out = crp()
    {**CALLED, **FUSED}[change](block, "2_outvar_dimred")
    compiled = torch.compile(block, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), written_out(block, *inputs))


class TestQuestion:
    """`conv_parameters.why_not_plain`, for code that replaces a module."""

    def test_plain(self):
        conv = nn.Conv2d(4, 4, 1)
        for same in (conv, copy.deepcopy(conv), parametrizations.weight_norm(copy.deepcopy(conv))):
            assert conv_parameters.why_not_plain(same) is None
            assert conv_parameters.why_not_1x1(same) is None
        assert conv_parameters.why_not_plain(nn.MaxPool2d(5, 1, 2), nn.MaxPool2d) is None

    @pytest.mark.parametrize("change", [change for change in CALLED if "three" not in change])
    def test_not_plain(self, change):
        owner = nn.Sequential(nn.Conv2d(8, 8, 1))
        CALLED[change](owner, "0")
        assert isinstance(conv_parameters.why_not_plain(owner[0]), str)
        assert isinstance(conv_parameters.why_not_1x1(owner[0]), str)

    @pytest.mark.parametrize(
        "conv",
        [nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, stride=2), nn.Conv2d(4, 4, 1, padding=1)],
        ids=["kernel", "stride", "padding"],
    )
    def test_plain_and_not_1x1(self, conv):
        assert conv_parameters.why_not_plain(conv) is None
        assert "not a 1x1 convolution" in conv_parameters.why_not_1x1(conv)
