"""Errors of training and evaluation: one line, exit code 2, and no partial files."""

import signal
import subprocess
import sys
import time

import pytest
import torch

from lwrn_fast import cli
from lwrn_fast.training import evaluate, generate, preparing, saving
from support.training_runs import MARK, SMALL


class TestUnexpected:
    """Any failure becomes one line and exit code 2."""

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
        """No partial file is left, and the same command works where there is room."""
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
        paths = {"folder": folder, "trained": trained, "five": five}
        arguments = [argument.format(**paths) for argument in arguments]
        if arguments[0] == "train":
            arguments += ["--out", str(tmp_path / "out")]
        assert cli.main(arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(MARK)
        assert message.format(**paths) in lines[0]
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
