"""Training: its parts, its results, and that killed runs continue to the same ones."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lwrn_fast import cli, models
from lwrn_fast.training import generate, loop, preparing, processes, records, saving
from support.training_runs import MARK, SMALL, losses, metrics, read_csv


class TestParts:
    def test_poly(self):
        assert [loop.poly(step, 4, 1.0) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
        assert loop.poly(50, 100, 0.9) == pytest.approx(0.5**0.9)
        assert [loop.poly(step, 100, 0.0, warmup=4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]

    def test_loss(self):
        logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
        labels[0, 0] = 255
        expected = sum(
            -F.log_softmax(logits[n, :, y, x], 0)[labels[n, y, x]]
            for n, y, x in np.ndindex(2, 4, 4)
            if labels[n, y, x] != 255
        )
        torch.testing.assert_close(loop.loss_sum(logits, labels), expected)

    @pytest.mark.parametrize("name", models.NETWORKS)
    def test_encoder_and_decoder(self, name):
        with torch.device("meta"):
            model = models.NETWORKS[name](num_classes=5)
        groups = preparing.parameter_groups(model, 0.1, 0.2)
        encoder, decoder = (
            {name for name, p in model.named_parameters() if any(p is q for q in g["params"])} for g in groups
        )
        assert encoder | decoder == {name for name, _ in model.named_parameters()}
        assert not encoder & decoder
        assert all(name.startswith(("layer", "conv1.", "bn1.", "stem", "cells", "reduce")) for name in encoder)
        assert f"{model.head}.weight" in decoder

    def test_synchronised_normalisation_is_the_usual_one(self, monkeypatch):
        """Two processes hold the same batch: each is half of the whole."""
        x = torch.randn(3, 4, 5, 6, requires_grad=True)
        usual, synced = nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4))
        processes.synchronise(synced)
        monkeypatch.setattr(processes, "count", lambda: 2)
        monkeypatch.setattr(processes, "total", lambda value: 2 * value)
        expected, got = usual(torch.cat([x, x]))[:3], synced(x)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(synced[0].running_var, usual.running_var)
        torch.testing.assert_close(synced[0].running_mean, usual.running_mean)

    def test_new_classifier(self, five, tmp_path):
        options = preparing.Options(tmp_path, tmp_path, checkpoint=str(five))
        loaded = preparing.load(options)
        assert loaded is not None
        model = preparing.network(options, loaded, 3)
        assert model.num_classes == 3
        torch.testing.assert_close(model.get_parameter("conv3.weight"), loaded.get_parameter("conv3.weight"))
        assert preparing.network(options, loaded, 5) is loaded

    def test_writing_leaves_no_half(self, tmp_path):
        saving.write_text(tmp_path / "a", "old")

        def fails(path: Path) -> None:
            path.write_text("ha")
            raise OSError(28, "No space left on device")

        with pytest.raises(saving.UserError, match="a: cannot be written .no space left"):
            saving.write(tmp_path / "a", fails)
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        assert (tmp_path / "a").read_text() == "old"

    def test_board_says_when_it_is_absent(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        said: list[str] = []
        board = records.Board(tmp_path, 0, said.append)
        board.add(1, {"loss": 1.0})
        board.close()
        assert len(said) == 1
        assert "pip install tensorboard" in said[0]


class TestTrain:
    def test_files(self, trained):
        names = {"best.safetensors", "last.safetensors", "losses.csv", "metrics.csv", "state.pt"}
        assert {path.name for path in trained.iterdir()} == names
        assert [row["step"] for row in read_csv(trained / "losses.csv")] == [str(i) for i in range(1, 9)]
        rows = read_csv(trained / "metrics.csv")
        assert [(row["epoch"], row["step"]) for row in rows] == [("1", "4"), ("2", "8")]
        assert {f"iou_{name}" for name in generate.CLASSES} <= rows[0].keys()
        model = models.load(trained / "last.safetensors")
        assert (model.name, model.num_classes) == ("rf_lw_mbv2", 8)

    def test_validation_is_evaluation(self, trained, folder, tmp_path, capsys):
        out = tmp_path / "scores.json"
        assert (
            cli.main(["eval", str(folder), "--checkpoint", str(trained / "last.safetensors"), "--out", str(out)]) == 0
        )
        content = json.loads(out.read_text())
        row = read_csv(trained / "metrics.csv")[-1]
        assert content["mean_iou"] == pytest.approx(float(row["mean_iou"]))
        assert content["pixel_accuracy"] == pytest.approx(float(row["pixel_accuracy"]))
        text = capsys.readouterr().out
        assert text.startswith("rf_lw_mbv2, f32, 1 images of val")
        assert "crescent" in text

    def test_loss_falls(self, folder, tmp_path):
        """Train on the same eight images repeatedly."""
        options = ["--epochs", "10", "--scales", "1", "1", "--no-flip", "--batch", "4"]
        assert cli.main(["train", str(folder), "--out", str(tmp_path / "r"), *SMALL, *options]) == 0
        values = losses(tmp_path / "r")
        assert np.mean(values[-4:]) < 0.7 * np.mean(values[:2])

    def test_mixed_precision_and_half_weights(self, folder, tmp_path):
        options = ["--epochs", "1", "--batch", "8", "--crop", "32", "--amp", "bf16", "--half"]
        assert cli.main(["train", str(folder), "--out", str(tmp_path / "r"), *SMALL, *options]) == 0
        assert 1.5 < losses(tmp_path / "r")[0] < 3
        assert models.load(tmp_path / "r" / "last.safetensors").segm.weight.dtype == torch.float32
        sizes = [(tmp_path / "r" / name).stat().st_size for name in ("last.safetensors", "state.pt")]
        assert sizes[0] < sizes[1] / 3.5  # the state has weights and momentum in float32

    def test_frozen_statistics_and_rates(self, trained, folder, tmp_path):
        start = trained / "last.safetensors"
        options = ["--checkpoint", str(start), "--epochs", "1", "--freeze-bn", *SMALL, "--encoder-lr", "0"]
        assert cli.main(["train", str(folder), "--out", str(tmp_path / "r"), *options, "--weight-decay", "0"]) == 0
        before, after = (models.load(path).state_dict() for path in (start, tmp_path / "r" / "last.safetensors"))
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed
        assert not any(name.startswith("layer") for name in changed)

    def test_tensorboard(self, folder, tmp_path):
        options = ["--epochs", "1", *SMALL, "--tensorboard", "--batch", "4"]
        assert cli.main(["train", str(folder), "--out", str(tmp_path / "r"), *options]) == 0
        assert len(list((tmp_path / "r" / "tensorboard").iterdir())) == 1


class TestBatchNormalisation:
    """One value per channel has no variance to normalise with."""

    @pytest.mark.parametrize(
        ("model", "batch", "crop"), [("rf_lw_mbv2", 1, 32), ("rf_lw50", 1, 17), ("rf_lw_nasnet_mobile", 1, 1)]
    )
    def test_one_line(self, model, batch, crop, folder, tmp_path, capsys):
        options = [*SMALL, "--model", model, "--batch", str(batch), "--crop", str(crop)]
        arguments = ["train", str(folder), "--out", str(tmp_path / "r"), "--epochs", "1", *options]
        assert cli.main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err == (
            f"{MARK}--batch {batch} with --crop {crop} leaves batch normalisation one value per channel to train with: "
            "give --batch 2, a larger --crop, or --freeze-bn\n"
        )
        assert not list(tmp_path.iterdir())

    @pytest.mark.slow
    @pytest.mark.parametrize("remedy", [["--batch", "2"], ["--crop", "33"], ["--freeze-bn"]])
    def test_remedies(self, remedy, folder, tmp_path):
        options = [*SMALL, "--batch", "1", "--crop", "32", *remedy]
        assert cli.main(["train", str(folder), "--out", str(tmp_path / "r"), "--epochs", "1", *options]) == 0
        assert all(np.isfinite(losses(tmp_path / "r")))

    def test_agrees_with_a_step(self, five):
        """The check of shapes alone agrees with a forward pass."""
        for batch, crop in ((1, 32), (1, 33), (2, 1), (3, 32)):
            model = models.load(str(five)).train()
            options = preparing.Options(Path(), Path(), batch=batch, crop=crop)
            refused = False
            try:
                model(torch.zeros(batch, 3, crop, crop))
            except ValueError:
                refused = True
            try:
                preparing.check_batch(model, options)
                assert not refused
            except preparing.UserError:
                assert refused


class TestKilled:
    @pytest.mark.slow
    def test_continues_to_the_same_losses(self, trained, folder, tmp_path, capsys):
        """SIGKILL within an epoch, as soon as there is a state; then the same command with --resume."""
        out = tmp_path / "killed"
        arguments = ["train", str(folder), "--out", str(out), "--epochs", "2", *SMALL]
        process = subprocess.Popen([sys.executable, "-m", "lwrn_fast", *arguments], stdout=subprocess.DEVNULL)
        while not (out / "state.pt").exists() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        state = saving.load_state(out)
        assert state is not None
        assert len(state["losses"]) < 8
        assert cli.main(arguments) == 2  # nobody overwrites a run by accident
        assert "holds a run already; --resume continues it" in capsys.readouterr().err
        assert cli.main([*arguments, "--resume"]) == 0
        assert "resumed after step " in capsys.readouterr().out
        np.testing.assert_allclose(losses(out), losses(trained), rtol=1e-6)
        np.testing.assert_allclose(metrics(out), metrics(trained), rtol=1e-6)
        ours, whole = (models.load(path / "last.safetensors").state_dict() for path in (out, trained))
        for name in ours:
            torch.testing.assert_close(ours[name], whole[name], rtol=1e-6, atol=1e-8)

    def test_killed_before_the_first_state(self, trained, folder, tmp_path):
        (tmp_path / ".state.pt.unfinished").write_bytes(b"half")
        arguments = ["train", str(folder), "--out", str(tmp_path), "--epochs", "2", *SMALL, "--resume"]
        assert cli.main(arguments) == 0
        assert losses(tmp_path) == losses(trained)
        assert not (tmp_path / ".state.pt.unfinished").exists()
        before = (tmp_path / "metrics.csv").read_bytes()
        assert cli.main(arguments) == 0  # nothing is left to do
        assert (tmp_path / "metrics.csv").read_bytes() == before

    def test_other_options(self, trained, folder, capsys):
        arguments = ["train", str(folder), "--out", str(trained), "--epochs", "2", *SMALL, "--resume", "--seed", "7"]
        assert cli.main(arguments) == 2
        assert "was begun with seed 0, now it is 7" in capsys.readouterr().err
