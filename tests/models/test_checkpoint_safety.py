"""Checkpoints are untrusted files: nothing in one runs, is imported or leaves anything behind."""

import builtins
import copyreg
import ctypes
import functools
import importlib
import os
import pickle
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from lwrn_fast import models
from lwrn_fast.models import CheckpointError
from support.checkpoint_layouts import CLASSES, ROWS, module_of

ALLOWED = torch.serialization.get_safe_globals
STATE = dict(models.rf_lw_mbv2(num_classes=3).state_dict())


class Reduced:
    """An object pickled as a call of this function with these arguments, which unpickling would execute."""

    def __init__(self, function: object, *arguments: object, state: object = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.call

    def __call__(self) -> None:
        """Do nothing: pickle writes only calls of callables."""


ATTACKS = {
    "os.system": lambda trap: Reduced(os.system, f"touch {trap}"),
    "eval": lambda trap: Reduced(builtins.eval, f"open({trap!r}, 'w')"),
    "exec": lambda trap: Reduced(builtins.exec, f"open({trap!r}, 'w')"),
    "open": lambda trap: Reduced(builtins.open, trap, "w"),
    "subprocess": lambda trap: Reduced(subprocess.run, ["touch", trap]),
    "popen": lambda trap: Reduced(subprocess.Popen, ["touch", trap]),
    "import": lambda trap: Reduced(importlib.import_module, "this"),
    "__import__": lambda trap: Reduced(builtins.__import__, "this"),
    "getattr": lambda trap: Reduced(builtins.getattr, Reduced(importlib.import_module, "os"), "system"),
    "call of a call": lambda trap: Reduced(Reduced(functools.partial, os.mkdir), trap),
    "partial": lambda trap: functools.partial(builtins.open, trap, "w"),
    "method": lambda trap: Reduced(Path(trap).touch),
    "touch": lambda trap: Reduced(Path.touch, Path(trap)),
    "torch.save": lambda trap: Reduced(torch.save, {}, trap),
    "torch.load": lambda trap: Reduced(torch.load, trap),
    "hub": lambda trap: Reduced(torch.hub.load, trap, "x", "local"),
    "library": lambda trap: Reduced(ctypes.CDLL, trap),
    "state": lambda trap: Reduced(Path, state={"touch": trap}),
    "copyreg": lambda trap: Reduced(copyreg._reconstructor, Path, object, None),
    "tensor with attributes": lambda trap: Reduced(
        torch._tensor._rebuild_from_type_v2,
        torch._utils._rebuild_parameter,
        torch.nn.Parameter,
        (torch.ones(3), True, {}),
        {"detach": 3, "dim": 4},
    ),
}


class TestNothingRuns:
    @pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
    @pytest.mark.parametrize("attack", ATTACKS)
    def test_the_weights_load_or_one_line_says_why_not(self, attack, legacy, tmp_path, monkeypatch):
        trap, path = tmp_path / "trap", tmp_path / "weights.pth"
        torch.save(
            {"state_dict": STATE, "x": ATTACKS[attack](str(trap))}, path, _use_new_zipfile_serialization=not legacy
        )
        sys.modules.pop("this", None)
        before, allowed = set(sys.modules), set(ALLOWED())
        for owner, name in ((os, "system"), (subprocess, "Popen"), (importlib, "import_module"), (torch, "save")):
            monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("something in the file was called"))
        said = f"{path}: "
        try:
            assert models.load(path).num_classes == 3
        except CheckpointError as error:
            said = str(error)
        assert said.startswith(f"{path}: ")
        assert "\n" not in said
        assert not trap.exists()
        assert "this" not in set(sys.modules) - before
        assert set(ALLOWED()) == allowed

    @pytest.mark.parametrize("attack", ["eval", "subprocess", "call of a call", "touch", "getattr"])
    def test_within_the_weights(self, attack, tmp_path):
        """A call takes the position of a tensor."""
        trap, path = tmp_path / "trap", tmp_path / "weights.pth"
        torch.save({**STATE, "conv8.weight": ATTACKS[attack](str(trap))}, path)
        with pytest.raises(
            CheckpointError, match=r"1 missing \(conv8.weight\)|loaded from files for safety \(posix.mkdir\)"
        ):
            models.load(path)
        assert not trap.exists()

    @pytest.mark.parametrize("attack", ["os.system", "eval", "touch"])
    def test_a_plain_pickle(self, attack, tmp_path):
        trap, path = tmp_path / "trap", tmp_path / "weights.pth"
        for protocol in (0, 2, 5):
            path.write_bytes(pickle.dumps(ATTACKS[attack](str(trap)), protocol))
            with pytest.raises(CheckpointError):
                models.load(path)
            assert not trap.exists()

    def test_a_class_of_the_trainer_is_not_asked_for(self, tmp_path):
        """This holds even if a module of that name exists."""
        calls = []

        class Config:
            def __setstate__(self, state: object) -> None:
                calls.append(state)

            def __getstate__(self) -> dict:
                return {"a": 1}

        Config.__qualname__ = "Config"
        with module_of("trainer_of_somebody", Config):
            torch.save({"model": STATE, "config": Config()}, tmp_path / "weights.pth")
            assert models.load(tmp_path / "weights.pth").num_classes == 3
        assert calls == []

    def test_what_the_program_has_allowed_stays_allowed(self, tmp_path):
        with module_of("trainer_of_somebody", *CLASSES):
            torch.save(ROWS["objects"].build(STATE), tmp_path / "weights.pth")
            with torch.serialization.safe_globals([CLASSES[2], (CLASSES[0], "somebody.Config")]):
                allowed = set(ALLOWED())
                models.load(tmp_path / "weights.pth")
                assert set(ALLOWED()) == allowed


class TestOddFiles:
    def test_attributes_that_hide_methods(self, tmp_path):
        """A file may give an OrderedDict a state, which becomes attributes."""

        class Hiding(OrderedDict):
            def __reduce__(self) -> tuple:
                return OrderedDict, (), {"items": 3, "keys": 4, "values": 5, "get": 6}, None, iter(STATE.items())

        torch.save({"model": Hiding()}, tmp_path / "weights.pth")
        assert models.load(tmp_path / "weights.pth").num_classes == 3

    def test_containers_within_containers(self, tmp_path):
        inner: list = []
        for _ in range(60):
            inner = [inner, inner]  # 2 ** 60 paths through 60 lists
        torch.save({"x": inner, "model": STATE}, tmp_path / "weights.pth")
        assert models.load(tmp_path / "weights.pth").num_classes == 3

    def test_a_tensor_that_claims_more_than_there_is(self, tmp_path):
        huge = torch.zeros(()).expand(2**40)
        content = {**STATE, "x.weight_orig": huge, "x.weight_mask": huge}
        content["y.weight"] = torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1), (2**40,))
        torch.save(content, tmp_path / "weights.pth")
        assert models.load(tmp_path / "weights.pth").num_classes == 3

    @pytest.mark.parametrize("keep", [4, 40, 400, 4000, -1, -100, -4000])
    @pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
    def test_cut_off(self, keep, legacy, tmp_path):
        path = tmp_path / "weights.pth"
        with module_of("trainer_of_somebody", *CLASSES):
            torch.save(ROWS["objects"].build(STATE), path, _use_new_zipfile_serialization=not legacy)
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(CheckpointError) as raised:
            models.load(path)
        assert "\n" not in str(raised.value)

    def test_names_that_are_no_text(self, tmp_path):
        torch.save(
            {("a", 1): torch.ones(3), 3: torch.ones(3), b"x": 1, "conv8\n.weight": torch.ones(3)}, tmp_path / "w.pth"
        )
        with pytest.raises(CheckpointError) as raised:
            models.load(tmp_path / "w.pth")
        assert "\n" not in str(raised.value)

    def test_strings_of_python_2(self, tmp_path):
        """Strings of Python 2, frequent in the files of 2018, are pickled as bytes, also those of NumPy's scalars."""
        import io
        import zipfile

        path = tmp_path / "weights.pth"
        torch.save({"segmenter": STATE, "best_val": 0.5}, path)
        with zipfile.ZipFile(path) as archive:
            files = {info.filename: archive.read(info) for info in archive.infolist()}
        name = next(name for name in files if name.endswith("data.pkl"))
        number = pickle.BINFLOAT + bytes.fromhex("3fe0000000000000")
        scalar = (
            b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff"
            b"\xff\xffK\x00tbU\x08\xcd\xcc\xcc\xcc\xcc\xcc\xec\x3f\x86R"
        )
        assert files[name].count(number) == 1
        files[name] = files[name].replace(number, scalar)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for each, content in files.items():
                archive.writestr(each, content)
        path.write_bytes(buffer.getvalue())
        assert models.load(path).num_classes == 3

    def test_from_several_threads(self, tmp_path):
        """torch keeps one list of what is allowed for all threads."""
        path = tmp_path / "weights.pth"
        with module_of("trainer_of_somebody", *CLASSES):
            torch.save(ROWS["objects"].build(STATE), path)
        errors: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(3):
                    assert models.load(path).num_classes == 3
            except BaseException as error:
                errors.append(error)

        allowed = set(ALLOWED())
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert set(ALLOWED()) == allowed
