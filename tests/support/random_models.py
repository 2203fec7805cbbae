"""Models with random weights, and the relative error of their logits."""

import torch
from torch import nn

from lwrn_fast import models


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())


def random_network(name: str, **options: object) -> nn.Module:
    return randomised(models.NETWORKS[name](**options))


def randomised(model: nn.Module) -> nn.Module:
    """Set eval mode and weights that keep activations at their magnitude."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return model.eval()
