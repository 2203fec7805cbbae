"""Checkpoints in every layout that training scripts write, and the errors for those that do not fit."""

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.utils import prune

from lwrn_fast import models
from lwrn_fast.models import CheckpointError


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return models.rf_lw_mbv2(num_classes=7).state_dict()


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return OrderedDict((prefix + name, value) for name, value in state.items())


LAYOUTS = {
    "bare": lambda state: state,
    "module": lambda state: prefixed(state, "module."),
    "two_prefixes": lambda state: prefixed(state, "_orig_mod.module."),
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "best": torch.tensor(0.5)},
    "segmenter": lambda state: {"segmenter": prefixed(state, "module."), "epoch_start": 3},
    "model": lambda state: {"model": state, "optimizer": {"state": {0: {"momentum": torch.zeros(3)}}}},
    "two_levels": lambda state: {"model": {"state_dict": state}},
    "one_other_level": lambda state: {"weights": state, "epoch": 3},
    "without_counters": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    "half": lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
    "other_order": lambda state: dict(reversed(state.items())),
}


def assert_is(model: torch.nn.Module, state: dict[str, torch.Tensor], tolerance: float = 0) -> None:
    assert (model.name, model.num_classes, model.training) == ("rf_lw_mbv2", 7, False)
    got = model.state_dict()
    assert list(got) == list(state)
    for name, value in state.items():
        assert got[name].dtype == value.dtype
        torch.testing.assert_close(got[name], value, rtol=tolerance, atol=tolerance)


class TestLayouts:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_torch(self, layout, state, tmp_path):
        torch.save(LAYOUTS[layout](state), tmp_path / "weights.pth.tar")
        assert_is(models.load(tmp_path / "weights.pth.tar"), state, 1e-3 if layout == "half" else 0)

    def test_the_old_file_format(self, state, tmp_path):
        torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
        assert_is(models.load(str(tmp_path / "weights.pth")), state)

    @pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
    def test_safetensors(self, name, state, tmp_path):
        save_file(prefixed(state, "module."), tmp_path / name)
        assert_is(models.load(tmp_path / name), state)

    @pytest.mark.parametrize("network", [name for name in models.NETWORKS if name != "rf_lw_mbv2"])
    def test_finds_the_network_and_the_classes(self, network, tmp_path):
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in models.NETWORKS[network](60).state_dict().items()}
        # one zero for a whole tensor keeps the file small
        torch.save({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, tmp_path / "weights.pth")
        model = models.load(tmp_path / "weights.pth", network=network, num_classes=60)
        assert (model.name, model.num_classes) == (network, 60)

    def test_runs_after_loading(self, state, tmp_path):
        original = models.rf_lw_mbv2(num_classes=7).eval()
        original.load_state_dict(state)
        torch.save(state, tmp_path / "weights.pth")
        image = torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(models.load(tmp_path / "weights.pth")(image), original(image))


class TestWeightsInParts:
    """Weights as torch's own utilities store them: `load` returns those that the model computed with."""

    NAMES = ("conv8", "crp3.0.2_outvar_dimred", "layer3.0.output.1.0", "segm")
    UTILITIES = {
        "weight_norm": lambda module: torch.nn.utils.parametrizations.weight_norm(module),
        "weight_norm_of_inputs": lambda module: torch.nn.utils.parametrizations.weight_norm(module, dim=1),
        "weight_norm_of_all": lambda module: torch.nn.utils.parametrizations.weight_norm(module, dim=None),
        "weight_norm_of_old": lambda module: torch.nn.utils.weight_norm(module),
        "spectral_norm": lambda module: torch.nn.utils.parametrizations.spectral_norm(module),
        "spectral_norm_of_old": lambda module: torch.nn.utils.spectral_norm(module),
        "prune": lambda module: prune.l1_unstructured(module, "weight", 0.5),
    }

    @pytest.mark.filterwarnings("ignore:.*weight_norm")
    @pytest.mark.parametrize("utility", UTILITIES)
    def test_are_whole(self, utility, tmp_path):
        torch.manual_seed(0)
        network = models.rf_lw_mbv2(num_classes=7).eval()
        for name in self.NAMES:
            self.UTILITIES[utility](network.get_submodule(name))
        network.eval()
        wanted = {}
        for name in self.NAMES:
            module = network.get_submodule(name)
            for hook in module._forward_pre_hooks.values():  # modules that compute the weight
                hook(module, ())
            wanted[f"{name}.weight"] = module.weight.detach().clone()
        torch.save(network.state_dict(), tmp_path / "weights.pth")
        got = models.load(tmp_path / "weights.pth").state_dict()
        for name, value in wanted.items():
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-7)

    def test_of_other_shapes_are_missing(self, state, tmp_path):
        content = {name: value for name, value in state.items() if name != "conv8.weight"}
        content |= {"conv8.weight_v": torch.rand(256, 320, 1, 1), "conv8.weight_g": torch.rand(3, 7)}
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(CheckpointError, match=r"1 missing \(conv8.weight\)"):
            models.load(tmp_path / "weights.pth")


class TestWhatDoesNotFit:
    def message(self, path: Path, content: object = None, **wanted: object) -> str:
        """Return the error of `load` for a file with this content, and assert that it is one line that begins with the
        file's name."""
        if content is not None:
            torch.save(content, path)
        with pytest.raises(CheckpointError) as raised:
            models.load(path, **wanted)
        message = str(raised.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        return message

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "weights.pth"

    def test_missing_names(self, state, path):
        missing = [name for name in state if name.startswith("crp4")]
        message = self.message(path, {name: value for name, value in state.items() if name not in missing})
        assert "the nearest is rf_lw_mbv2: 4 missing (" + ", ".join(missing[:3]) + ", ...)" in message

    def test_unexpected_names(self, state, path):
        content = {**state, "conv8.bias": torch.zeros(3), "layer9.0.weight": torch.zeros(2)}
        message = self.message(path, content)
        assert message.endswith("the nearest is rf_lw_mbv2: 2 unexpected (conv8.bias, layer9.0.weight)")

    def test_other_shapes(self, state, path):
        message = self.message(path, {**state, "conv8.weight": torch.zeros(256, 160, 1, 1)})
        assert message.endswith("1 of another shape (conv8.weight is (256, 160, 1, 1), not (256, 320, 1, 1))")

    def test_classifier_of_another_shape(self, state, path):
        message = self.message(path, {**state, "segm.weight": torch.zeros(7)})
        assert "segm.weight is (7,), not (" in message
        message = self.message(path, {**state, "segm.weight": torch.zeros(0, 256, 3, 3)})
        assert "segm.weight is (0, 256, 3, 3), not (" in message

    def test_encoder_alone(self, path):
        with torch.device("meta"):
            encoder = models.rf_lw101().state_dict().items()
        content = {k: torch.zeros(()).expand(v.shape) for k, v in encoder if k.startswith(("layer", "bn", "conv1"))}
        message = self.message(path, content)
        assert "the nearest is rf_lw101: 28 missing (p_ims1d2_outl1_dimred.weight, " in message

    def test_another_network_than_asked_for(self, state, path):
        message = self.message(path, state, network="rf_lw50")
        assert "does not fit rf_lw50 and is nearest to rf_lw_mbv2: " in message

    def test_other_classes_than_asked_for(self, state, path):
        assert self.message(path, state, num_classes=21).endswith("has 7 classes, 21 were asked for")

    def test_unknown_network(self, state, path):
        assert "network must be one of rf_lw50, rf_lw101, " in self.message(path, state, network="resnet")

    def test_nothing_known(self, path):
        message = self.message(path, {"fc.weight": torch.zeros(3, 4), "fc.bias": torch.zeros(3)})
        assert "is not of a network known here (rf_lw50, " in message
        assert message.endswith(": weight, bias")

    @pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {"epoch": 3}}, torch.zeros(3)], ids=repr)
    def test_no_state_dict(self, content, path):
        message = self.message(path, content)
        assert "holds no state dict, neither on top nor under state_dict, segmenter, model, " in message

    def test_endless_levels(self, path):
        content: dict = {}
        content["model"] = content
        assert "holds no state dict" in self.message(path, content)

    def test_absent(self, path):
        assert self.message(path).endswith("cannot be read: No such file or directory")

    def test_folder(self, tmp_path):
        assert self.message(tmp_path).endswith("cannot be read: Is a directory")

    @pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
    def test_empty_file(self, name, tmp_path):
        (tmp_path / name).touch()
        assert self.message(tmp_path / name).endswith("is empty")

    def test_text(self, path):
        path.write_text("this is no checkpoint")
        assert "is neither a PyTorch nor a safetensors checkpoint" in self.message(path)

    def test_truncated(self, state, path):
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-5000])
        assert "is damaged or not a checkpoint (" in self.message(path)

    def test_truncated_safetensors(self, state, tmp_path):
        path = tmp_path / "weights.safetensors"
        save_file(state, path)
        path.write_bytes(path.read_bytes()[:-5000])
        assert "is damaged or not a safetensors file (" in self.message(path)

    def test_code_is_not_run(self, state, path, tmp_path):
        trap = tmp_path / "trap"

        class Evil:
            def __reduce__(self):
                return Path.touch, (trap,)

        torch.save({"state_dict": state, "evil": Evil()}, path)
        assert_is(models.load(path), state)
        with path.open("wb") as file:
            pickle.dump(Evil(), file)
        self.message(path)
        assert not trap.exists()

    def test_objects_of_numpy(self, state, path):
        torch.save({"model": state, "best": np.float64(0.5), "all": np.zeros(3)}, path)
        assert_is(models.load(path), state)
