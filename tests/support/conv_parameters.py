"""Changes that users make to the 1x1 convolutions of a block, and the blocks written out module by module."""

import types
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import lwrn_fast
from lwrn_fast import models


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
