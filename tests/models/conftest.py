"""Models that several test files share; a test that changes one copies it."""

import pytest
import torch
from torch import nn

from lwrn_fast.models.networks import ResNetNetwork
from support.random_models import random_network, randomised


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """Return the published wiring with one block per stage, for tests that do not depend on their number."""
    torch.manual_seed(0)
    return randomised(ResNetNetwork("rf_lw14", (1, 1, 1, 1), 5, torch.channels_last))


@pytest.fixture(scope="module")
def mobilenet() -> nn.Module:
    torch.manual_seed(0)
    return random_network("rf_lw_mbv2", num_classes=5)
