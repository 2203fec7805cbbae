"""The published networks against their golden outputs, their names and sizes, and the decoder for other encoders."""

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import lwrn_fast
from lwrn_fast import models
from lwrn_fast.models.folding import FoldCache, fold
from lwrn_fast.models.networks import ResNetNetwork
from support.shared_files import golden_weights, shared

PARAMETERS = {
    "rf_lw50": 27_357_525,
    "rf_lw101": 46_349_653,
    "rf_lw152": 61_993_301,
    "rf_lw_mbv2": 3_284_565,
    "rf_lw_nasnet_mobile": 6_010_919,
    "rf50": 99_060_309,
    "rf101": 118_052_437,
    "rf152": 133_696_085,
}


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())


def random_network(name: str, **options: object) -> nn.Module:
    return randomised(models.NETWORKS[name](**options))


def randomised(model: nn.Module) -> nn.Module:
    """In eval mode, with weights that keep activations at their size."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return model.eval()


def residual_units(x: torch.Tensor, module: nn.Module, count: int) -> torch.Tensor:
    """Light-weight residual units written out."""
    for i in range(1, count + 1):
        reduce, conv, expand = (getattr(module, f"{i}_{step}") for step in ("reduce", "conv", "expand"))
        x = x + expand(conv(reduce(x.relu()).relu()).relu())
    return x


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """The published wiring on one block per stage, for what does not depend on how many there are."""
    torch.manual_seed(0)
    return randomised(ResNetNetwork("rf_lw14", (1, 1, 1, 1), 5, torch.channels_last))


@pytest.fixture(scope="module")
def mobilenet() -> nn.Module:
    torch.manual_seed(0)
    return random_network("rf_lw_mbv2", num_classes=5)


class TestPublished:
    @pytest.mark.parametrize("name", PARAMETERS)
    def test_parameter_count(self, name):
        with torch.device("meta"):
            model = models.NETWORKS[name](num_classes=21)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == PARAMETERS[name]

    @pytest.mark.parametrize("name", ["rf_lw50", "rf_lw101", "rf_lw152", "rf_lw_mbv2", "rf101"])
    def test_names_shapes_and_order(self, name):
        published = json.loads(shared("golden/state_dicts.json").read_text())[name]
        with torch.device("meta"):
            state = models.NETWORKS[name](num_classes=21).state_dict()
        assert list(state) == list(published)
        assert {key: list(value.shape) for key, value in state.items()} == published

    @pytest.mark.in_turn("plain")
    @pytest.mark.parametrize("plain", [False, True], ids=["ours", "plain"])
    @pytest.mark.parametrize("name", ["rf_lw50", "rf_lw_mbv2"])
    def test_golden_output(self, name, plain, backend):
        golden, weights = np.load(shared(f"golden/{name}_voc21.npz")), golden_weights()
        model = weights.fill(models.NETWORKS[name](num_classes=21)).eval()
        if plain:
            model.memory_format = torch.contiguous_format
        image = torch.from_numpy(weights.image(tuple(golden["input_shape"]), int(golden["input_seed"])))
        with torch.no_grad():
            logits = model(image)
        assert relative_error(logits, torch.from_numpy(golden["output"])) < 1e-4

    @pytest.mark.parametrize("height_width", [(1, 1), (33, 65), (62, 47)], ids=str)
    def test_any_size_gives_a_quarter(self, mobilenet, height_width):
        height, width = height_width
        with torch.no_grad():
            logits = mobilenet(torch.rand(2, 3, height, width))
        assert logits.shape == (2, 5, -(-height // 4), -(-width // 4))
        assert logits.is_contiguous(memory_format=torch.channels_last)

    def test_empty_batch(self, mobilenet):
        with torch.no_grad():
            assert mobilenet(torch.rand(0, 3, 32, 32)).shape == (0, 5, 8, 8)

    @pytest.mark.parametrize("name", ["resnet", "mobilenet"])
    def test_plain_network_stays_nchw_and_agrees(self, name, request):
        model = request.getfixturevalue(name)
        plain = copy.deepcopy(model)
        plain.memory_format = torch.contiguous_format
        image = torch.rand(1, 3, 40, 56)
        with torch.no_grad():
            expected, got = model(image), plain(image)
        assert plain.plain
        assert got.is_contiguous()
        assert relative_error(got, expected) < 1e-4

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_low_precision(self, mobilenet, dtype):
        image = torch.rand(1, 3, 48, 64)
        with torch.no_grad():
            expected, got = mobilenet(image), copy.deepcopy(mobilenet).to(dtype)(image.to(dtype))
        assert got.dtype == dtype
        assert relative_error(got, expected) < 30 * torch.finfo(dtype).eps

    def test_autocast_gives_its_dtype(self, mobilenet):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert mobilenet(torch.rand(1, 3, 32, 32)).dtype == torch.bfloat16

    def test_channels_last_input_of_any_strides(self, mobilenet):
        image = torch.rand(1, 3, 40, 40)
        sliced = torch.rand(1, 6, 40, 80)[:, ::2, :, ::2].copy_(image)
        with torch.no_grad():
            torch.testing.assert_close(mobilenet(sliced), mobilenet(image))

    @pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 3, 8)], ids=str)
    def test_wrong_input(self, mobilenet, shape):
        with pytest.raises(ValueError, match=r"rf_lw_mbv2: x must be \(N, 3, H, W\), got \("):
            mobilenet(torch.rand(shape))

    def test_wrong_class_count(self):
        with pytest.raises(ValueError, match="rf_lw50: num_classes must be at least 1, got 0"):
            models.rf_lw50(num_classes=0)


class TestFolding:
    def test_fold_is_the_two_convolutions(self):
        outer, inner, x = torch.randn(5, 7, 1, 1), torch.randn(7, 3, 1, 1), torch.randn(2, 3, 4, 6)
        both = nn.functional.conv2d(nn.functional.conv2d(x.double(), inner.double()), outer.double())
        torch.testing.assert_close(nn.functional.conv2d(x, fold(outer, inner)), both.float())

    def test_folded_is_unfolded(self, resnet):
        image = torch.rand(1, 3, 64, 48)
        with torch.no_grad():
            folded = resnet(image)
        unfolded = resnet(image)
        assert unfolded.requires_grad
        assert relative_error(folded, unfolded.detach()) < 1e-5

    def test_state_dict_is_untouched(self, resnet):
        before = {name: value.clone() for name, value in resnet.state_dict().items()}
        with torch.no_grad():
            resnet(torch.rand(1, 3, 32, 32))
        after = resnet.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)

    @pytest.mark.parametrize("which", ["p_ims1d2_outl3_dimred", "adapt_stage3_b2_joint_varout_dimred"])
    @pytest.mark.parametrize("how", ["in_place", "data_in_place", "data_replaced", "parameter_replaced", "load"])
    def test_folds_again_when_a_weight_changes(self, resnet, which, how):
        model, image = copy.deepcopy(resnet), torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            before = model(image)
            conv = getattr(model, which)
            changed = conv.weight.detach() * 3
            if how == "in_place":
                conv.weight.mul_(3)
            elif how == "data_in_place":
                conv.weight.data.mul_(3)
            elif how == "data_replaced":
                conv.weight.data = changed
            elif how == "parameter_replaced":
                conv.weight = nn.Parameter(changed)
            else:
                model.load_state_dict({**model.state_dict(), f"{which}.weight": changed})
            after = model(image)
        assert relative_error(after, model(image).detach()) < 1e-5
        assert relative_error(after, before) > 1e-3

    def test_follows_dtype(self, resnet):
        model, image = copy.deepcopy(resnet), torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            single = model(image)
            assert relative_error(single, model.double()(image.double())) < 1e-4

    def test_cache_folds_once(self):
        cache, outer, inner = FoldCache(), torch.randn(4, 4, 1, 1), torch.randn(4, 3, 1, 1)
        first = cache.get("name", outer, inner)
        assert cache.get("name", outer, inner) is first
        assert not cache.get("name", nn.Parameter(outer), inner).requires_grad

    def test_filled_in_inference_mode_serves_gradients(self, resnet):
        model = copy.deepcopy(resnet).requires_grad_(False)
        with torch.inference_mode():
            model(torch.rand(1, 3, 32, 32))
        image = torch.rand(1, 3, 32, 32, requires_grad=True)
        model(image).sum().backward()
        assert image.grad is not None

    @pytest.mark.parametrize("name", ["p_ims1d2_outl2_dimred", "adapt_stage3_b2_joint_varout_dimred"])
    def test_derivatives_in_the_weights_are_not_forgotten(self, resnet, name):
        """Forward-mode duals through torch.func and through forward_ad, with the cache empty and filled."""
        model, image = copy.deepcopy(resnet).double(), torch.rand(1, 3, 32, 32).double()
        key, weight = f"{name}.weight", model.get_parameter(f"{name}.weight").detach()
        direction = torch.randn_like(weight)

        def logits(value: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(model, {key: value}, (image,))

        _, expected = torch.func.jvp(logits, (weight,), (direction,))
        assert expected.abs().max() > 0
        with torch.no_grad():
            model(image)
        assert torch.equal(torch.func.jvp(logits, (weight,), (direction,))[1], expected)
        with torch.no_grad(), torch.autograd.forward_ad.dual_level():
            out = logits(torch.autograd.forward_ad.make_dual(weight, direction))
            torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(out).tangent, expected)
        _, pull = torch.func.vjp(logits, weight)
        adjoint = torch.randn_like(expected)
        assert float((pull(adjoint)[0] * direction).sum() / (adjoint * expected).sum()) == pytest.approx(1, rel=1e-3)

    def test_an_ensemble_of_weights_is_batched(self, resnet):
        model, image = copy.deepcopy(resnet), torch.rand(1, 3, 32, 32)
        key = "adapt_stage2_b2_joint_varout_dimred.weight"
        weights = torch.stack([model.get_parameter(key).detach() * scale for scale in (1, -1, 3)])
        with torch.no_grad():
            model(image)
            run = lambda weight: torch.func.functional_call(model, {key: weight}, (image,))  # noqa: E731
            got = torch.vmap(run)(weights)
            for result, weight in zip(got, weights, strict=True):
                assert relative_error(result, run(weight)) < 1e-5

    @pytest.mark.parametrize("how", ["traced", "fake", "subclass"])
    def test_cache_is_for_plain_values_alone(self, how):
        cache, outer, inner = FoldCache(), torch.randn(4, 4, 1, 1), torch.randn(4, 3, 1, 1)
        kept = cache.get("name", outer, inner)
        if how == "traced":
            seen = []
            torch.jit.trace(lambda x: seen.append(cache.get("name", outer, inner)) or x + 1, outer)
            assert seen[0] is None
        elif how == "fake":
            with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
                assert cache.get("name", outer, inner) is None
                assert cache.get("name", mode.from_tensor(outer), mode.from_tensor(inner)) is None
        else:
            assert cache.get("name", outer.as_subclass(type("Mine", (torch.Tensor,), {})), inner) is None
        assert cache.get("name", outer, inner) is kept

    def test_threads_with_weights_of_their_own_share_a_cache(self):
        """As replicas and shallow copies of a network do."""
        cache = FoldCache()
        pairs = [(torch.randn(8, 8, 1, 1), torch.randn(8, 8, 1, 1)) for _ in range(4)]

        def run(i: int) -> bool:
            outer, inner = pairs[i % 4]
            return torch.equal(cache.get("name", outer, inner), fold(outer, inner))

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(run, range(400)))

    def test_a_bias_is_not_forgotten(self, resnet):
        """As folding a batch normalisation into a convolution leaves one."""
        image = torch.rand(1, 3, 32, 32)
        for name in ("p_ims1d2_outl2_dimred", "adapt_stage2_b2_joint_varout_dimred"):
            model = copy.deepcopy(resnet)
            with torch.no_grad():
                before = model(image)
                model.get_submodule(name).bias = nn.Parameter(torch.randn(256))
                after = model(image)
            assert relative_error(after, model(image).detach()) < 1e-5
            assert relative_error(after, before) > 1e-3

    def test_copies_do_not_share(self, resnet):
        image = torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            expected = resnet(image)
            for twin in (copy.deepcopy(resnet), pickle.loads(pickle.dumps(resnet))):
                twin.p_ims1d2_outl2_dimred.weight.zero_()
                assert not torch.equal(twin(image), expected)
            assert torch.equal(resnet(image), expected)


class TestTraining:
    @pytest.mark.parametrize("name", ["rf_lw50", "rf_lw_mbv2"])
    def test_every_parameter_learns(self, name):
        model = random_network(name, num_classes=3).train()
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
        idle = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert idle == []

    def test_gradients_are_those_of_the_plain_network(self, mobilenet):
        gradients = []
        for memory_format in (torch.channels_last, torch.contiguous_format):
            model = copy.deepcopy(mobilenet).double()
            model.memory_format = memory_format
            torch.manual_seed(1)
            model(torch.randn(1, 3, 32, 32, dtype=torch.float64)).square().mean().backward()
            gradients.append({key: p.grad for key, p in model.named_parameters()})
        for key, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][key], msg=key)

    def test_images_are_batched(self, mobilenet):
        images = torch.rand(3, 3, 32, 40)
        got = torch.vmap(lambda image: mobilenet(image[None])[0])(images)
        assert relative_error(got, mobilenet(images)) < 1e-5

    @pytest.mark.parametrize("name", ["rf_lw_mbv2", "rf_lw_mbv2_multi_task"])
    def test_gradients_of_each_image(self, name):
        torch.manual_seed(0)
        model, images = models.NETWORKS[name](num_classes=2).eval(), torch.rand(2, 3, 32, 40)
        parameters = {key: value.detach() for key, value in model.named_parameters()}
        loss = lambda p, image: torch.func.functional_call(model, p, (image[None],)).square().sum()  # noqa: E731
        each = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, images)
        for i, image in enumerate(images):
            model.zero_grad()
            model(image[None]).square().sum().backward()
            for key in ("layer1.0.weight", "crp1.0.1_outvar_dimred.weight", "segm.weight"):
                assert relative_error(each[key][i], model.get_parameter(key).grad) < 1e-4

    @pytest.mark.parametrize(("name", "drops"), [("rf_lw50", True), ("rf_lw_mbv2", False)])
    def test_dropout_only_while_training(self, name, drops):
        model, image = random_network(name), torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(model(image), model(image))
            for module in model.train().modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
            assert torch.equal(model(image), model(image)) != drops


class TestAblations:
    # millions, as table 1 of the Light-Weight RefineNet paper gives them for ResNet-101
    @pytest.mark.parametrize(("options", "millions"), [({}, 46), ({"rcu": True}, 54)], ids=["none", "rcu"])
    def test_parameters_of_the_paper(self, options, millions):
        with torch.device("meta"):
            model = models.rf_lw101(num_classes=21, **options)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions

    def test_without_crp_only_that_is_gone(self):
        with torch.device("meta"):
            full, without = models.rf_lw50().state_dict(), models.rf_lw50(crp=False).state_dict()
        assert list(without) == [name for name in full if "_pool" not in name]

    @pytest.mark.parametrize("options", [{"rcu": True}, {"crp": False}, {"rcu": True, "crp": False}], ids=str)
    def test_plain_network_agrees(self, options):
        model = randomised(ResNetNetwork("rf_lw14", (1, 1, 1, 1), 5, torch.channels_last, **options))
        image = torch.rand(1, 3, 40, 56)
        with torch.no_grad():
            got = model(image)
            model.memory_format = torch.contiguous_format
            assert relative_error(got, model(image)) < 1e-4
        assert got.is_contiguous(memory_format=torch.channels_last)


class TestTracing:
    def test_compile_fullgraph(self, mobilenet):
        image = torch.rand(1, 3, 48, 64)
        with torch.no_grad():
            got = torch.compile(mobilenet, fullgraph=True, backend="aot_eager")(image)
            assert relative_error(got, mobilenet(image)) < 1e-5

    @pytest.mark.slow
    def test_compiled_folds_follow_their_weights(self, resnet):
        model, image = copy.deepcopy(resnet), torch.rand(1, 3, 32, 32)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            assert relative_error(compiled(image), model(image)) < 1e-5
            model.p_ims1d2_outl4_dimred.weight.mul_(3)
            assert relative_error(compiled(image), model(image)) < 1e-5

    def test_compiled_decoder(self):
        decoder = models.Decoder([12, 20], num_classes=4, planes=16).eval()
        features = [torch.rand(1, 12, 9, 10), torch.rand(1, 20, 5, 5)]
        with torch.no_grad():
            got = torch.compile(decoder, fullgraph=True)(features)
            assert relative_error(got, decoder(features)) < 1e-5

    def test_export_with_any_size(self, mobilenet):
        sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        with torch.no_grad():
            program = torch.export.export(mobilenet, (torch.rand(1, 3, 64, 96),), dynamic_shapes=(sizes,))
            for height, width in ((64, 96), (160, 224)):
                image = torch.rand(1, 3, height, width)
                assert relative_error(program.module()(image), mobilenet(image)) < 1e-5

    def test_export_folded(self, resnet):
        image = torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            program = torch.export.export(resnet, (image,))
            assert relative_error(program.module()(image), resnet(image)) < 1e-5


class TestDecoder:
    @pytest.mark.parametrize("in_planes", [[8], [8, 12], [8, 12, 16, 24, 8]], ids=len)
    def test_is_the_published_decoder(self, in_planes):
        decoder = models.Decoder(in_planes, num_classes=3, planes=16).eval()
        features = [torch.rand(2, planes, 20 // (i + 1), 17 // (i + 1)) for i, planes in enumerate(in_planes)]
        x = None
        for number in range(len(in_planes), 0, -1):
            y = getattr(decoder, f"lateral{number}")(features[number - 1])
            if x is not None:
                x = getattr(decoder, f"deeper{number + 1}")(x)
                y = y + nn.functional.interpolate(x, y.shape[2:], mode="bilinear", align_corners=True)
            x = lwrn_fast.reference.crp(y.relu(), list(getattr(decoder, f"crp{number}").parameters()))
        with torch.no_grad():
            torch.testing.assert_close(decoder(features), decoder.classifier(x))

    def test_names(self):
        decoder = models.Decoder([8, 12], num_classes=3, planes=4, n_stages=1)
        assert [name for name, _ in decoder.named_parameters()] == [
            "lateral2.weight",
            "crp2.1_outvar_dimred.weight",
            "lateral1.weight",
            "deeper2.weight",
            "crp1.1_outvar_dimred.weight",
            "classifier.weight",
            "classifier.bias",
        ]

    def test_options(self):
        options = {"groups": True, "activation": "relu6", "align_corners": False, "n_stages": 2, "dropout": 0.5}
        decoder = models.Decoder([8, 12, 16], num_classes=3, planes=4, **options)
        features = [torch.rand(1, 8, 6, 6), torch.rand(1, 12, 6, 6), torch.rand(1, 16, 2, 3)]
        assert not torch.equal(decoder(features), decoder(features))
        decoder.eval()
        assert torch.equal(decoder(features), decoder(features))
        decoder(features).sum().backward()
        assert all(p.grad is not None for p in decoder.parameters())

    @pytest.mark.parametrize("n_features", [1, 3])
    def test_with_residual_units(self, n_features):
        decoder = models.Decoder([8, 12, 16][:n_features], num_classes=3, planes=6, rcu=True).eval()
        features = [torch.rand(2, planes, 20 // planes, 17 // planes) for planes in decoder.in_planes]
        x = None
        for number in range(n_features, 0, -1):
            y = getattr(decoder, f"lateral{number}")(features[number - 1])
            y = residual_units(y, getattr(decoder, f"adapt{number}"), 2)
            if x is not None:
                x = getattr(decoder, f"deeper{number + 1}")(x)
                y = getattr(decoder, f"joint{number}")(y)
                y = y + nn.functional.interpolate(x, y.shape[2:], mode="bilinear", align_corners=True)
            x = lwrn_fast.reference.crp(y.relu(), list(getattr(decoder, f"crp{number}").parameters()))
            x = residual_units(x, getattr(decoder, f"refine{number}"), 3)
        with torch.no_grad():
            torch.testing.assert_close(decoder(features), decoder.classifier(x))
        decoder(features).sum().backward()
        assert all(p.grad is not None for p in decoder.parameters())

    def test_without_crp(self):
        decoder = models.Decoder([8, 12], num_classes=3, planes=6, crp=False).eval()
        fine, coarse = torch.rand(1, 8, 9, 7), torch.rand(1, 12, 5, 4)
        x = decoder.deeper2(decoder.lateral2(coarse).relu())
        x = decoder.lateral1(fine) + nn.functional.interpolate(x, (9, 7), mode="bilinear", align_corners=True)
        with torch.no_grad():
            torch.testing.assert_close(decoder([fine, coarse]), decoder.classifier(x.relu()))
        assert not any("crp" in name for name in decoder.state_dict())

    def test_odd_planes_have_no_residual_units(self):
        with pytest.raises(ValueError, match="LightResidualUnits: planes must be even, got 7"):
            models.Decoder([8], num_classes=3, planes=7, rcu=True)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([], 3), "Decoder: in_planes must name at least one"),
            (([8], 0), "Decoder: num_classes must be at least 1, got 0"),
            (([8], 3, 4, 4, False, "tanh"), "Decoder: activation must be .*, got 'tanh'"),
        ],
        ids=["no_features", "no_classes", "activation"],
    )
    def test_wrong_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            models.Decoder(*arguments)

    def test_wrong_features(self):
        with pytest.raises(ValueError, match="Decoder: features must be 2 maps, got 1"):
            models.Decoder([8, 8], 3)([torch.rand(1, 8, 4, 4)])


class TestPreprocess:
    @pytest.mark.parametrize("kind", ["numpy", "flipped", "read_only", "tensor", "sliced_tensor", "pil"])
    def test_formula(self, kind):
        pixels = np.random.RandomState(0).randint(0, 256, (5, 7, 3)).astype(np.uint8)
        image = pixels
        if kind == "flipped":
            image = pixels[:, ::-1].copy()[:, ::-1]
        elif kind == "read_only":
            image = pixels.copy()
            image.setflags(write=False)
        elif kind == "tensor":
            image = torch.from_numpy(pixels.copy())
        elif kind == "sliced_tensor":
            image = torch.from_numpy(pixels.repeat(2, axis=1))[:, ::2]
        elif kind == "pil":
            image = Image.fromarray(pixels)
        got = models.preprocess(image)
        expected = (pixels / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        assert got.dtype == torch.float32
        assert got.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_allclose(got[0].permute(1, 2, 0).numpy(), expected, rtol=1e-5, atol=1e-6)

    def test_leaves_the_image_alone(self):
        image = torch.full((2, 2, 3), 7, dtype=torch.uint8)
        models.preprocess(image)
        assert image.eq(7).all()

    def test_wrong_dtype(self):
        with pytest.raises(TypeError, match="preprocess: image must be uint8, got float32"):
            models.preprocess(torch.rand(4, 4, 3))
        with pytest.raises(TypeError, match="preprocess: image must be uint8, got int64"):
            models.preprocess(np.zeros((4, 4, 3), np.int64))

    @pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4), (4, 4, 4), (1, 4, 4, 3)], ids=str)
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"preprocess: image must be \(H, W, 3\), got \("):
            models.preprocess(np.zeros(shape, np.uint8))


class TestVoc:
    def test_palette(self):
        assert models.PALETTE.shape == (256, 3)
        assert models.PALETTE.dtype == np.uint8
        assert len({tuple(colour) for colour in models.PALETTE.tolist()}) == 256
        assert models.PALETTE[[0, 1, 15, 20, 255]].tolist() == [
            [0, 0, 0],
            [128, 0, 0],
            [192, 128, 128],
            [0, 64, 128],
            [224, 224, 192],
        ]

    def test_palette_is_that_of_the_ground_truth(self):
        for path in sorted(shared("images/voc").glob("*.png")):
            with Image.open(path) as image:
                colours = np.array(image.getpalette()).reshape(-1, 3)
            np.testing.assert_array_equal(models.PALETTE[: len(colours)], colours)

    def test_classes(self):
        assert len(models.CLASSES) == 21
        assert models.CLASSES[15] == "person"
