"""Fixtures that the tests of several commands share."""

from pathlib import Path

import pytest
import torch

from lwrn_fast import models


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mobile network with 7 classes, all of which appear."""
    torch.manual_seed(0)
    model = models.rf_lw_mbv2(num_classes=7)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    path = tmp_path_factory.mktemp("weights") / "seven.pth.tar"
    torch.save({"segmenter": model.state_dict()}, path)
    return path
