"""The command `lwrn-fast export`: what it writes, and one clear line for everything that can be wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lwrn_fast import cli, export, models
from support.exporting import Small, error, needs_compiler, results, run_onnx


def in_place(model: Small, x: torch.Tensor, act=torch.relu_) -> torch.Tensor:
    fine = model.fine(x)
    return model.decoder([act(fine) + fine, model.coarse(fine)])


@pytest.fixture
def small(monkeypatch) -> Small:
    """The model that the command exports, in place of the one it is asked for."""
    model = Small().eval()
    monkeypatch.setattr("lwrn_fast.inference.segment.build", lambda options: (model, False))
    return model


class TestCommand:
    def main(self, *arguments: object) -> int:
        return cli.main(["export", *map(str, arguments)])

    def check_error(self, capsys: pytest.CaptureFixture, folder: Path, text: str) -> None:
        """One line on stderr, and nothing left of the file."""
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("lwrn-fast: error: ")
        assert text in line
        assert not [path for path in folder.iterdir() if path.name.startswith((".", "net"))]

    @pytest.mark.slow
    def test_a_whole_network_to_onnx(self, tmp_path):
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
        path, image = tmp_path / "net.onnx", torch.randn(1, 3, 64, 96)
        command = [sys.executable, "-m", "lwrn_fast", "export", "--to", "onnx", "--size", "64", "96", "--out", path]
        command += ["--checkpoint", models.SHAPES]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        first, second, third = done.stdout.splitlines()
        assert first == "rf_lw_mbv2, 8 classes, trained weights"
        assert second == f"{path}: {path.stat().st_size / 1e6:.1f} MB, for (1, 3, 64, 96) float32"
        assert third.startswith("run by ONNX Runtime: difference to PyTorch ")
        assert float(third.split()[7]) < 1e-4
        model = models.load(models.SHAPES)
        assert error(run_onnx(path, image), results(model, (image,))) < 1e-4

    @pytest.mark.slow
    @needs_compiler
    def test_labels_as_a_package(self, small, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
        path = tmp_path / "net.pt2"
        assert self.main("--to", "aoti", "--out", path, "--size", 40, 64, "--dynamic", "--labels") == 0
        assert capsys.readouterr().out.splitlines() == [
            "small, 5 classes, UNTRAINED weights",
            f"{path}: {path.stat().st_size / 1e6:.1f} MB, for any (N, 3, H, W) float32",
            "run as compiled: difference to PyTorch 0.0000 % of the labels",
        ]

    def test_safetensors(self, tmp_path, capsys):
        path = tmp_path / "net.safetensors"
        assert self.main("--to", "safetensors", "--out", path, "--num-classes", 7) == 0
        assert capsys.readouterr().out.endswith("read back: difference to PyTorch 0.0e+00 of the largest value\n")
        assert models.load(path).num_classes == 7

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            pytest.param("--to tensorrt --out net.onnx", "--to: invalid choice: 'tensorrt'", id="format"),
            pytest.param("--to onnx", "required: --out", id="no_out"),
            pytest.param("--to onnx --out net.onnx --size 0 9", "--size: must be a whole number", id="size"),
        ],
    )
    def test_on_parsing(self, arguments, text, tmp_path, capsys):
        with pytest.raises(SystemExit) as stopped:
            self.main(*arguments.split())
        assert stopped.value.code == 2
        self.check_error(capsys, tmp_path, text)

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            pytest.param("--to onnx --out {0}/net.pt2", "--out must end in .onnx for onnx, got '", id="ending"),
            pytest.param("--to onnx --out {0}/no/net.onnx", "net.onnx: cannot be written (no such file", id="folder"),
            pytest.param("--to aoti --out {0}/a.pt2", "a.pt2: cannot be written (is a directory)", id="is_folder"),
            pytest.param("--to onnx --out {0}/net.onnx --checkpoint {0}/no", "/no: cannot be read", id="checkpoint"),
            pytest.param("--to onnx --out {0}/net.onnx --num-classes 300", "must be 1 to 256, got 300", id="classes"),
            pytest.param("--to safetensors --out {0}/net.safetensors --labels", "--labels is not for", id="labels"),
        ],
    )
    def test_bad_input(self, arguments, text, tmp_path, capsys):
        (tmp_path / "a.pt2").mkdir()
        assert self.main(*arguments.format(tmp_path).split()) == 2
        self.check_error(capsys, tmp_path, text)

    def test_without_onnx(self, small, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
        assert self.main("--to", "onnx", "--out", tmp_path / "net.onnx") == 2
        self.check_error(capsys, tmp_path, "needs onnx and onnxscript: pip install 'lwrn-fast[onnx]'")

    @needs_compiler
    def test_without_a_compiler(self, small, tmp_path, capsys, monkeypatch):
        def absent(*_: object, **__: object) -> None:
            raise RuntimeError("No working C++ compiler found\nand more lines")

        monkeypatch.setattr("torch._inductor.aoti_compile_and_package", absent)
        assert self.main("--to", "aoti", "--out", tmp_path / "net.pt2", "--size", 40, 64) == 2
        self.check_error(capsys, tmp_path, "net.pt2: No working C++ compiler found")

    @pytest.mark.slow
    def test_compares_with_the_untouched_network(self, small, tmp_path, capsys, monkeypatch):
        """A network with operations in place; and a file of the network without them is an error."""
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
        monkeypatch.setattr(Small, "forward", lambda model, x: in_place(model, x))
        path = tmp_path / "net.onnx"
        assert self.main("--to", "onnx", "--out", path, "--size", 40, 64, "--dynamic") == 0
        assert float(capsys.readouterr().out.splitlines()[2].split()[7]) < 1e-5
        plain = type("Plain", (Small,), {"forward": lambda model, x: in_place(model, x, torch.relu)})().eval()
        plain.load_state_dict(small.state_dict())
        export_it = export.to_onnx
        monkeypatch.setattr(export, "to_onnx", lambda model, *rest, **more: export_it(plain, *rest, **more))
        assert self.main("--to", "onnx", "--out", path, "--size", 40, 64) == 2
        assert "differs from PyTorch by" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("forward", "text"),
        [
            pytest.param(lambda model, x: model.fine(x) if x.sum() > 0 else x, "decides by the values", id="value"),
            pytest.param(lambda model, x: model.coarse(x), "Given groups=1, weight of size", id="sizes"),
            pytest.param(lambda model, x: object(), "must return tensors", id="object"),
        ],
    )
    def test_what_cannot_be_exported(self, small, forward, text, tmp_path, capsys, monkeypatch):
        for package in ("onnx", "onnxscript"):
            pytest.importorskip(package)
        monkeypatch.setattr(Small, "forward", forward)
        assert self.main("--to", "onnx", "--out", tmp_path / "net.onnx", "--size", 40, 64) == 2
        self.check_error(capsys, tmp_path, text)

    def test_a_wrong_file_is_an_error(self, small, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(export, "compare", lambda *_: float("nan"))
        assert self.main("--to", "safetensors", "--out", tmp_path / "net.safetensors") == 2
        assert "differs from PyTorch by nan of the largest value" in capsys.readouterr().err

    def test_without_a_runtime(self, small, tmp_path, capsys, monkeypatch):
        def absent(*_: object) -> None:
            raise ImportError("compare: needs onnxruntime: pip install onnxruntime")

        monkeypatch.setattr(export, "compare", absent)
        assert self.main("--to", "safetensors", "--out", tmp_path / "net.safetensors") == 0
        assert "not compared with PyTorch (compare: needs onnxruntime: " in capsys.readouterr().out
