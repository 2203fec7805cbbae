"""The modules inside a fused block: every change that a user makes to one of them counts in the block's result."""

import copy
import types
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import lwrn_fast
from lwrn_fast import models
from lwrn_fast.models.networks import MobileNetV2Network, ResNetNetwork
from lwrn_fast.ops import conv_parameters


class Halved(nn.Conv2d):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


class Computed(nn.Conv2d):
    """The weight is a property."""

    @property
    def weight(self) -> Tensor:
        return self.kernel.tanh()

    @weight.setter
    def weight(self, value: Tensor | None) -> None:
        if value is not None:
            self.kernel = value

    def register_parameter(self, name: str, parameter: nn.Parameter | None) -> None:
        super().register_parameter("kernel" if name == "weight" else name, parameter)


class Adapter(nn.Module):
    """A low-rank adapter around a layer, as peft wraps one; merged, its base layer holds the sum."""

    def __init__(self, base: nn.Conv2d, merged: bool = False) -> None:
        super().__init__()
        self.base_layer, self.merged = base, merged
        self.down = nn.Conv2d(base.in_channels, 2, 1, bias=False)
        self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)
        if merged:
            base.weight.data += (self.up.weight.flatten(1) @ self.down.weight.flatten(1))[:, :, None, None]

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) if self.merged else self.base_layer(x) + self.up(self.down(x))


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def replaced(make: Callable[[nn.Conv2d], nn.Module]) -> Callable[[nn.Module, str], None]:
    def change(owner: nn.Module, name: str) -> None:
        owner.set_submodule(name, make(owner.get_submodule(name)))

    return change


def changed(change: Callable[[nn.Conv2d], object]) -> Callable[[nn.Module, str], None]:
    return lambda owner, name: change(owner.get_submodule(name)) and None


def another(layer: type[nn.Conv2d], **options) -> Callable[[nn.Conv2d], nn.Module]:
    return lambda conv: layer(conv.in_channels, conv.out_channels, **{"kernel_size": 1, "bias": False, **options})


def own_forward(conv: nn.Module) -> None:
    """Set a forward as accelerate's and diffusers' offloading do."""
    before = conv.forward
    conv.forward = lambda x: 3 * before(x)


def own_conv_forward(conv: nn.Conv2d) -> None:
    """Set a _conv_forward as scripts for seamless textures do."""
    conv._conv_forward = types.MethodType(lambda self, x, weight, bias: F.conv2d(x, -weight, bias), conv)


def own_call(conv: nn.Conv2d) -> None:
    before = conv._call_impl
    conv._call_impl = lambda *args: before(*args) + 1


def plain_tensor(conv: nn.Conv2d) -> None:
    """Make the weight a plain tensor, as in replicas of DataParallel."""
    del conv.weight
    conv.weight = torch.randn(8, 8, 1, 1)


def compiled_later(conv: nn.Conv2d) -> None:
    conv.compile(backend="eager")
    inner = conv._compiled_call_impl
    conv._compiled_call_impl = lambda *args: inner(*args) - 1


# Changes of a 1x1 convolution after which a block must call the module itself.
CALLED = {
    "forward_hook": changed(lambda conv: conv.register_forward_hook(lambda m, i, o: 0 * o)),
    "forward_hook_with_kwargs": changed(lambda c: c.register_forward_hook(lambda m, i, k, o: o + 1, with_kwargs=True)),
    "forward_pre_hook": changed(lambda conv: conv.register_forward_pre_hook(lambda m, i: (i[0] + 1,))),
    "own_forward": changed(own_forward),
    "own_conv_forward": changed(own_conv_forward),
    "own_call": changed(own_call),
    "compiled": changed(compiled_later),
    "subclass": replaced(another(Halved)),
    "weight_is_a_property": replaced(another(Computed)),
    "adapter": replaced(Adapter),
    "adapter_merged": replaced(lambda conv: Adapter(conv, merged=True)),
    "with_normalisation": replaced(lambda conv: nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))),
    "lazy": replaced(lambda conv: nn.LazyConv2d(conv.out_channels, 1)),
    "scripted": replaced(lambda conv: torch.jit.script(nn.Sequential(conv, nn.Tanh()))),
    "transposed": replaced(another(nn.ConvTranspose2d)),
    "three_by_three": replaced(another(nn.Conv2d, kernel_size=3, padding=1)),
    "three_by_three_circular": replaced(another(nn.Conv2d, kernel_size=3, padding="same", padding_mode="circular")),
    "pruned": changed(lambda conv: prune.l1_unstructured(conv, "weight", 0.5)),
    "weight_norm_of_old": changed(torch.nn.utils.weight_norm),
    "spectral_norm_of_old": changed(lambda conv: torch.nn.utils.spectral_norm(conv).eval()),
}
# Changes that leave a 1x1 convolution, whose weight a fused op reads.
FUSED = {
    "nothing": changed(lambda conv: None),
    "bias": replaced(another(nn.Conv2d, bias=True)),
    "weight_norm": changed(parametrizations.weight_norm),
    "spectral_norm": changed(lambda conv: parametrizations.spectral_norm(conv).eval()),
    "parametrised": changed(lambda conv: nn.utils.parametrize.register_parametrization(conv, "weight", Scaled())),
    "pruned_for_good": changed(lambda conv: prune.remove(prune.l1_unstructured(conv, "weight", 0.5), "weight")),
    "plain_tensor": changed(plain_tensor),
    "padding_same": replaced(another(nn.Conv2d, padding="same")),
}


def crp_written_out(block: lwrn_fast.CRP, x: Tensor) -> Tensor:
    out = stage = x
    for i in range(1, block.n_stages + 1):
        stage = block.get_submodule(f"{i}_outvar_dimred")(block.maxpool(stage))
        out = out + stage
    return out


def fusion_written_out(block: lwrn_fast.Fusion, *maps: Tensor) -> Tensor:
    x, *others = [conv(x) for conv, x in zip(block.convs, maps, strict=True)]
    for other in others:
        x = x + F.interpolate(other, x.shape[2:], mode="bilinear", align_corners=True)
    return x.relu()


def decoder_written_out(model: nn.Module, features: list[Tensor]) -> Tensor:
    """Run any of the decoders here, module by module."""
    remaining, deeper = list(features), None
    for level in model.levels:
        maps = []
        for chain in level.laterals:
            x = model.get_submodule(chain[0])(remaining.pop())
            if level.adapt is not None:
                x = model.get_submodule(level.adapt)(x)
            for name in chain[1:]:
                x = model.get_submodule(name)(x)
            maps.append(x)
        if deeper is not None:
            maps.append(model.get_submodule(level.deeper)(deeper))
        x = maps[0]
        for other in maps[1:]:
            x = x + F.interpolate(other, x.shape[2:], mode="bilinear", align_corners=True)
        deeper = F.relu6(x) if model.activation == "relu6" else x.relu()
        if level.crp is not None:
            block = model.get_submodule(level.crp)
            deeper = crp_written_out(block[0] if isinstance(block, nn.Sequential) else block, deeper)
        if level.refine is not None:
            deeper = model.get_submodule(level.refine)(deeper)
    return model.get_submodule(model.head)(deeper)


def crp() -> tuple:
    return lwrn_fast.CRP(8, 8, 3), [torch.randn(2, 8, 9, 10)], crp_written_out


def fusion() -> tuple:
    return lwrn_fast.Fusion([8, 8], 8), [torch.randn(2, 8, 9, 10), torch.randn(2, 8, 5, 5)], fusion_written_out


def decoder(**options) -> tuple:
    features = [torch.randn(2, 8, 12, 10), torch.randn(2, 8, 6, 5)]
    return models.Decoder([8, 8], 3, planes=8, n_stages=2, **options), [features], decoder_written_out


# A block, the child that is changed, and the block written out.
POSITIONS = {
    "crp_first": (crp, "1_outvar_dimred"),
    "crp_last": (crp, "3_outvar_dimred"),
    "fusion_first": (fusion, "convs.0"),
    "fusion_last": (fusion, "convs.1"),
    "decoder_lateral": (decoder, "lateral1"),
    "decoder_deepest": (decoder, "lateral2"),
    "decoder_deeper": (decoder, "deeper2"),
    "decoder_crp": (decoder, "crp1.2_outvar_dimred"),
    "decoder_with_units": (lambda: decoder(rcu=True), "joint1"),
}


def assert_agrees(block: nn.Module, inputs: list, written_out: Callable[..., Tensor]) -> None:
    """Compare up to the roundings of float32, which pass through several convolutions."""
    with torch.no_grad():
        expected = written_out(block, *inputs)
        assert_close(block(*inputs), expected)
    assert_close(block(*inputs).detach(), expected)


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).detach().abs().max() / expected.detach().abs().max()) < 1e-5


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


@pytest.fixture(scope="module")
def tiny_models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    tiny = {
        "rf_lw14": ResNetNetwork("rf_lw14", (1, 1, 1, 1), 5, torch.channels_last),
        "rf_lw14_rcu": ResNetNetwork("rf_lw14", (1, 1, 1, 1), 5, torch.channels_last, rcu=True),
        "rf_lw_mbv2": MobileNetV2Network("rf_lw_mbv2", 5, torch.channels_last),
    }
    for model in tiny.values():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return tiny


IN_MODELS = [
    ("rf_lw14", "p_ims1d2_outl1_dimred"),
    ("rf_lw14", "p_ims1d2_outl3_dimred"),
    ("rf_lw14", "adapt_stage3_b2_joint_varout_dimred"),
    ("rf_lw14", "mflow_conv_g2_b3_joint_varout_dimred"),
    ("rf_lw14", "mflow_conv_g4_pool.0.2_outvar_dimred"),
    ("rf_lw14_rcu", "adapt_stage2_b2_joint_varout_dimred"),
    ("rf_lw_mbv2", "conv7"),
    ("rf_lw_mbv2", "conv_adapt3"),
    ("rf_lw_mbv2", "crp1.0.4_outvar_dimred"),
]


@pytest.mark.parametrize("mode", ["eval", "train", "plain", "inference"])
@pytest.mark.parametrize(("which", "name"), IN_MODELS)
@pytest.mark.parametrize("change", ["forward_hook", "own_forward", "adapter", "pruned", "bias", "weight_norm"])
def test_in_the_models(tiny_models, change, which, name, mode):
    model = copy.deepcopy(tiny_models[which]).eval()
    model.dropout = 0.0
    image = torch.rand(1, 3, 40, 48)
    with torch.no_grad():
        model(image)  # the folded weights are in the cache now
    {**CALLED, **FUSED}[change](model, name)
    model.train(mode == "train")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    if mode == "plain":
        model.memory_format = torch.contiguous_format
    with torch.inference_mode(mode == "inference"), torch.set_grad_enabled(mode == "train"):
        got = model(image)
        expected = decoder_written_out(model, model.features(image.contiguous(memory_format=model.memory_format)))
    assert_close(got, expected)
    assert got.is_contiguous(memory_format=model.memory_format)


@pytest.mark.parametrize("plain", [False, True], ids=["ours", "plain"])
@pytest.mark.parametrize("where", ["mflow_conv_g3_pool", "mflow_conv_g3_pool.0"])
def test_a_replaced_or_hooked_block_is_called(tiny_models, where, plain):
    model = copy.deepcopy(tiny_models["rf_lw14"]).eval()
    model.memory_format = torch.contiguous_format if plain else torch.channels_last
    image, seen = torch.rand(1, 3, 32, 32), []
    with torch.no_grad():
        model.get_submodule(where).register_forward_hook(lambda m, i, o: seen.append(o))
        before = model(image)
        assert len(seen) == 1
        model.set_submodule(where, nn.Identity())
        assert not torch.equal(model(image), before)


def test_the_original_refinenet_calls_its_modules():
    model = models.rf50(3, variant="single").eval()
    image, seen = torch.rand(1, 3, 32, 32), []
    for name in ("mflow_conv_g1_pool", "mflow_conv_g1_pool.0", "mflow_conv_g1_pool.0.2_outvar_dimred"):
        model.get_submodule(name).register_forward_hook(lambda m, i, o: seen.append(m))
    with torch.no_grad():
        for memory_format in (torch.channels_last, torch.contiguous_format):
            model.memory_format = memory_format
            model(image)
    assert len(seen) == 6


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
