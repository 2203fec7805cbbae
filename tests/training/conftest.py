"""Data, runs and checkpoints that several test files share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lwrn_fast import cli, models
from lwrn_fast.training import generate, survey
from support.label_maps import weights
from support.training_runs import SMALL


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return ten generated images: 8 to train on, one to validate with, one to test."""
    out = tmp_path_factory.mktemp("data") / "generated"
    generate.generate(out, 10, seed=0, size=(64, 64))
    return out


@pytest.fixture(scope="session")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run of two epochs, of four steps each."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert cli.main(["train", str(folder), "--out", str(out), "--epochs", "2", *SMALL]) == 0
    return out


@pytest.fixture(scope="session")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an untrained checkpoint with five classes."""
    path = tmp_path_factory.mktemp("five") / "five.pth"
    torch.save(models.rf_lw_mbv2(num_classes=5).state_dict(), path)
    return path


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep counts in a folder of this test."""
    folder = tmp_path_factory.mktemp("cache") / "new"
    monkeypatch.setenv(survey.CACHE, str(folder))
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    return weights(tmp_path_factory.mktemp("weights"))
