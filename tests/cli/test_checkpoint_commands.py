"""Commands that start from a checkpoint which does not hold all of a network, or holds several."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from lwrn_fast import models
from lwrn_fast.cli import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drawn") / "data"
    assert main(["generate", str(out), "--images", "10", "--size", "48", "48"]) == 0
    return out


def encoder(classes: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    state = models.rf_lw_mbv2(classes).state_dict()
    return {f"backbone.{name}": value for name, value in state.items() if name.startswith("layer")}


def train(data: Path, out: Path, checkpoint: Path, *more: str) -> int:
    command = ["train", str(data), "--out", str(out), "--checkpoint", str(checkpoint), "--epochs", "1", "--batch", "2"]
    return main([*command, "--crop", "32", "--encoder-lr", "0", "--freeze-bn", "--device", "cpu", *more])


class TestTrain:
    @pytest.mark.parametrize("classes", [(), ("--num-classes", "9")], ids=["of_the_data", "given"])
    def test_starts_from_an_encoder(self, classes, data, tmp_path, capfd):
        state = encoder()
        torch.save({**state, "head.weight": torch.zeros(1000, 1280)}, tmp_path / "encoder.pth")
        assert train(data, tmp_path / "run", tmp_path / "encoder.pth", *classes) == 0, capfd.readouterr().err
        trained = models.load(tmp_path / "run" / "last.safetensors")
        assert trained.num_classes == (9 if classes else models.load(models.SHAPES).num_classes)
        got = trained.state_dict()  # with an encoder's rate of 0 it is still what it was
        for name, value in state.items():
            if name.endswith(("0.weight", "running_mean")):
                torch.testing.assert_close(got[name.removeprefix("backbone.")], value)

    def test_begins_alike_with_one_seed(self, data, tmp_path):
        torch.save(encoder(), tmp_path / "encoder.pth")
        for run in ("a", "b"):
            torch.manual_seed(hash(run) % 1000)
            assert train(data, tmp_path / run, tmp_path / "encoder.pth") == 0
        a, b = ((tmp_path / run / "losses.csv").read_text() for run in ("a", "b"))
        assert a == b

    def test_without_classes(self, data, tmp_path, capfd):
        torch.save(encoder(), tmp_path / "encoder.pth")
        bare = tmp_path / "bare"
        for folder in ("images", "labels"):
            (bare / folder).mkdir(parents=True)
            for path in sorted((data / "train" / folder).iterdir())[:4]:
                (bare / folder / path.name).write_bytes(path.read_bytes())
        assert train(bare, tmp_path / "run", tmp_path / "encoder.pth") == 2
        line = capfd.readouterr().err.strip().splitlines()[-1]
        assert "its encoder is there: num_classes (--num-classes) adds an untrained decoder" in line
        assert not (tmp_path / "run").exists()


class TestSegment:
    def test_an_untrained_part_is_said(self, tmp_path, capfd):
        torch.save(encoder(), tmp_path / "encoder.pth")
        Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
        command = ["segment", str(tmp_path / "x.png"), "--out", str(tmp_path / "out")]
        assert main([*command, "--checkpoint", str(tmp_path / "encoder.pth")]) == 2
        assert main([*command, "--checkpoint", str(tmp_path / "encoder.pth"), "--num-classes", "5"]) == 0
        said = capfd.readouterr()
        assert "rf_lw_mbv2, 5 classes, UNTRAINED weights" in said.out
        assert "the labels mean nothing" in said.out

    def test_weights_are_chosen(self, tmp_path, capfd):
        torch.manual_seed(0)
        state = models.rf_lw_mbv2(3).state_dict()
        state["segm.bias"] = torch.tensor([0.0, 0, 1000])
        other = {name: torch.zeros_like(value) for name, value in state.items()}
        other["segm.bias"] = torch.tensor([0.0, 1, 0])
        torch.save({"model": state, "ema": other}, tmp_path / "two.pth")
        Image.effect_noise((32, 32), 90).convert("RGB").save(tmp_path / "x.png")
        command = ["segment", str(tmp_path / "x.png"), "--checkpoint", str(tmp_path / "two.pth")]
        for weights, label in (((), 1), (("--weights", "ema"), 1), (("--weights", "model"), 2)):
            out = tmp_path / "-".join(("out", *weights))
            assert main([*command, "--out", str(out), *weights]) == 0
            with Image.open(out / "x.png") as image:
                assert image.getextrema() == (label, label)
        assert main([*command, "--out", str(tmp_path / "o"), "--weights", "best"]) == 2
        assert "has no weights 'best', but 'ema', 'model'" in capfd.readouterr().err
