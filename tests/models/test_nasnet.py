"""NASNet-A mobile against its paper: parameters, sizes of the features, and the results of the cells."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lwrn_fast import models
from lwrn_fast.models.nasnet import Halving, NASNetMobile, NormalCell, ReductionCell


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class TestEncoder:
    def test_parameters_with_the_classifier(self):
        """The paper gives 5.3 M for 4 @ 1056 with the 1000 classes of ImageNet."""
        with torch.device("meta"):
            encoder, classifier = NASNetMobile(), nn.Linear(NASNetMobile.planes[-1], 1000)
        assert parameters(encoder) == 4_232_978
        assert parameters(encoder) + parameters(classifier) == 5_289_978

    @pytest.mark.parametrize("height_width", [(64, 96), (33, 71)], ids=str)
    def test_features(self, height_width):
        with torch.no_grad():
            features = NASNetMobile().eval().features(torch.rand(2, 3, *height_width))
        sizes = [tuple(-(-size // stride) for size in height_width) for stride in (4, 8, 16, 32)]
        assert [tuple(x.shape) for x in features] == [
            (2, planes, *size) for planes, size in zip((44, 264, 528, 1056), sizes, strict=True)
        ]

    def test_keeps_channels_last(self):
        with torch.no_grad():
            image = torch.rand(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
            features = NASNetMobile().eval().features(image)
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x in features)


class TestCells:
    def test_halving_loses_no_pixel(self):
        halving = Halving(1, 2).eval()
        halving.bn = nn.Identity()
        nn.init.ones_(halving.even.weight)
        nn.init.ones_(halving.odd.weight)
        image = torch.arange(1.0, 16.0).view(1, 1, 3, 5)
        even, odd = halving(image)[0]
        assert even.tolist() == [[1, 3, 5], [11, 13, 15]]
        assert odd.tolist() == [[7, 9, 0], [0, 0, 0]]

    @pytest.mark.parametrize("kind", [NormalCell, ReductionCell])
    def test_blocks_without_the_convolutions(self, kind):
        """With separable convolutions of zero, the poolings and identities of figure 4 are left."""
        cell = kind(4, 4, 4).eval()
        for name, module in cell.named_children():
            if "x" in name:  # 3x3, 5x5, 7x7
                for parameter in module.parameters():
                    nn.init.zeros_(parameter)
        earlier, last = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
        with torch.no_grad():
            got = cell(earlier, last)
            last = cell.last(last)
        if kind is NormalCell:
            pooled = F.avg_pool2d(earlier, 3, 1, 1, count_include_pad=False)
            mean = F.avg_pool2d(last, 3, 1, 1, count_include_pad=False)
            zero = torch.zeros_like(last)
            expected = [earlier, zero, zero, mean + earlier, 2 * pooled, last]
        else:
            largest = F.max_pool2d(last, 3, 2, 1)
            expected = [largest, F.avg_pool2d(last, 3, 2, 1, count_include_pad=False), largest, largest]
        torch.testing.assert_close(got, torch.cat(expected, 1))


class TestNetwork:
    def test_every_parameter_learns(self):
        model = models.rf_lw_nasnet_mobile(num_classes=3).train()
        logits = model(torch.randn(2, 3, 64, 64))
        assert logits.shape == (2, 3, 16, 16)
        logits.square().mean().backward()
        idle = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert idle == []

    def test_plain_network_agrees(self):
        model, image = models.rf_lw_nasnet_mobile(num_classes=5).eval(), torch.rand(1, 3, 40, 56)
        with torch.no_grad():
            got = model(image)
            model.memory_format = torch.contiguous_format
            torch.testing.assert_close(got, model(image), rtol=1e-4, atol=1e-5)
        assert got.is_contiguous(memory_format=torch.channels_last)
