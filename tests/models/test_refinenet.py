"""The original RefineNet: its golden output, its variants, and pool5x5."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lwrn_fast import models
from lwrn_fast.models.refinenet import VARIANTS, RefineNet
from lwrn_fast.models.refinenet_blocks import CRP3x3, ResidualUnits, pool5x5
from support.shared_files import golden_weights, shared


def small_network(variant: str = "4-cascaded") -> RefineNet:
    """Return a model with one ResNet block per stage, for tests that do not depend on their number.

    Activations keep their magnitude.
    """
    model = RefineNet("rf14", (1, 1, 1, 1), 3, torch.channels_last, variant)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif "downsample.1" in name or name.endswith("bn3"):
            nn.init.constant_(module.weight, 0.5)
    return model.eval()


class TestPublished:
    def test_golden_output(self):
        golden, weights = np.load(shared("golden/rf101_voc21.npz")), golden_weights()
        model = weights.fill(models.rf101(num_classes=21)).eval()
        image = torch.from_numpy(weights.image(tuple(golden["input_shape"]), int(golden["input_seed"])))
        expected = torch.from_numpy(golden["output"]).double()
        for memory_format in (torch.channels_last, torch.contiguous_format):
            model.memory_format = memory_format
            with torch.no_grad():
                got = model(image)
            assert got.shape == expected.shape
            assert float((got - expected).abs().max() / expected.abs().max()) < 1e-4

    def test_dropout_only_while_training(self):
        model, x = small_network(), torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(model(x), model(x))
            features = model.features(x)
            model.train()
            assert not torch.equal(model.decode(features), model.decode(features))

    def test_wrong_input(self):
        with pytest.raises(ValueError, match=r"rf14: x must be \(N, 3, H, W\), got \(1, 4, 8, 8\)"):
            small_network()(torch.rand(1, 4, 8, 8))


class TestVariants:
    # encoder and decoder on ResNet-101, 21 classes
    PARAMETERS = {
        "single": 81_480_277,
        "2-cascaded": 87_969_109,
        "4-cascaded": 118_052_437,
        "4-cascaded 2-scale": 197_124_245,
    }

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_parameters(self, variant):
        with torch.device("meta"):
            model = models.rf101(num_classes=21, variant=variant)
        assert sum(p.numel() for p in model.parameters()) == self.PARAMETERS[variant]

    @pytest.mark.slow
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_every_parameter_learns_and_plain_agrees(self, variant):
        model, image = small_network(variant), torch.rand(1, 3, 40, 60)
        with torch.no_grad():
            got = model(image)
            model.memory_format = torch.contiguous_format
            torch.testing.assert_close(got, model(image), rtol=1e-3, atol=1e-4)
        assert got.shape == ((1, 3, 12, 18) if "2-scale" in variant else (1, 3, 10, 15))
        assert got.is_contiguous(memory_format=torch.channels_last)
        model(image).square().mean().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []

    def test_single_written_out(self):
        model = small_network("single")
        features = [torch.rand(1, channels, 8 >> i, 8 >> i) for i, channels in enumerate(model.planes)]
        x = None
        for i, feature in zip((4, 3, 2, 1), features, strict=True):
            y = getattr(model, f"adapt_stage{i}_b")(getattr(model, f"p_ims1d2_outl{i}_dimred")(feature))
            y = getattr(model, f"adapt_stage{i}_b2_joint_varout_dimred")(y)
            x = y if x is None else x + F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=True)
        with torch.no_grad():
            expected = model.clf_conv(model.mflow_conv_g1_b(model.mflow_conv_g1_pool(x.relu())))
            torch.testing.assert_close(model.decode(features), expected)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_levels_and_head_name_the_decoder(self, variant):
        """Any other name would be taken for the encoder's, which has its own learning rate."""
        with torch.device("meta"):
            model = RefineNet("rf14", (1, 1, 1, 1), 3, torch.channels_last, variant)
        names = {model.head}
        for level in model.levels:
            names.update(name for path in level.laterals for name in path)
            names.update(name for name in (level.crp, level.deeper, level.refine) if name is not None)
        encoders = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "small"}
        children = {name for name, child in model.named_children() if list(child.parameters())}
        assert children - names == encoders & children

    def test_unknown(self):
        with pytest.raises(ValueError, match="rf50: variant must be one of 'single', '2-cascaded', .*, got '3'"):
            models.rf50(variant="3")


class TestBlocks:
    def test_residual_units(self):
        units, x = ResidualUnits(6, count=2), torch.randn(2, 6, 5, 4)
        weights = dict(units.named_parameters())
        expected = x
        for i in ("1", "2"):
            inner = F.conv2d(expected.relu(), weights[f"{i}_conv.weight"], weights[f"{i}_conv.bias"], padding=1)
            outer = F.conv2d(inner.relu(), weights[f"{i}_conv_relu_varout_dimred.weight"], padding=1)
            expected = expected + outer
        torch.testing.assert_close(units(x), expected)

    def test_chained_pooling(self):
        block, x = CRP3x3(6, n_stages=2), torch.randn(2, 6, 7, 5)
        first, second = block.parameters()
        stage1 = F.conv2d(F.max_pool2d(x, 5, 1, 2), first, padding=1)
        stage2 = F.conv2d(F.max_pool2d(stage1, 5, 1, 2), second, padding=1)
        with torch.no_grad():
            torch.testing.assert_close(block(x), x + stage1 + stage2)


class TestPool:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("size", list(itertools.product((1, 2, 5, 9), (1, 3, 8))), ids=str)
    def test_is_max_pool2d(self, size, dtype):
        for memory_format in (torch.channels_last, torch.contiguous_format):
            x = torch.randn(2, 3, *size).to(dtype).contiguous(memory_format=memory_format)
            got = pool5x5(x)
            assert got.dtype == dtype
            assert got.is_contiguous(memory_format=memory_format)
            assert torch.equal(got, F.max_pool2d(x, 5, 1, 2))

    def test_nan_and_infinity(self):
        x = torch.randn(1, 4, 12, 11)
        x[0, 0, 3, 4] = torch.nan
        x[0, 1, 0, 10] = torch.nan
        x[0, 2] = -torch.inf
        x[0, 3, 6, 6] = torch.inf
        expected = F.max_pool2d(x, 5, 1, 2)
        assert expected[0, :2].isnan().sum() == 25 + 9
        torch.testing.assert_close(pool5x5(x), expected, rtol=0, atol=0, equal_nan=True)

    def test_empty_batch(self):
        assert pool5x5(torch.rand(0, 3, 6, 5)).shape == (0, 3, 6, 5)

    def test_gradients_go_where_those_of_max_pool2d_go(self):
        x = torch.randn(2, 3, 9, 8).relu()  # zeros, so ties
        gradients = []
        for pool in (pool5x5, lambda y: F.max_pool2d(y, 5, 1, 2)):
            leaf = x.clone().requires_grad_()
            pool(leaf).mul(torch.arange(x.numel()).view_as(x)).sum().backward()
            gradients.append(leaf.grad)
        assert torch.equal(*gradients)
