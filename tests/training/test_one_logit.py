"""One logit for two classes: loss, evaluation and numbers of classes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lwrn_fast import models, normalise
from lwrn_fast.training import evaluate, loop
from support.label_maps import MARK, TRAIN, Run, grey, pairs_folder

pytestmark = pytest.mark.usefixtures("cache")
THREE = "a b c"


class TestOneLogit:
    def test_loss_is_the_binary_one(self):
        logits, truth = torch.randn(2, 1, 4, 5, dtype=torch.float64), torch.randint(0, 2, (2, 4, 5))
        truth[0, 0] = 255
        counts = truth != 255
        expected = F.binary_cross_entropy_with_logits(
            logits[:, 0][counts], truth[counts].double(), reduction="sum"
        )
        torch.testing.assert_close(loop.loss_sum(logits, truth).double(), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("options", [evaluate.Options(), evaluate.Options((0.5, 1.0), flip=True)])
    def test_the_threshold_is_0(self, options, checkpoint):
        model = models.load(checkpoint(1))
        image = np.random.RandomState(0).randint(0, 256, (48, 64, 3)).astype(np.uint8)
        with torch.no_grad():
            model.get_parameter("segm.weight").mul_(100)
            model.get_parameter("segm.bias").copy_(-model(models.preprocess(image)).median())
        got = evaluate.predict(model, image, options)
        assert 0.05 < got.double().mean() < 0.95

        def probability(x: torch.Tensor) -> torch.Tensor:
            full = F.interpolate(model(x).double(), (48, 64), mode="bilinear", align_corners=True)
            return full[0, 0].sigmoid()

        with torch.no_grad():
            inputs = [normalise(torch.from_numpy(image), (round(48 * s), round(64 * s))) for s in options.scales]
            every = [probability(x) for x in inputs]
            if options.flip:
                every += [probability(x.flip(3)).flip(1) for x in inputs]
        mean = torch.stack(every).mean(0)
        clear = (mean - 0.5).abs() > 1e-5  # float32 may round the rest either way
        assert clear.double().mean() > 0.99
        assert ((mean > 0.5) == got.bool())[clear].all()

    @pytest.mark.parametrize("names", ["thing", "ground thing"])
    def test_trains_and_evaluates(self, names, tmp_path, capsys):
        folder = pairs_folder(tmp_path / "d", grey(0, 1), names)
        options = ["--num-classes", "1"]
        run = Run(capsys, "train", folder, "--out", tmp_path / "r", *TRAIN, *options)
        assert run.code == 0
        assert "2 classes in one logit" in run.out
        assert models.load(tmp_path / "r" / "last.safetensors").num_classes == 1
        run = Run(capsys, "eval", folder, "--checkpoint", tmp_path / "r" / "last.safetensors", "--confusion")
        assert run.code == 0
        assert [line.split()[0] for line in run.out.splitlines()[2:4]] == [
            "ground" if " " in names else "background",
            "thing",
        ]

    def test_one_name_is_one_logit(self, tmp_path, capsys):
        folder = pairs_folder(tmp_path / "d", grey(0, 1), "thing")
        run = Run(capsys, "train", folder, "--out", tmp_path / "r", *TRAIN)
        assert run.code == 0
        assert "2 classes in one logit" in run.out

    def test_names_that_are_not_used(self, tmp_path, capsys, checkpoint):
        folder = pairs_folder(tmp_path / "d", grey(0, 1), THREE)
        arguments = ["train", folder, "--out", tmp_path / "r", *TRAIN, "--checkpoint", checkpoint(3)]
        run = Run(capsys, *arguments, "--num-classes", "2")
        assert f"warning: {folder} names 3 classes, --num-classes asks for 2\n" in run.out
        assert f"2 classes, from {checkpoint(3)}, with a new classifier\n" in run.out

    @pytest.mark.parametrize(("number", "text"), [(1, "1-2:1"), (2, "0-1:0,2:1"), (4, "2:3")])
    def test_mapped_to_other_numbers(self, number, text, tmp_path, capsys):
        folder, weights = pairs_folder(tmp_path / "d", grey(0, 1, 2), THREE), tmp_path / "r" / "last.safetensors"
        options = ["--map-labels", text]
        run = Run(capsys, "train", folder, "--out", weights.parent, *TRAIN, "--num-classes", number, *options)
        assert run.code == 0
        run = Run(capsys, "eval", folder, "--checkpoint", weights, *options)
        words = "2 classes in one logit" if number == 1 else f"{number} classes"
        assert (run.code, run.errors) == (0, [])
        assert f"warning: {folder} names 3 classes, {weights} has {words}\n" in run.out

    def test_other_numbers(self, tmp_path, capsys, checkpoint):
        folder = pairs_folder(tmp_path / "d", grey(0, 1, 2), THREE)
        run = Run(capsys, "eval", folder, "--checkpoint", checkpoint(1))
        assert run.errors == [f"{MARK}{checkpoint(1)}: has 2 classes in one logit, {folder} has 3"]
        run = Run(capsys, "train", folder, "--out", tmp_path / "r", *TRAIN, "--num-classes", "1")
        assert "has the class 2, classes are 0 to 1" in run.errors[0]
