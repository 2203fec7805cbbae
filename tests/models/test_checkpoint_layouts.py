"""Every layout that training scripts write loads or gives its error; docs/models.md has the table."""

import io
import json
import logging
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lwrn_fast import models
from lwrn_fast.models import CheckpointError
from support.checkpoint_layouts import CLASSES, ROWS, larger, module_of, multi_task_names, prefixed

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = models.rf_lw_mbv2(num_classes=7)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
    return network.state_dict()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


def save(content: object, path: Path, **options: object) -> None:
    """Save as torch.save, with the layouts' classes in a trainer's module that does not exist afterwards."""
    with module_of("trainer_of_somebody", *CLASSES):
        torch.save(content, path, **options)


def assert_holds(model: torch.nn.Module, state: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    assert not model.training
    got = model.state_dict()
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            assert got[name].dtype == torch.float32
            torch.testing.assert_close(got[name], value, rtol=tolerance, atol=tolerance)


class TestRows:
    @pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
    @pytest.mark.parametrize("name", ROWS)
    def test_loads_or_says_why_not(self, name, legacy, state, path):
        row = ROWS[name]
        save(row.build(state), path, _use_new_zipfile_serialization=not legacy)
        if row.line is not None:
            with pytest.raises(CheckpointError) as raised:
                models.load(path, **row.wanted)
            assert str(raised.value).startswith(f"{path}: {row.line}")
            assert "\n" not in str(raised.value)
            return
        model = models.load(path, **row.wanted)
        assert model.num_classes == 7
        assert model.loaded.averaged == row.averaged
        assert model.loaded.untrained == ()
        wanted = state
        if name == "multi-task":
            assert model.name == "rf_lw_mbv2_multi_task"
            wanted = {k: v for k, v in multi_task_names().items() if "depth" not in k}
        elif name == "average of parameters":
            wanted = {k: v if "running" in k else v + 1 for k, v in state.items()}
        elif row.averaged and name != "averaged model":
            wanted = larger(state)
        assert_holds(model, wanted, 1e-3 if name == "half" else 1e-6)

    @pytest.mark.parametrize("name", ROWS)
    def test_is_in_the_table(self, name):
        lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {name} |")]
        assert len(lines) == 1
        cells = [cell.strip() for cell in lines[0].strip("|").split("|")]
        assert cells[1] == ROWS[name].writer
        if ROWS[name].line is not None:
            assert cells[2].strip("`") == ROWS[name].line.strip()


class TestSeveralWeights:
    @pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.averaged and name != "averaged model"])
    def test_the_trained_ones_can_be_chosen(self, name, state, path):
        save(ROWS[name].build(state), path)
        model = models.load(path, weights="model")
        assert_holds(model, state)
        assert not model.loaded.averaged
        assert models.load(path, weights="ema").loaded.averaged

    def test_the_choice_is_said_once(self, state, path, caplog):
        save(ROWS["timm"].build(state), path)
        with caplog.at_level(logging.WARNING, "lwrn_fast"):
            models.load(path)
            models.load(path)
        (line,) = [record.getMessage() for record in caplog.records]
        assert "those of 'state_dict_ema' (the moving average) are taken" in line
        assert "'state_dict'" in line

    def test_an_exact_key(self, state, path):
        save({"student": prefixed(state, "backbone."), "teacher": larger(state), "best": larger(larger(state))}, path)
        for key, wanted in (("student", state), ("teacher", larger(state)), ("best", larger(larger(state)))):
            model = models.load(path, weights=key)
            assert_holds(model, wanted)
            assert model.loaded.weights.startswith(key)

    def test_prefixes_in_one_state_dict(self, state, path):
        save({"state_dict": {**prefixed(larger(state), "ema_model."), **prefixed(state, "model.")}}, path)
        assert_holds(models.load(path), larger(state))
        assert_holds(models.load(path, weights="model"), state)

    def test_a_key_that_is_not_there(self, state, path):
        save({"model": state}, path)
        with pytest.raises(CheckpointError, match=r"has no weights 'ema', but 'model'$"):
            models.load(path, weights="ema")

    def test_equal_ones_are_not_spoken_of(self, state, path, caplog):
        save({"model": state, "best": {k: v.clone() for k, v in state.items()}}, path)
        with caplog.at_level(logging.WARNING, "lwrn_fast"):
            models.load(path)
        assert not caplog.records


class TestWhatIsLeftOut:
    def test_is_named(self, state, path, caplog):
        save({"state_dict": {**state, "aux.conv.weight": torch.rand(3, 3), "loss.weight": torch.rand(7)}}, path)
        with caplog.at_level(logging.WARNING, "lwrn_fast"):
            model = models.load(path)
        assert model.loaded.ignored == ("state_dict.aux.conv.weight", "state_dict.loss.weight")
        (line,) = [record.getMessage() for record in caplog.records]
        assert line == (
            f"{path}: 2 entries are not rf_lw_mbv2's and are left out (state_dict.aux.conv.weight, "
            "state_dict.loss.weight)"
        )

    @pytest.mark.parametrize(
        "name", ["conv8.bias", "segm.2.weight", "crp5.0.1_outvar_dimred.weight", "layer2.0.se.weight"]
    )
    def test_but_what_is_within_the_network(self, name, state, path):
        save({**state, name: torch.rand(3)}, path)
        with pytest.raises(CheckpointError, match=f"1 unexpected \\({name}\\)$"):
            models.load(path)

    def test_residual_units_are_another_network(self, path):
        with torch.device("meta"):
            shapes = {k: v.shape for k, v in models.rf_lw50(5, rcu=True).state_dict().items()}
        save({k: torch.zeros(()).expand(shape) for k, shape in shapes.items()}, path)
        with pytest.raises(CheckpointError, match=r"unexpected \(adapt_stage1_b\.0\."):
            models.load(path, network="rf_lw50")

    def test_numbers_that_are_none_are_said(self, state, path, caplog):
        save({**state, "conv7.weight": torch.full_like(state["conv7.weight"], float("nan"))}, path)
        with caplog.at_level(logging.WARNING, "lwrn_fast"):
            models.load(path)
        assert "1 entries hold NaN or infinity (conv7.weight)" in caplog.text


class TestMissingParts:
    """A missing classifier or decoder is untrained where num_classes is given."""

    def encoder(self, network: str = "rf_lw50") -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        state = models.NETWORKS[network](2).state_dict()
        return {k: v for k, v in state.items() if k.startswith(("conv1", "bn1", "layer"))}

    def classified(self, encoder: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**encoder, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}

    @pytest.mark.parametrize("prefix", ["", "backbone.", "module.encoder_q.", "encoder."])
    def test_an_encoder(self, prefix, path, caplog):
        encoder = self.encoder()
        save({"state_dict": prefixed(self.classified(encoder), prefix)}, path)
        with caplog.at_level(logging.WARNING, "lwrn_fast"):
            model = models.load(path, network="rf_lw50", num_classes=5)
        assert (model.name, model.num_classes) == ("rf_lw50", 5)
        assert_holds(model, encoder)
        assert "clf_conv.weight" in model.loaded.untrained
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())
        assert "has no decoder of rf_lw50, so that is untrained: labels mean nothing before training" in caplog.text

    def test_without_classes_it_says_what_to_give(self, path):
        save(self.classified(self.encoder()), path)
        with pytest.raises(
            CheckpointError, match=r"its encoder is there: num_classes \(--num-classes\) adds an untrained"
        ):
            models.load(path, network="rf_lw50")

    @pytest.mark.parametrize("network", ["rf_lw101", "rf_lw152"])
    def test_another_depth(self, network, path):
        save(self.classified(self.encoder(network)), path)
        with pytest.raises(CheckpointError, match="unexpected|missing"):
            models.load(path, network="rf_lw50", num_classes=5)
        assert models.load(path, num_classes=5).name == network

    def test_a_classifier(self, state, path, caplog):
        save({k: v for k, v in state.items() if not k.startswith("segm")}, path)
        with pytest.raises(CheckpointError, match=r"2 missing \(segm\.weight, segm\.bias\); all else is there"):
            models.load(path)
        with caplog.at_level(logging.WARNING, "lwrn_fast"):
            model = models.load(path, num_classes=4)
        assert (model.num_classes, model.loaded.untrained) == (4, ("segm.weight", "segm.bias"))
        assert "has no classifier of rf_lw_mbv2" in caplog.text

    @pytest.mark.parametrize("classes", [0, -1])
    def test_no_classes(self, classes, path):
        save(self.encoder(), path)
        with pytest.raises(CheckpointError, match=f"num_classes must be at least 1, got {classes}$"):
            models.load(path, num_classes=classes)

    def test_half_a_decoder_is_a_mistake(self, state, path):
        save({k: v for k, v in state.items() if not k.startswith(("crp4", "conv8"))}, path)
        with pytest.raises(CheckpointError, match="5 missing"):
            models.load(path, num_classes=7)

    def test_float32_whatever_the_default(self, path):
        save(self.encoder(), path)
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        try:
            model = models.load(path, network="rf_lw50", num_classes=5)
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
        assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.float32, "cpu")}


def foreign_mobilenet(state: dict[str, torch.Tensor], writer: str) -> dict[str, torch.Tensor]:
    """Return the encoder without its first expansion, under the names of torchvision, timm or pytorch-mobilenet-v2."""
    blocks = [(stage, block) for stage, count in enumerate((1, 2, 3, 4, 3, 3, 1)) for block in range(count)]
    result = {}
    for own, value in state.items():
        top, *rest = own.split(".")
        if top == "layer1":
            modules = ("conv_stem", "bn1") if writer == "timm" else ("features.0.0", "features.0.1")
            result[f"{modules[int(rest[0])]}.{rest[1]}"] = value
        elif top.startswith("layer"):
            stage, block, part, index = int(top[5:]) - 2, int(rest[0]), int(rest[2]), int(rest[3])
            first = (stage, block) == (0, 0)
            if first and part == 0:
                continue
            number = part - first
            if writer == "torchvision":
                name = f"{number}.{index}" if part < 2 else str(number + index)
            elif writer == "sequential":
                name = str(3 * number + index)
            else:
                names = ["conv_dw", "conv_pw"] if first else ["conv_pw", "conv_dw", "conv_pwl"]
                name = f"bn{number + 1}" if index else names[number]
            start = (
                f"blocks.{stage}.{block}" if writer == "timm" else f"features.{blocks.index((stage, block)) + 1}.conv"
            )
            result[f"{start}.{name}.{rest[4]}"] = value
    return result


class TestForeignEncoders:
    @pytest.mark.parametrize("writer", ["torchvision", "timm", "sequential"])
    def test_mobilenet(self, writer, state, path):
        names = foreign_mobilenet(state, writer)
        assert len(names) == len([name for name in state if name.startswith("layer")]) - 6
        save({**names, "classifier.1.weight": torch.zeros(1000, 1280)}, path)
        model = models.load(path, num_classes=5)
        assert model.name == "rf_lw_mbv2"
        expansion = "layer2.0.output.0."
        assert_holds(model, {k: v for k, v in state.items() if k.startswith("layer") and not k.startswith(expansion)})
        x = torch.rand(1, 32, 5, 5) * 6
        torch.testing.assert_close(model.layer2[0].output[0](x), x)

    def test_mobilenet_with_another_block(self, state, path):
        names = foreign_mobilenet(state, "timm")
        save({**names, "blocks.3.1.se.conv_reduce.weight": torch.rand(8, 8)}, path)
        with pytest.raises(CheckpointError, match="unexpected|missing"):
            models.load(path, num_classes=5)

    def test_transformers_resnet(self, path):
        state = models.rf_lw50(2).state_dict()
        names = {"conv1.weight": "embedder.embedder.convolution.weight"}
        for own in state:
            if own.startswith("bn1."):
                names[own] = f"embedder.embedder.normalization.{own[4:]}"
            elif own.startswith("layer"):
                stage, block, module, *end = own.split(".")
                start = f"encoder.stages.{int(stage[5:]) - 1}.layers.{block}."
                if module == "downsample":
                    names[own] = f"{start}shortcut.{('convolution', 'normalization')[int(end[0])]}.{end[1]}"
                else:
                    kind = "convolution" if module.startswith("conv") else "normalization"
                    names[own] = f"{start}layer.{int(module[-1]) - 1}.{kind}.{end[0]}"
        content = {f"resnet.{name}": state[own] for own, name in names.items()}
        save({**content, "classifier.1.weight": torch.zeros(1000, 2048)}, path)
        model = models.load(path, num_classes=5)
        assert model.name == "rf_lw50"
        assert_holds(model, {own: state[own] for own in names})


class TestFormats:
    def test_shards(self, state, tmp_path):
        names = list(state)
        parts = {"model-1.safetensors": names[:100], "model-2.safetensors": names[100:]}
        for file, part in parts.items():
            save_file({name: state[name] for name in part}, tmp_path / file)
        index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        assert_holds(models.load(tmp_path / "model.safetensors.index.json"), state)
        with pytest.raises(CheckpointError, match=r"Is a directory; its weights are in model.safetensors.index.json$"):
            models.load(tmp_path)

    @pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", 3, None])
    def test_shards_elsewhere_are_not_read(self, shard, tmp_path):
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": {"conv8.weight": shard}}))
        with pytest.raises(CheckpointError, match="is not an index of shards"):
            models.load(path)

    def test_npz(self, state, tmp_path):
        np.savez(tmp_path / "weights.npz", **{name: value.numpy() for name, value in state.items()})
        assert_holds(models.load(tmp_path / "weights.npz"), state)

    def test_npz_with_objects(self, tmp_path):
        np.savez(tmp_path / "weights.npz", a=np.array([Path()], dtype=object))
        with pytest.raises(CheckpointError, match="is damaged or holds what is no array"):
            models.load(tmp_path / "weights.npz")

    def test_torchscript(self, path):
        torch.jit.save(torch.jit.trace(torch.nn.Conv2d(3, 4, 1), torch.rand(1, 3, 4, 4)), path)
        with pytest.raises(CheckpointError, match="is a TorchScript archive"):
            models.load(path)

    def test_export(self, path):
        program = torch.export.export(torch.nn.Conv2d(3, 4, 1), (torch.rand(1, 3, 4, 4),))
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        path.write_bytes(buffer.getvalue())
        with pytest.raises(CheckpointError, match=r"is a package of torch\.export"):
            models.load(path)

    def test_plain_pickle(self, path):
        path.write_bytes(pickle.dumps({"model": {"conv1.weight": np.zeros(3)}, "__author__": "x"}, 2))
        with pytest.raises(CheckpointError, match="is a plain pickle"):
            models.load(path)

    def test_a_newer_pickle_protocol(self, path):
        torch.save({"a": torch.zeros(3)}, path, pickle_protocol=4)
        with pytest.raises(CheckpointError, match="pickle protocol 4"):
            models.load(path)

    @pytest.mark.parametrize("wrap", [lambda n: n, lambda n: {"epoch": 3, "model": n}, lambda n: {"ema": [n]}])
    @pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
    def test_a_pickled_module(self, wrap, legacy, path):
        """Whole modules, as ultralytics and torch.save(model) write them: only their parameters are read."""

        class Mine(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                for name, child in models.rf_lw_mbv2(7)._modules.items():
                    self.add_module(name, child)

        Mine.__qualname__ = "Mine"
        module = Mine()
        wanted = {name: value.clone() for name, value in module.state_dict().items()}
        for crp in ("crp1", "crp2", "crp3", "crp4"):
            setattr(module, crp, torch.nn.Sequential(OrderedDict({"0": torch.nn.Module()})))
            for stage in range(1, 5):
                conv = torch.nn.Conv2d(256, 256, 1, bias=False)
                conv.weight.data = wanted[f"{crp}.0.{stage}_outvar_dimred.weight"]
                getattr(module, crp)[0].add_module(f"{stage}_outvar_dimred", conv)
        with module_of("trainer_of_somebody", Mine):
            torch.save(wrap(module), path, _use_new_zipfile_serialization=not legacy)
        if legacy:  # it stores classes in place of tensors, which torch does not read
            with pytest.raises(CheckpointError, match="holds Python objects besides tensors"):
                models.load(path)
        else:
            assert_holds(models.load(path), wanted)

    def test_sparse_and_sliced_tensors(self, state, path):
        odd = dict(state)
        odd["conv8.weight"] = state["conv8.weight"].to_sparse()
        odd["conv7.weight"] = torch.cat([state["conv7.weight"]] * 2, 1)[:, ::2][:, :160] * 0 + state["conv7.weight"]
        odd["conv6.weight"] = state["conv6.weight"].flip(0)[:].flip(0).to(memory_format=torch.channels_last)
        save(odd, path)
        assert_holds(models.load(path), state)

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.complex64, torch.float8_e4m3fn, torch.bool])
    def test_numbers_of_another_kind(self, dtype, state, path):
        save({**state, "conv8.weight": state["conv8.weight"].to(dtype)}, path)
        with pytest.raises(CheckpointError, match=f"conv8.weight is {str(dtype)[6:]}, not floating point"):
            models.load(path)

    def test_without_values(self, state, path):
        save({**state, "conv8.weight": state["conv8.weight"].to("meta")}, path)
        with pytest.raises(CheckpointError, match=r"1 missing \(conv8.weight\)$"):
            models.load(path)
