"""Training and evaluation: the numbers, and that killed or shared runs come to the same ones."""

import csv
import json
import os
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
from lwrn_fast.training import evaluate, generate, loop, preparing, processes, records, saving
from lwrn_fast.training.scores import Counter, Scores

MARK = "lwrn-fast: error: "
SMALL = ["--crop", "64", "--batch", "2", "--scales", "0.8", "1.25", "--encoder-lr", "0.01", "--decoder-lr", "0.01"]
SMALL += ["--clip", "1", "--device", "cpu", "--save-every", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten generated pictures: 8 to train on, one to validate with, one to test."""
    out = tmp_path_factory.mktemp("data") / "generated"
    generate.generate(out, 10, seed=0, size=(64, 64))
    return out


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run of two epochs, of four steps each, leaves."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert cli.main(["train", str(folder), "--out", str(out), "--epochs", "2", *SMALL]) == 0
    return out


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint with five classes."""
    path = tmp_path_factory.mktemp("five") / "five.pth"
    torch.save(models.rf_lw_mbv2(num_classes=5).state_dict(), path)
    return path


GRADIENTS = """
import torch
from torch import nn
from lwrn_fast.training import processes

def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)]
    return nn.Sequential(*layers).double()

def compare():
    whole, part = network(), network()
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
"""What torchrun runs twice, in float64, since float32 would hide a small mistake behind its roundings."""


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def losses(out: Path) -> list[float]:
    return [float(row["loss"]) for row in read_csv(out / "losses.csv")]


def metrics(out: Path) -> np.ndarray:
    """All numbers of all epochs but the seconds."""
    return np.array([[float(row[name]) for name in row if name != "seconds"] for row in read_csv(out / "metrics.csv")])


class TestScores:
    def test_by_hand(self):
        counter = Counter(4)
        counter.add(torch.tensor([[0, 0, 1], [1, 2, 2]]), torch.tensor([[0, 1, 1], [1, 255, 0]]))
        counter.add(torch.tensor([2]), torch.tensor([2]))
        scores = counter.scores()
        assert scores.confusion.tolist() == [[1, 0, 1, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
        assert scores.iou[:3] == pytest.approx([1 / 3, 2 / 3, 1 / 2])
        assert np.isnan(scores.iou[3])  # a class that never occurs does not count
        assert scores.mean_iou == pytest.approx(0.5)
        assert scores.pixel_accuracy == pytest.approx(4 / 6)
        assert scores.accuracy[:3] == pytest.approx([1 / 2, 2 / 3, 1])

    def test_as_torchmetrics_says(self):
        classification = pytest.importorskip("torchmetrics.classification")
        predicted, labels = torch.randint(0, 5, (2, 1000))
        counter = Counter(5)
        counter.add(predicted, labels)
        jaccard = classification.MulticlassJaccardIndex(5)(predicted, labels)
        assert counter.scores().mean_iou == pytest.approx(float(jaccard), abs=1e-6)

    def test_files(self):
        scores, names = Scores(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])), ["a", "b", "c"]
        content = json.loads(scores.to_json(names, split="val"))
        assert (content["split"], content["mean_iou"]) == ("val", pytest.approx(0.775))
        assert content["classes"][2] == {"class": 2, "name": "c", "pixels": 0, "iou": None, "accuracy": None}
        assert scores.to_csv(names).splitlines()[0] == "class,name,pixels,iou,accuracy"
        assert scores.table(names).splitlines()[-1].split() == ["mean", "/", "all", "0.7750", "0.8750", "8"]
        assert scores.confusion_table(names).splitlines()[1].split() == ["0", "a", "75.0", "25.0", "0.0"]

    def test_nothing_counted(self):
        scores = Counter(2).scores()
        assert np.isnan(scores.mean_iou)
        assert json.loads(scores.to_json(["a", "b"]))["pixel_accuracy"] is None


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
        """With two processes that hold the same, of which each is half."""
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
    def test_what_it_leaves(self, trained):
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
        """Eight pictures, again and again."""
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

    @pytest.mark.parametrize("remedy", [["--batch", "2"], ["--crop", "33"], ["--freeze-bn"]])
    def test_remedies(self, remedy, folder, tmp_path):
        options = [*SMALL, "--batch", "1", "--crop", "32", *remedy]
        assert cli.main(["train", str(folder), "--out", str(tmp_path / "r"), "--epochs", "1", *options]) == 0
        assert all(np.isfinite(losses(tmp_path / "r")))

    def test_agrees_with_a_step(self, five):
        """What is foreseen from shapes alone is what a forward pass says."""
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


class TestUnexpected:
    """Whatever fails becomes one line, and 2."""

    FAILURES = {
        "memory": (MemoryError(), "not enough memory; a smaller --batch, --crop or --scales needs less (MemoryError)"),
        "allocator": (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
            "not enough memory; a smaller --batch, --crop",
        ),
        "gpu": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), "not enough memory; "),
        "worker": (
            RuntimeError("Caught OSError in DataLoader worker process 0.\nOriginal Traceback:\n  x\nOSError: no\n"),
            "OSError: no",
        ),
        "files": (OSError(24, "Too many open files"), "too many open files"),
        "file": (PermissionError(13, "Permission denied", "a.txt"), "a.txt: permission denied"),
        "nobody_thought_of": (KeyError("x"), "KeyError: 'x'"),
        "silent": (AssertionError(), "AssertionError: AssertionError"),
    }

    @pytest.mark.parametrize("failure", FAILURES)
    @pytest.mark.parametrize("command", ["train", "eval", "generate"])
    def test_one_line(self, command, failure, folder, five, tmp_path, capsys, monkeypatch):
        error, message = self.FAILURES[failure]

        def fails(*_, **__):
            raise error

        monkeypatch.setattr(preparing, "load", fails)
        monkeypatch.setattr(evaluate.data, "find", fails)
        monkeypatch.setattr(generate, "generate", fails)
        monkeypatch.setattr(evaluate, "_names", lambda *_: ([], []))
        out = str(tmp_path / "r")
        arguments = {
            "train": ["train", str(folder), "--out", out],
            "eval": ["eval", str(folder), "--checkpoint", str(five)],
            "generate": ["generate", out],
        }
        assert cli.main(arguments[command]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(f"{MARK}{message}")
        assert captured.err.count("\n") == 1
        assert captured.out == ""

    @pytest.mark.slow
    def test_disk_that_is_full(self, folder, tmp_path):
        """Nothing half-written is left, and the same command works where there is room."""
        arguments = ["train", str(folder), "--out", str(tmp_path / "r"), "--epochs", "1", *SMALL]
        limited = f"ulimit -f 100; exec '{sys.executable}' -m lwrn_fast " + " ".join(arguments)
        done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=300)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "cannot be written" in line
        assert list((tmp_path / "r").iterdir()) == []
        assert cli.main(arguments) == 0

    def test_interrupted(self, folder, tmp_path):
        out = tmp_path / "r"
        arguments = ["train", str(folder), "--out", str(out), "--epochs", "500", *SMALL, "--workers", "2"]
        command = [sys.executable, "-m", "lwrn_fast", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while not (out / "state.pt").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 130
        assert errors == f"{MARK}interrupted\n"
        assert not [path for path in out.iterdir() if "unfinished" in path.name]

    STATES = {
        "list": lambda state: [1],
        "nothing": lambda state: {},
        "no_losses": lambda state: {name: value for name, value in state.items() if name != "losses"},
        "other_weights": lambda state: state | {"model": {}},
        "other_optimiser": lambda state: state | {"optimizer": {}},
        "rows": lambda state: state | {"rows": 3},
    }

    @pytest.mark.parametrize("state", STATES)
    def test_states_of_others(self, state, trained, folder, tmp_path, capsys):
        torch.save(self.STATES[state](saving.load_state(trained)), tmp_path / "state.pt")
        arguments = ["train", str(folder), "--out", str(tmp_path), "--epochs", "2", *SMALL, "--resume"]
        assert cli.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{MARK}{tmp_path}/state.pt: cannot be resumed from (")
        assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


class TestKilled:
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


class TestProcesses:
    def torchrun(self, *arguments: str) -> str:
        """What two processes on the CPU say, which neither warn nor fail."""
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        return done.stdout

    @pytest.mark.slow
    def test_train_as_one(self, trained, folder, tmp_path):
        # the statistics of few pixels would make the network sensitive to the last bit
        arguments = ["train", str(folder), *SMALL, "--checkpoint", str(trained / "last.safetensors"), "--epochs", "2"]
        arguments += ["--freeze-bn", "--out"]
        text = self.torchrun("-m", "lwrn_fast", *arguments, str(tmp_path / "two"))
        assert text.count("8 images, 1 to validate with; 8 steps of 2 on cpu, 2 processes") == 1
        assert cli.main([*arguments, str(tmp_path / "one")]) == 0
        np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)
        np.testing.assert_allclose(metrics(tmp_path / "two"), metrics(tmp_path / "one"), rtol=1e-3, atol=1e-4)

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


class TestEval:
    @pytest.fixture
    def model(self) -> models.networks.Network:
        torch.manual_seed(0)
        model = models.rf_lw_mbv2(num_classes=6)
        preparing.initialise(model)
        return model.eval()

    def test_scales_and_flip(self, model):
        image, _ = generate.draw_image(0, "test", 0, (64, 96))
        x = models.preprocess(image)
        with torch.no_grad():
            total = sum(
                F.interpolate(
                    model(y).flip(3) if y is not x else model(y), (64, 96), mode="bilinear", align_corners=True
                ).softmax(1)
                for y in (x, x.flip(3))
            )
        got = evaluate.predict(model, image, evaluate.Options((1.0,), flip=True))
        assert (got == total.argmax(1)[0]).double().mean() > 0.999
        several = evaluate.predict(model, image, evaluate.Options((0.5, 1.0)))
        assert several.shape == (64, 96)
        assert several.dtype == torch.uint8
        mirrored = evaluate.predict(model, np.ascontiguousarray(image[:, ::-1]), evaluate.Options((1.0,), flip=True))
        assert (mirrored.flip(1) == got).double().mean() > 0.999

    def test_damaged_files_are_counted(self, trained, folder, tmp_path, capsys):
        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir()
            for i in range(3):
                source = folder / "train" / kind / f"0000{i}.png"
                (tmp_path / kind / source.name).write_bytes(source.read_bytes())
        (tmp_path / "images" / "00001.png").write_bytes(b"text")
        checkpoint, out = str(trained / "last.safetensors"), tmp_path / "scores.csv"
        assert cli.main(["eval", str(tmp_path), "--checkpoint", checkpoint, "--confusion", "--out", str(out)]) == 2
        captured = capsys.readouterr()
        assert captured.err == f"{MARK}{tmp_path}/images/00001.png: is not an image\n"
        assert "1 of 3 images could not be used and do not count" in captured.out
        assert int(read_csv(out)[-1]["pixels"]) == 2 * 64 * 64
        assert cli.main(["train", str(tmp_path), "--out", str(tmp_path / "r"), *SMALL, "--num-classes", "8"]) == 2
        assert capsys.readouterr().err == f"{MARK}{tmp_path}/images/00001.png: is not an image\n"


class TestBadInput:
    CASES = {
        "no_data": (["train", "{folder}/nope"], "{folder}/nope: no such folder"),
        "no_images": (["train", "{trained}"], "{trained}: has neither train/images nor images nor JPEGImages"),
        "no_classes": (
            ["train", "{folder}/train"],
            "has no classes.txt that says which classes there are; give --num-",
        ),
        "many_classes": (["train", "{folder}", "--num-classes", "256"], "--num-classes must be 1 to 255, got 256"),
        "large_batch": (["train", "{folder}", "--batch", "9"], "has 8 images to train on, fewer than a batch of 9"),
        "no_checkpoint": (["train", "{folder}", "--checkpoint", "{folder}/no.pth"], "cannot be read: No such file"),
        "scales": (["train", "{folder}", "--scales", "2", "1"], "--scales: 2 is more than 1"),
        "half_on_cpu": (["train", "{folder}", "--amp", "f16", "--device", "cpu"], "--amp f16 needs a GPU"),
        "diverges": (["train", "{folder}", *SMALL, "--clip", "0", "--decoder-lr", "1e9"], "try lower learning rates"),
        "eval_classes": (["eval", "{folder}", "--checkpoint", "{five}"], "has 5 classes, {folder} has 8"),
        "eval_checkpoint": (
            ["eval", "{folder}", "--checkpoint", "{folder}/classes.txt"],
            "neither a PyTorch nor a safe",
        ),
    }

    @pytest.mark.parametrize("case", CASES)
    def test_one_line(self, case, folder, trained, five, tmp_path, capsys):
        arguments, message = self.CASES[case]
        places = {"folder": folder, "trained": trained, "five": five}
        arguments = [argument.format(**places) for argument in arguments]
        if arguments[0] == "train":
            arguments += ["--out", str(tmp_path / "out")]
        assert cli.main(arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(MARK)
        assert message.format(**places) in lines[0]
        assert not list(tmp_path.rglob("*.*"))

    @pytest.mark.parametrize(
        "options", [["--epochs", "0"], ["--encoder-lr", "x"], ["--seed", "-1"], ["--amp", "int8"], ["--model", "vgg"]]
    )
    def test_on_parsing(self, options, tmp_path, capsys):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["train", ".", "--out", str(tmp_path / "out"), *options])
        assert stopped.value.code == 2
        assert options[0] in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_without_torchmetrics(self, folder, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "torchmetrics.classification", None)
        assert cli.main(["train", str(folder), "--out", str(tmp_path / "out"), *SMALL]) == 2
        assert capsys.readouterr().err == f"{MARK}metrics need torchmetrics: pip install 'lwrn-fast[train]'\n"

    def test_damaged_state(self, folder, tmp_path, capsys):
        (tmp_path / "state.pt").write_bytes(b"text")
        assert cli.main(["train", str(folder), "--out", str(tmp_path), *SMALL, "--resume"]) == 2
        assert "state.pt: cannot be resumed from" in capsys.readouterr().err
