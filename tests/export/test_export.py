"""Exported files: ONNX, packages of AOTInductor, which run with and without Python, and safetensors."""

import collections
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import lwrn_fast
from lwrn_fast import export, models
from lwrn_fast.backends import native
from lwrn_fast.models.networks import ResNetNetwork
from support.exporting import Small, error, needs_compiler, results, run_onnx

RUNNER = Path(__file__).parents[2] / "csrc" / "examples" / "run_package.cpp"


def tiny_model() -> models.base.Network:
    """Return a model with every form of level, two consecutive 1x1 convolutions among them."""
    return ResNetNetwork("tiny", (1, 1, 1, 1), 5, torch.channels_last).eval()


def decoder() -> models.Decoder:
    return models.Decoder([6, 8, 10], 5, planes=8, groups=True, activation="relu6", align_corners=False).eval()


def features(batch: int, *sizes: tuple[int, int]) -> tuple[list[Tensor]]:
    return ([torch.randn(batch, channels, *size) for channels, size in zip((6, 8, 10), sizes, strict=True)],)


class TestOnnx:
    @pytest.fixture(autouse=True)
    def _needed(self):
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)

    def graph(self, path: Path):
        """Return the file's graph, which must hold standard operators alone."""
        import onnx

        program = onnx.load(path)
        onnx.checker.check_model(program, full_check=True)
        assert {node.domain for node in program.graph.node} == {""}
        assert [opset.domain for opset in program.opset_import] == [""]
        assert not program.functions
        return program.graph

    def test_fusion_of_any_size(self, tmp_path):
        path = tmp_path / "fusion.onnx"
        fusion = lwrn_fast.Fusion([6, 4], 5, activation="relu6", align_corners=False, bias=True).eval()
        export.to_onnx(fusion, (torch.rand(1, 6, 7, 9), torch.rand(1, 4, 4, 3)), path, dynamic=True)
        shapes = [node.type.tensor_type.shape.dim for node in self.graph(path).input]
        sizes = [[dim.dim_param or dim.dim_value for dim in shape] for shape in shapes]
        assert sizes == [["batch", 6, "height", "width"], ["batch", 4, "height1", "width1"]]
        for fine, coarse in (((7, 9), (4, 3)), ((5, 5), (5, 5)), ((3, 2), (6, 7)), ((8, 6), (1, 1))):
            maps = torch.randn(2, 6, *fine), torch.randn(2, 4, *coarse)
            assert error(run_onnx(path, *maps), results(fusion, maps)) < 1e-6

    def test_depthwise_crp(self, tmp_path):
        path = tmp_path / "crp.onnx"
        crp, x = lwrn_fast.CRP(6, 6, n_stages=2, groups=True, bias=True).eval(), torch.randn(2, 6, 7, 9)
        export.to_onnx(crp, x, path)
        graph = self.graph(path)
        assert collections.Counter(node.op_type for node in graph.node) == {"MaxPool": 2, "Conv": 2, "Add": 2}
        assert {weight.name for weight in graph.initializer} == set(crp.state_dict())
        assert error(run_onnx(path, x), results(crp, (x,))) < 1e-6

    @pytest.mark.slow
    def test_decoder_to_labels(self, tmp_path):
        path, model = tmp_path / "decoder.onnx", decoder()
        example = features(1, (12, 14), (6, 7), (3, 4))
        export.to_onnx(model, example, path, dynamic=True, labels=True)
        graph = self.graph(path)
        assert [node.op_type for node in graph.node][-2:] == ["ArgMax", "Cast"]
        assert [node.name for node in graph.output] == ["labels"]
        for maps in (example, features(3, (9, 9), (5, 5), (2, 3)), features(2, (1, 1), (1, 1), (1, 1))):
            got = run_onnx(path, *maps[0])
            assert got.dtype == torch.uint8
            assert (got != results(model, maps, labels=True)).float().mean() < 0.01

    @pytest.mark.slow
    def test_model_is_folded_and_silent(self, tmp_path, capfd):
        path, model, image = tmp_path / "tiny.onnx", tiny_model(), torch.randn(1, 3, 64, 64)
        level = logging.getLogger("torch.onnx").level
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            export.to_onnx(model, image, path)
        assert capfd.readouterr() == ("", "")
        assert logging.getLogger("torch.onnx").level == level
        graph = self.graph(path)
        # No batch normalisation is left, and no product of weights.
        assert {node.op_type for node in graph.node} == {"Conv", "Relu", "Add", "MaxPool", "Resize"}
        assert not {weight.name for weight in graph.initializer} & {"p_ims1d2_outl2_dimred.weight"}
        assert [node.name for node in (*graph.input, *graph.output)] == ["image", "logits"]
        assert error(run_onnx(path, image), results(model, (image,))) < 1e-5
        assert export.compare(path, model, image) < 1e-5
        assert export.compare(path, tiny_model(), image) > 1e-3  # the weights differ

    def test_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"to_onnx: needs onnx and onnxscript: pip install 'lwrn-fast\[onnx\]'"):
            export.to_onnx(lwrn_fast.CRP(2, 2).eval(), torch.rand(1, 2, 3, 3), tmp_path / "a.onnx")


@needs_compiler
class TestAoti:
    @pytest.fixture(autouse=True)
    def _cache(self, tmp_path_factory, monkeypatch):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "inductor"))

    @pytest.mark.slow
    def test_any_size_and_strides(self, tmp_path):
        path, model = tmp_path / "decoder.pt2", decoder()
        export.to_aoti(model, features(1, (12, 14), (6, 7), (3, 4)), path, dynamic=True, labels=True)
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
        run = torch._inductor.aoti_load_package(str(path))
        for batch, *sizes in ((1, (12, 14), (6, 7), (3, 4)), (3, (9, 9), (5, 5), (2, 3)), (1, (1, 1), (1, 1), (1, 1))):
            maps = features(batch, *sizes)
            expected = results(model, maps, labels=True)
            last = [x.contiguous(memory_format=torch.channels_last) for x in maps[0]]
            turned = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in maps[0]]
            for layout in (maps[0], last, turned):
                assert torch.equal(run(layout), expected)
        with pytest.raises(RuntimeError, match=r"input must be \(any, 8, any, any\), got \(1, 7, 5, 5\)"):
            run([torch.rand(1, 6, 9, 9), torch.rand(1, 7, 5, 5), torch.rand(1, 10, 3, 3)])
        with pytest.raises(RuntimeError, match="must be of the dtype it was exported with"):
            run([x.double() for x in maps[0]])

    @pytest.mark.slow
    def test_without_python(self, tmp_path):
        """The program in csrc/examples, compiled as it says, gives PyTorch's result."""
        torch_folder = Path(torch.__file__).parent
        program, path = tmp_path / "run_package", tmp_path / "small.pt2"
        model, image = Small().eval(), torch.randn(2, 3, 64, 96)
        command = next(line for line in RUNNER.read_text().splitlines() if "g++" in line).lstrip("/ ")
        command = command.replace("$T", str(torch_folder)).replace(" run_package.cpp", f" {RUNNER}")
        subprocess.run(command.replace("-o run_package", f"-o {program}").split(), check=True, timeout=300)
        export.to_aoti(model, image, path)
        image.numpy().tofile(tmp_path / "image.f32")

        def run(size: str, given: str | Path) -> subprocess.CompletedProcess:
            arguments = [program, native.OPS, path, size, given, tmp_path / "out.bin"]
            return subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)

        done = run("2x3x64x96", tmp_path / "image.f32")
        assert done.stdout.startswith("Float [2, 5, 16, 24] in "), done.stderr
        got = torch.from_numpy(np.fromfile(tmp_path / "out.bin", np.float32)).view(2, 5, 16, 24)
        assert error(got, results(model, (image,))) < 1e-5
        assert run("2x3x64x96", "-").returncode == 0
        for size, given, message in (
            ("1x3x64x64", "-", "run_package: the package's input must be (2, 3, 64, 96), got (1, 3, 64, 64)"),
            ("2xx64x96", "-", "run_package: SIZE must be such as 1x3x512x512, got 2xx64x96"),
            ("2x3x64x64", tmp_path / "image.f32", f"run_package: {tmp_path}/image.f32: must hold 98304 bytes"),
            ("2x3x64x96", tmp_path / "no.f32", f"run_package: {tmp_path}/no.f32: cannot be read"),
        ):
            failed = run(size, given)
            assert failed.returncode == 1
            assert message in failed.stderr.splitlines()

    def test_needs_the_compiled_part(self, tmp_path, monkeypatch):
        monkeypatch.setattr(native, "missing", lambda: "it is not there")
        with pytest.raises(RuntimeError, match="to_aoti: it is not there"):
            export.to_aoti(lwrn_fast.CRP(2, 2).eval(), torch.rand(1, 2, 3, 3), tmp_path / "a.pt2")


class TestSafetensors:
    def test_model(self, tmp_path):
        from safetensors import safe_open

        path, model = tmp_path / "net.safetensors", models.rf_lw_mbv2(num_classes=7)
        export.to_safetensors(model, path)
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"network": "rf_lw_mbv2", "num_classes": "7"}
        loaded = models.load(path)
        assert (loaded.name, loaded.num_classes) == ("rf_lw_mbv2", 7)
        assert list(loaded.state_dict()) == list(model.state_dict())
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
        assert export.compare(path, model, torch.rand(1, 3, 8, 8)) == 0

    def test_shared_and_strided_weights(self, tmp_path):
        path, block = tmp_path / "block.safetensors", lwrn_fast.CRP(4, 4, n_stages=2)
        block._modules["2_outvar_dimred"] = block._modules["1_outvar_dimred"].to(memory_format=torch.channels_last)
        export.to_safetensors(block, path)
        assert export.compare(path, block, torch.rand(1, 4, 8, 8)) == 0


BLOCK = lwrn_fast.CRP(2, 2).eval()
IMAGE = torch.rand(1, 2, 3, 3)


class TestErrors:
    @pytest.mark.parametrize(
        "to", [pytest.param(export.to_onnx, id="onnx"), pytest.param(export.to_aoti, id="aoti", marks=needs_compiler)]
    )
    def test_arguments(self, to, tmp_path):
        if to is export.to_onnx:
            pytest.importorskip("onnxscript")
        path = tmp_path / ("a.onnx" if to is export.to_onnx else "a.pt2")
        name = to.__name__
        with pytest.raises(ValueError, match=f"{name}: model must be in eval mode, got one in training mode"):
            to(lwrn_fast.CRP(2, 2), IMAGE, path)
        with pytest.raises(TypeError, match=f"{name}: model must be a torch.nn.Module, got function"):
            to(lwrn_fast.crp, IMAGE, path)
        with pytest.raises(TypeError, match=f"{name}: example must be a tensor, or a tuple of .*, got int"):
            to(BLOCK, (IMAGE, 3), path)
        with pytest.raises(ValueError, match=f"{name}: path must end in {path.suffix}, got '.*a.bin'"):
            to(BLOCK, IMAGE, tmp_path / "a.bin")
        with pytest.raises(OSError, match="No such file"):
            to(BLOCK, IMAGE, tmp_path / "no" / path.name)
        with pytest.raises(ValueError, match=rf"{name}: example must hold a tensor \(N, C, H, W\), .*, got none"):
            to(torch.nn.Linear(2, 2).eval(), torch.rand(1, 2), path, labels=True)
        assert list(tmp_path.iterdir()) == []

    @needs_compiler
    def test_another_device(self, tmp_path):
        with pytest.raises(ValueError, match="to_aoti: model and example must be on the CPU, got meta"):
            export.to_aoti(BLOCK, IMAGE.to("meta"), tmp_path / "a.pt2")

    def test_a_failed_write_leaves_what_was_there(self, tmp_path, monkeypatch):
        path = tmp_path / "block.safetensors"
        export.to_safetensors(BLOCK, path)
        before = path.read_bytes()

        def half(state: object, path: Path, about: object) -> None:
            path.write_text("half")
            raise RuntimeError("the disk is full")

        monkeypatch.setattr("safetensors.torch.save_file", half)
        with pytest.raises(RuntimeError, match="the disk is full"):
            export.to_safetensors(BLOCK, path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_compare_tells_shapes_and_nan(self, tmp_path):
        assert export._difference(torch.zeros(2), torch.zeros(3)) == float("inf")
        assert export._difference(torch.tensor([torch.nan]), torch.zeros(1)) == float("inf")
        assert export._difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])) == 0.5


def test_import_is_light():
    code = "import sys; import torch; before = set(sys.modules); import lwrn_fast; print(set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for module in ("onnx", "onnxscript", "onnxruntime", "torch._inductor", "torch._dynamo", "safetensors", "PIL"):
        assert f"'{module}'" not in loaded


def test_torch_export_of_any_batch_and_size():
    model, anything = tiny_model(), torch.export.Dim.DYNAMIC
    with torch.no_grad():
        shapes = ({0: anything, 2: anything, 3: anything},)
        program = torch.export.export(model, (torch.rand(2, 3, 64, 96),), dynamic_shapes=shapes)
        assert any(node.target is torch.ops.lwrn_fast.crp.default for node in program.graph.nodes) or native.missing()
        for shape in ((2, 3, 64, 96), (3, 3, 65, 130)):
            image = torch.randn(shape)
            assert error(program.module()(image), model(image)) < 1e-5

