"""The decoder for any encoder: its wiring, names, options and errors."""

import pytest
import torch
from torch import nn

import lwrn_fast
from lwrn_fast import models


def residual_units(x: torch.Tensor, module: nn.Module, count: int) -> torch.Tensor:
    """Apply light-weight residual units, written out."""
    for i in range(1, count + 1):
        reduce, conv, expand = (getattr(module, f"{i}_{step}") for step in ("reduce", "conv", "expand"))
        x = x + expand(conv(reduce(x.relu()).relu()).relu())
    return x


class TestDecoder:
    @pytest.mark.parametrize("in_planes", [[8], [8, 12], [8, 12, 16, 24, 8]], ids=len)
    def test_is_the_published_decoder(self, in_planes):
        decoder = models.Decoder(in_planes, num_classes=3, planes=16).eval()
        features = [torch.rand(2, channels, 20 // (i + 1), 17 // (i + 1)) for i, channels in enumerate(in_planes)]
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
        features = [torch.rand(2, channels, 20 // channels, 17 // channels) for channels in decoder.in_planes]
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
