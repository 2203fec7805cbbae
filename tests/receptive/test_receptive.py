"""The empirical receptive field: known fields, the growth by CRP, the images, and errors."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import lwrn_fast
from lwrn_fast import cli, models
from lwrn_fast.io import images
from lwrn_fast.receptive.drawing import draw
from lwrn_fast.receptive.field import Box, field, receptive_field

MARK = "lwrn-fast: error: "


def positive(module: nn.Module, value: float | None = None) -> nn.Module:
    """Set weights above zero, all to `value` if it is given."""
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.1, 1) if value is None else nn.init.constant_(parameter, value)
    return module


class Strided(nn.Module):
    """A level at a quarter of the image: convolutions 3x3 of stride 2, CRP."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.LeakyReLU(), nn.Conv2d(4, 4, 3, 2, 1))
        self.crp = lwrn_fast.CRP(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.crp(self.encoder(x))


def box(map: torch.Tensor) -> Box:
    rows, columns = map.nonzero().unbind(1)
    return Box(int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)


class TestFields:
    def test_of_one_convolution(self):
        fields = receptive_field(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), ["0"], size=(11, 15), images=1)["0"]
        assert fields.unit == (5, 7)
        assert fields.before.theoretical == box(fields.before.map) == Box(5, 7, 6, 8)
        assert fields.after.theoretical == box(fields.after.map) == Box(4, 6, 7, 9)
        assert fields.before.area == {50: 1, 95: 1}
        assert fields.before.radius == {50: 0.5, 95: 0.5}

    def test_of_equal_weights_is_even_and_symmetric(self):
        conv = positive(nn.Sequential(nn.Conv2d(3, 4, 5, padding=2)), 0.1)
        after = receptive_field(conv, ["0"], size=(32, 32), images=2)["0"].after
        torch.testing.assert_close(after.map[14:19, 14:19], torch.full((5, 5), 1 / 25))
        assert after.map.sum().item() == pytest.approx(1)
        torch.testing.assert_close(after.map, after.map.mT)
        assert after.centre == pytest.approx((16, 16))
        assert after.area == {50: 13, 95: 24}

    def test_crp_adds_two_pixels_of_its_map_a_stage(self):
        """On ramps that rise to each of the corners, the maximum is at that end of every window."""
        ramp = np.add.outer(np.arange(128), np.arange(128)).astype(np.uint8)[:, :, None].repeat(3, 2)
        ramps = [ramp, ramp[::-1].copy(), ramp[:, ::-1].copy(), ramp[::-1, ::-1].copy()]
        fields = receptive_field(positive(Strided()), size=(128, 128), images=ramps)["crp"]
        assert fields.size == (32, 32)
        grown = 2 * 4 * 4  # pixels, stages, stride
        before, after = fields.before.theoretical, fields.after.theoretical
        assert before == box(fields.before.map) == Box(61, 61, 68, 68)
        assert after == box(fields.after.map) == Box(61 - grown, 61 - grown, 68 + grown, 68 + grown)
        assert fields.after.radius[95] > fields.before.radius[95]

    def test_gradients_are_those_of_autograd(self):
        net = Strided().double()
        fields = receptive_field(net, size=(32, 48), images=1, seed=5)["crp"]
        x = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(5 * 1_000_003)).requires_grad_()
        features = net.float().encoder(x)
        weights = list(net.crp.parameters())
        for got, unit in ((fields.before, features), (fields.after, lwrn_fast.reference.crp(features, weights))):
            (gradient,) = torch.autograd.grad(unit[0, :, 4, 6].sum(), x, retain_graph=True)
            magnitude = gradient[0].abs().sum(0)
            torch.testing.assert_close(got.map, magnitude / magnitude.sum(), rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("name", ["rf_lw_mbv2", "rf50", "rf_lw_nasnet_mobile"])
    def test_of_networks(self, name):
        torch.manual_seed(0)
        model = models.NETWORKS[name](num_classes=3).train()
        fields = receptive_field(model, size=(64, 96), images=1)
        assert list(fields) == [level.crp for level in model.levels]
        assert model.training
        assert all(parameter.requires_grad for parameter in model.parameters())
        for number, (before, after, unit, size) in enumerate(fields.values()):
            scale = 2 ** (len(fields) - number + 1)
            assert size == (64 // scale, 96 // scale)
            assert unit == (size[0] // 2, size[1] // 2)
            for side in (before, after):
                assert side.map.shape == (64, 96)
                assert side.map.dtype == torch.float32
                top, left, bottom, right = side.theoretical
                assert side.map[top:bottom, left:right].sum().item() == pytest.approx(1, abs=1e-5)
                assert side.area[50] < side.area[95] <= 64 * 96
                assert side.radius[50] < side.radius[95]

    def test_of_a_network_of_another_class_and_of_an_accelerated_one(self):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        fields = receptive_field(net, ["1", "3"], size=(20, 24), images=2)
        assert fields["1"].before.theoretical == Box(9, 11, 12, 14)
        assert fields["3"].after.theoretical == Box(8, 10, 13, 15)
        model = models.rf_lw_mbv2(num_classes=3)
        plain = receptive_field(model, size=(32, 32), images=1)["crp1"].after
        lwrn_fast.accelerate(model)
        torch.testing.assert_close(receptive_field(model, size=(32, 32), images=1)["crp1"].after.map, plain.map)

    def test_figures(self):
        spots = torch.zeros(9, 9)
        spots[4, 4], spots[4, 1], spots[4, 7] = 6, 2, 2
        fields = field(spots, Box(0, 0, 9, 9))
        assert fields.centre == pytest.approx((4, 4))
        assert fields.area == {50: 1, 95: 3}
        assert fields.radius == pytest.approx({50: 0.5, 95: 3.5})

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"size": (0, 4)}, r"size must be \(H, W\), both at least 1, got \(0, 4\)"),
            ({"names": ["7"]}, "names must be of the model's modules, got '7'"),
            ({"names": []}, "the model has no CRP"),
            ({"images": 0, "names": ["dead"]}, "images must be at least 1, got 0"),
            ({"images": [np.zeros((4, 4), np.uint8)], "names": ["dead"]}, r"image must be \(H, W, 3\)"),
            ({"names": ["unused"]}, "the model's forward does not call 'unused'"),
            ({"names": ["flat"]}, r"'flat' must take and give a map \(1, C, H, W\), got \(1, 768\)"),
            ({"names": ["dead"]}, "no finite gradient reaches the image from 'dead'"),
        ],
    )
    def test_errors(self, arguments, message):
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.dead, self.flat, self.unused = nn.Conv2d(3, 3, 1), nn.Flatten(), nn.ReLU()
                nn.init.zeros_(self.dead.weight)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.flat(self.dead(x))

        with pytest.raises(ValueError, match=message):
            receptive_field(Net(), **{"size": (16, 16), "images": 1, **arguments})

    def test_wrong_model(self):
        with pytest.raises(TypeError, match="model must be a torch.nn.Module, got str"):
            receptive_field("rf_lw50")


def test_drawing_has_maps_discs_and_boxes():
    net = positive(Strided())
    for size in ((48, 128), (128, 24)):
        page = draw("title", receptive_field(net, size=size, images=1)["crp"])
        assert page.dtype == np.uint8
        for half in (page[:, : page.shape[1] // 2], page[:, page.shape[1] // 2 :]):
            assert len(np.unique(half.reshape(-1, 3), axis=0)) > 50


class TestCommand:
    def test_images_report_and_table(self, tmp_path, capsys):
        out = tmp_path / "new" / "out"
        command = ["receptive-field", "--model", "rf_lw_mbv2", "--size", "64", "96", "--images", "2", "--out", str(out)]
        assert cli.main(command) == 0
        levels = ["crp1", "crp2", "crp3", "crp4"]
        assert sorted(path.name for path in out.iterdir()) == [*(f"{name}.png" for name in levels), "erf.json"]
        report = json.loads((out / "erf.json").read_text())
        assert report["size"] == [64, 96]
        assert sorted(report["levels"]) == levels
        crp1 = report["levels"]["crp1"]
        assert (crp1["unit"], crp1["map"]) == ([8, 12], [16, 24])
        assert 0 < crp1["before"]["area_50"] < crp1["before"]["area_95"] <= 64 * 96
        for name in levels:
            with Image.open(out / f"{name}.png") as image:
                assert image.mode == "RGB"
        text = capsys.readouterr().out
        assert "rf_lw_mbv2, UNTRAINED weights, 64 x 96, 2 x noise" in text
        line = next(line for line in text.splitlines() if line.startswith("crp1"))
        assert f"{crp1['after']['radius_95']:.0f}" in line.split()

    def test_images_and_one_that_is_none(self, tmp_path, capsys):
        folder = tmp_path / "in"
        folder.mkdir()
        for i in range(2):
            images.write(folder / f"{i}.png", np.random.RandomState(i).randint(0, 256, (40, 50, 3)).astype(np.uint8))
        (folder / "bad.png").write_text("no picture")
        out = tmp_path / "out"
        assert cli.main(["receptive-field", "--size", "64", "64", "--images", str(folder), "--out", str(out)]) == 2
        captured = capsys.readouterr()
        assert captured.err == f"{MARK}{folder / 'bad.png'}: is not an image\n"
        assert "shapes.safetensors, 64 x 64, 2 photographs" in captured.out
        assert (out / "erf.json").is_file()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--images", "0"], "--images must be at least 1, or paths, got 0"),
            (["--images", "nothing.png"], "nothing.png: cannot be read (no such file or folder)"),
            (["--size", "0", "4"], "argument --size: must be a whole number of at least 1, got '0'"),
            (["--checkpoint", "nothing.pth"], "nothing.pth: cannot be read: No such file or directory"),
            (["--model", "rf_lw50", "--checkpoint", str(models.SHAPES)], "does not fit rf_lw50"),
        ],
    )
    def test_errors_are_one_line(self, arguments, message, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        try:
            code = cli.main(["receptive-field", "--out", "out", *arguments])
        except SystemExit as exit:
            code = exit.code
        error = capsys.readouterr().err
        assert code == 2
        assert error.startswith(MARK)
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()

    def test_out_that_is_a_file(self, tmp_path, capsys):
        (tmp_path / "out").write_text("")
        assert cli.main(["receptive-field", "--images", "1", "--out", str(tmp_path / "out")]) == 2
        assert "out: cannot be written to" in capsys.readouterr().err
