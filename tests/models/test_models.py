"""The published models against their golden outputs, names and sizes; training; ablations."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from lwrn_fast import models
from lwrn_fast.models.networks import ResNetNetwork
from support.random_models import random_network, randomised, relative_error
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
