"""Evaluation: scales, the mirrored image, and damaged files."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lwrn_fast import cli, models
from lwrn_fast.training import evaluate, generate, preparing
from support.training_runs import MARK, SMALL, read_csv


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
        for folder_name in ("images", "labels"):
            (tmp_path / folder_name).mkdir()
            for i in range(3):
                source = folder / "train" / folder_name / f"0000{i}.png"
                (tmp_path / folder_name / source.name).write_bytes(source.read_bytes())
        (tmp_path / "images" / "00001.png").write_bytes(b"text")
        checkpoint, out = str(trained / "last.safetensors"), tmp_path / "scores.csv"
        assert cli.main(["eval", str(tmp_path), "--checkpoint", checkpoint, "--confusion", "--out", str(out)]) == 2
        captured = capsys.readouterr()
        assert captured.err == f"{MARK}{tmp_path}/images/00001.png: is not an image\n"
        assert "1 of 3 images could not be used and do not count" in captured.out
        assert int(read_csv(out)[-1]["pixels"]) == 2 * 64 * 64
        assert cli.main(["train", str(tmp_path), "--out", str(tmp_path / "r"), *SMALL, "--num-classes", "8"]) == 2
        assert capsys.readouterr().err == f"{MARK}{tmp_path}/images/00001.png: is not an image\n"
