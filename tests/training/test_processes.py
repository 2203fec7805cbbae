"""Several processes give the results of one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lwrn_fast import cli
from support.training_runs import SMALL, losses, metrics

# The script that torchrun runs twice, in float64, since float32 would hide a small mistake behind its roundings.
GRADIENTS = """
import torch
from torch import nn
from lwrn_fast.training import processes

def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)]
    return nn.Sequential(*layers).double()

def compare():
    whole, part = model(), model()
    processes.synchronise(part)
    x, weight = torch.randn(4, 3, 8, 8).double(), torch.randn(4, 5, 4, 4).double()
    (whole(x) * weight).sum().backward()
    share = slice(processes.rank(), None, 2)
    parallel = nn.parallel.DistributedDataParallel(part)
    (2 * (parallel(x[share]) * weight[share]).sum()).backward()
    for a, b in zip(whole.parameters(), part.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
    for a, b in zip(whole.buffers(), part.buffers()):
        torch.testing.assert_close(a, b)

with processes.joined("cpu"):
    assert processes.count() == 2
    compare()  # where DistributedDataParallel ends before the group of processes does
    if processes.rank() == 0:
        print("equal")
"""


class TestProcesses:
    def torchrun(self, *arguments: str) -> str:
        """Return the output of two processes on the CPU, which neither warn nor fail."""
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        return done.stdout

    @pytest.mark.slow
    def test_train_as_one(self, trained, folder, tmp_path):
        # the statistics of few pixels would make the model sensitive to the last bit
        arguments = ["train", str(folder), *SMALL, "--checkpoint", str(trained / "last.safetensors"), "--epochs", "2"]
        arguments += ["--freeze-bn", "--out"]
        text = self.torchrun("-m", "lwrn_fast", *arguments, str(tmp_path / "two"))
        assert text.count("8 images, 1 to validate with; 8 steps of 2 on cpu, 2 processes") == 1
        assert cli.main([*arguments, str(tmp_path / "one")]) == 0
        np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)
        np.testing.assert_allclose(metrics(tmp_path / "two"), metrics(tmp_path / "one"), rtol=1e-3, atol=1e-4)

    @pytest.mark.slow
    def test_synchronised_gradients_are_those_of_one(self, tmp_path):
        (tmp_path / "script.py").write_text(GRADIENTS)
        assert self.torchrun(str(tmp_path / "script.py")) == "equal\n"

    @pytest.mark.slow
    def test_evaluate_as_one(self, trained, folder, tmp_path):
        arguments = ["eval", str(folder), "--checkpoint", str(trained / "last.safetensors"), "--split", "train"]
        arguments += ["--scales", "0.75", "1", "--flip", "--device", "cpu", "--out"]
        text = self.torchrun("-m", "lwrn_fast", *arguments, str(tmp_path / "two.json"))
        assert text.count("8 images of train") == 1
        assert cli.main([*arguments, str(tmp_path / "one.json")]) == 0
        assert json.loads((tmp_path / "two.json").read_text()) == json.loads((tmp_path / "one.json").read_text())
