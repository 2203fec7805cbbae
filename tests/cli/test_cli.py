"""The command line: what it writes, and one clear line for everything that can be wrong."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lwrn_fast
from lwrn_fast import backends, cli, models
from lwrn_fast.io import images

COMMAND = [sys.executable, "-m", "lwrn_fast"]
MARK = "lwrn-fast: error: "


def photograph(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    coarse = np.random.RandomState(seed).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def save(path: Path, array: np.ndarray | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photograph() if array is None else array).save(path, **options)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mobile network with 7 classes, all of which appear."""
    torch.manual_seed(0)
    model = models.rf_lw_mbv2(num_classes=7)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    path = tmp_path_factory.mktemp("weights") / "seven.pth.tar"
    torch.save({"segmenter": model.state_dict()}, path)
    return path


def expected_labels(checkpoint: Path, image: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    with torch.no_grad():
        logits = models.load(checkpoint)(models.preprocess(image, size))
        return lwrn_fast.upsample_argmax(logits, image.shape[:2])[0].numpy()


def assert_labels(path: Path, expected: np.ndarray) -> None:
    """Where two logits are nearly equal, their order is chance."""
    found = labels(path)
    assert found.shape == expected.shape
    assert (found != expected).mean() < 2e-3


def labels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "P"
        palette = np.array(image.getpalette()).reshape(-1, 3)
        np.testing.assert_array_equal(palette, models.PALETTE[: len(palette)])
        return np.array(image)


class TestSegment:
    def test_folder_and_files(self, tmp_path, checkpoint, capsys):
        save(tmp_path / "in" / "one.jpg", quality=90)
        save(tmp_path / "in" / "TWO.PNG", photograph(33, 70, 1))
        (tmp_path / "in" / "notes.txt").write_text("not an image, and not asked for")
        three = save(tmp_path / "three.bmp", photograph(20, 20, 2))
        out = tmp_path / "new" / "out"
        arguments = ["segment", str(tmp_path / "in"), str(three), str(three), "--checkpoint", str(checkpoint)]
        assert cli.main([*arguments, "--out", str(out)]) == 0
        assert sorted(path.name for path in out.iterdir()) == ["TWO.png", "one.png", "three.png"]
        for source, result in (("in/one.jpg", "one.png"), ("in/TWO.PNG", "TWO.png"), ("three.bmp", "three.png")):
            image = images.read(tmp_path / source)
            assert_labels(out / result, expected_labels(checkpoint, image))
        text = capsys.readouterr().out
        assert text.startswith("rf_lw_mbv2, 7 classes, trained weights")
        assert "3 images, " in text
        assert "UNTRAINED" not in text
        for step in ("pre ", "infer ", "post "):
            assert step in text

    @pytest.mark.parametrize(
        ("option", "size"), [(["--size", "40", "96"], (40, 96)), (["--scale", "0.5"], (24, 32))], ids=["size", "scale"]
    )
    def test_size_of_the_input(self, option, size, tmp_path, checkpoint):
        photo = save(tmp_path / "a.png")
        arguments = ["segment", str(photo), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
        assert cli.main([*arguments, *option]) == 0
        assert_labels(tmp_path / "out" / "a.png", expected_labels(checkpoint, images.read(photo), size))

    @pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
    def test_overlay_and_verify(self, dtype, tmp_path, checkpoint, capsys):
        photo = save(tmp_path / "a.png")
        out = tmp_path / "out"
        arguments = ["segment", str(photo), "--checkpoint", str(checkpoint), "--dtype", dtype, "--out", str(out)]
        assert cli.main([*arguments, "--overlay", "--verify"]) == 0
        classes, image = labels(out / "a.png"), images.read(photo)
        overlay = images.read(out / "a_overlay.png")
        np.testing.assert_array_equal(overlay[classes == 0], image[classes == 0])
        mixed = (image.astype(float) + models.PALETTE[classes]) / 2
        assert np.abs(overlay - mixed)[classes != 0].max() <= 0.5
        line = next(line for line in capsys.readouterr().out.splitlines() if "difference" in line)
        difference = float(line.split("logits ")[1].split(" ")[0])
        assert difference < {"f32": 1e-4, "bf16": 0.3, "f16": 0.03}[dtype]
        assert f" of {classes.size} labels (" in line

    def test_untrained_says_so_and_is_the_same_every_time(self, tmp_path, capsys):
        photo = save(tmp_path / "a.png")
        results = []
        for out in ("x", "y"):
            torch.manual_seed(len(results))
            arguments = ["--out", str(tmp_path / out), "--model", "rf_lw_mbv2", "--num-classes", "3"]
            assert cli.main(["segment", str(photo), *arguments]) == 0
            results.append(labels(tmp_path / out / "a.png"))
        np.testing.assert_array_equal(*results)
        text = capsys.readouterr().out
        assert "rf_lw_mbv2, 3 classes, UNTRAINED weights" in text
        assert "the labels mean nothing" in text

    def test_leaves_the_chosen_backend_alone(self, tmp_path, checkpoint):
        photo, before = save(tmp_path / "a.png"), backends.requested()
        arguments = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), "--backend", "reference"]
        assert cli.main(["segment", str(photo), *arguments, "--verify"]) == 0
        assert backends.requested() == before

    def test_same_stems_do_not_overwrite(self, tmp_path, checkpoint, capsys):
        photos = [save(tmp_path / name, photograph(16 + i, 24)) for i, name in enumerate(["a.jpg", "a.png", "b/A.png"])]
        photos.append(save(tmp_path / "a_overlay.png", photograph(30, 24)))
        arguments = ["segment", *map(str, photos), "--overlay", "--checkpoint", str(checkpoint)]
        assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
        heights = {path.name: images.read(path).shape[0] for path in (tmp_path / "out").iterdir()}
        assert heights == {
            **{"a.png": 16, "a_overlay.png": 16, "a_2.png": 17, "a_2_overlay.png": 17},
            **{"A_3.png": 18, "A_3_overlay.png": 18, "a_overlay_2.png": 30, "a_overlay_2_overlay.png": 30},
        }
        assert f"{photos[1]} is in {tmp_path / 'out' / 'a_2.png'}" in capsys.readouterr().out

    def test_never_overwrites_a_photograph(self, tmp_path, checkpoint):
        photo = save(tmp_path / "a.png")
        before = photo.read_bytes()
        assert cli.main(["segment", str(photo), "--checkpoint", str(checkpoint), "--out", str(tmp_path)]) == 0
        assert photo.read_bytes() == before
        assert labels(tmp_path / "a_2.png").shape == (48, 64)

    def test_runs_again_over_its_own_results(self, tmp_path, checkpoint):
        arguments = ["segment", str(save(tmp_path / "a.jpg")), "--checkpoint", str(checkpoint)]
        for _ in range(2):
            assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


class TestReading:
    """Pictures of every kind come as uint8 (H, W, 3), RGB."""

    def read(self, tmp_path: Path, image: Image.Image, name: str = "a.png", **options: object) -> np.ndarray:
        image.save(tmp_path / name, **options)
        array = images.read(tmp_path / name)
        assert array.dtype == np.uint8
        assert array.shape == (image.height, image.width, 3)
        return array

    def test_exif_orientation(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: show it 90 degrees clockwise
        Image.fromarray(photograph()).save(tmp_path / "a.png", exif=exif)
        np.testing.assert_array_equal(images.read(tmp_path / "a.png"), np.rot90(photograph(), -1))

    def test_grey(self, tmp_path):
        grey = photograph()[:, :, 0]
        np.testing.assert_array_equal(self.read(tmp_path, Image.fromarray(grey)), np.stack([grey] * 3, axis=2))

    def test_black_and_white(self, tmp_path):
        self.read(tmp_path, Image.fromarray(photograph()[:, :, 0] > 128))

    def test_alpha_is_on_white(self, tmp_path):
        pixels = np.dstack([photograph(), np.full((48, 64), 255, np.uint8)])
        pixels[:10, :, 3] = 0
        got = self.read(tmp_path, Image.fromarray(pixels))
        assert (got[:10] == 255).all()
        np.testing.assert_array_equal(got[10:], photograph()[10:])

    def test_transparent_palette(self, tmp_path):
        image = Image.fromarray(photograph()).quantize(8)
        expected = np.array(image.convert("RGB"))
        hidden = np.array(image) == 3
        expected[hidden] = 255
        np.testing.assert_array_equal(self.read(tmp_path, image, transparency=3), expected)

    @pytest.mark.parametrize("name", ["a.png", "a.tiff"])
    def test_16_bit_is_scaled(self, name, tmp_path):
        grey = photograph()[:, :, 0]
        got = self.read(tmp_path, Image.fromarray(grey.astype(np.uint16) * 257), name)
        np.testing.assert_array_equal(got, np.stack([grey] * 3, axis=2))

    def test_float_is_scaled(self, tmp_path):
        grey = photograph()[:, :, 0]
        got = self.read(tmp_path, Image.fromarray(grey.astype(np.float32) / 255), "a.tiff")
        np.testing.assert_array_equal(got, np.stack([grey] * 3, axis=2))

    def test_cmyk(self, tmp_path):
        got = self.read(tmp_path, Image.fromarray(photograph()).convert("CMYK"), "a.jpg", quality=95)
        assert np.abs(got.astype(int) - photograph()).mean() < 5


# Arguments, and what must stand in the lines on stderr, one each; {x} is a path made by `bad_inputs`.
ON_PARSING = {
    "no_paths": ([], ["the following arguments are required: PATHS"]),
    "unknown_backend": (["{good}", "--backend", "gpu"], ["--backend: invalid choice: 'gpu' (choose from "]),
    "unknown_dtype": (["{good}", "--dtype", "f64"], ["--dtype: invalid choice: 'f64'"]),
    "size_of_words": (["{good}", "--size", "a", "b"], ["--size: must be a whole number of at least 1, got 'a'"]),
    "one_size": (["{good}", "--size", "64"], ["--size: expected 2 arguments"]),
    "scale_of_nan": (["{good}", "--scale", "nan"], ["--scale: must be a positive number, got 'nan'"]),
    "size_and_scale": (["{good}", "--size", "9", "9", "--scale", "1"], ["not allowed with argument"]),
    "no_classes": (["{good}", "--num-classes", "0"], ["--num-classes: must be a whole number of at least 1, got '0'"]),
}
LATER = {
    "empty_folder": (["{empty_dir}"], ["{empty_dir}: no images in this folder"]),
    "too_many_classes": (["{good}", "--num-classes", "300"], ["--num-classes must be 1 to 256, got 300"]),
    "other_model": (
        ["{good}", "--checkpoint", "{checkpoint}", "--model", "rf_lw50"],
        ["{checkpoint}: does not fit rf_lw50 and is nearest to rf_lw_mbv2: "],
    ),
    "no_checkpoint": (["{good}", "--checkpoint", "{text}"], ["{text}: is neither a PyTorch nor a safetensors "]),
    "out_is_under_a_file": (["{good}", "--out", "{text}/out"], ["{text}/out: cannot be written to (not a directory)"]),
    "result_is_a_folder": (["{good}", "--out", "{blocked}"], ["{blocked}/good.png: cannot be written (is a "]),
}
IN_A_PROCESS = {
    "bad_files_beside_good_ones": (
        ["{dir}/nope.jpg", "{text}", "{empty}", "{cut}", "{bomb}", "{empty_dir}", "{mixed}"],
        [
            "{empty_dir}: no images in this folder",
            "{dir}/nope.jpg: cannot be read (no such file or folder)",
            "{text}: is not an image",
            "{empty}: is not an image",
            "{cut}: cannot be read (image file is truncated",
            "{bomb}: the network's input would be 10000 x 9500, more than 89478485 pixels; give --scale",
            "{mixed}/bad.png: is not an image",
        ],
    ),
    "unknown_model": (["{good}", "--model", "resnet"], ["--model: invalid choice: 'resnet' (choose from "]),
    "size_of_zero": (["{good}", "--size", "0", "64"], ["--size: must be a whole number of at least 1, got '0'"]),
    "absent_backend": (["{good}", "--backend", "cuda"], ["the backend 'cuda' cannot run here: "]),
    "other_classes": (
        ["{good}", "--checkpoint", "{checkpoint}", "--num-classes", "21"],
        ["{checkpoint}: has 7 classes, 21 were asked for"],
    ),
    "missing_checkpoint": (["{good}", "--checkpoint", "{dir}/no.pth"], ["{dir}/no.pth: cannot be read: No such file"]),
    "out_is_a_file": (["{good}", "--out", "{text}"], ["{text}: cannot be written to (file exists)"]),
    "environment": (["{good}"], ["LWRN_FAST_BACKEND must be one of auto, reference, cpu, triton, cuda, got 'fast'"]),
}
BAD = {**ON_PARSING, **LATER, **IN_A_PROCESS}


@pytest.fixture(scope="module")
def bad_inputs(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bad")
    paths = {"dir": folder, "checkpoint": checkpoint, "good": save(folder / "good.png"), "mixed": folder / "mixed"}
    paths |= {name: folder / f"{name}.png" for name in ("text", "empty", "bomb")} | {"cut": folder / "cut.jpg"}
    paths |= {"empty_dir": folder / "empty_dir", "blocked": folder / "blocked"}
    paths["text"].write_text("this is text")
    paths["empty"].touch()
    paths["cut"].write_bytes(save(folder / "whole.jpg").read_bytes()[:-300])
    Image.new("1", (10_000, 9_500)).save(paths["bomb"])
    paths["empty_dir"].mkdir()
    (paths["blocked"] / "good.png").mkdir(parents=True)
    save(paths["mixed"] / "a.png")
    save(paths["mixed"] / "c.png")
    (paths["mixed"] / "bad.png").write_text("this is text")
    return paths


@pytest.fixture(scope="module")
def outcomes(bad_inputs: dict[str, Path]) -> dict[str, subprocess.CompletedProcess]:
    """What the real command does in the cases IN_A_PROCESS, as many at a time as there are cores."""

    def run(case: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment["LWRN_FAST_BACKEND"] = "fast" if case == "environment" else "reference"
        command = [*COMMAND, *arguments_of(case, bad_inputs)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(IN_A_PROCESS, pool.map(run, IN_A_PROCESS), strict=True))


def arguments_of(case: str, paths: dict[str, Path]) -> list[str]:
    arguments = [argument.format(**paths) for argument in BAD[case][0]]
    return ["segment", *arguments, *([] if "--out" in arguments else ["--out", str(paths["dir"] / "out" / case)])]


class TestBadInput:
    @pytest.mark.slow
    @pytest.mark.parametrize("case", IN_A_PROCESS)
    def test_in_a_process(self, case, bad_inputs, outcomes):
        outcome = outcomes[case]
        self.check(case, bad_inputs, outcome.returncode, outcome.stderr)
        assert "Traceback" not in outcome.stdout

    @pytest.mark.parametrize("case", ON_PARSING)
    def test_on_parsing(self, case, bad_inputs, capsys):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments_of(case, bad_inputs))
        self.check(case, bad_inputs, stopped.value.code, capsys.readouterr().err)

    @pytest.mark.parametrize("case", LATER)
    def test_later(self, case, bad_inputs, capsys):
        code = cli.main(arguments_of(case, bad_inputs))
        self.check(case, bad_inputs, code, capsys.readouterr().err)

    def check(self, case: str, paths: dict[str, Path], code: object, stderr: str) -> None:
        assert code == 2
        lines = stderr.splitlines()
        expected = [text.format(**paths) for text in BAD[case][1]]
        assert len(lines) == len(expected), stderr
        for line, text in zip(lines, expected, strict=True):
            assert line.startswith(MARK)
            assert text in line

    def test_the_good_images_of_a_folder(self, bad_inputs, outcomes):
        case = "bad_files_beside_good_ones"
        assert sorted(path.name for path in (bad_inputs["dir"] / "out" / case).iterdir()) == ["a.png", "c.png"]
        assert "2 images, " in outcomes[case].stdout

    def test_nothing_is_left_of_a_failed_write(self, bad_inputs):
        assert cli.main(arguments_of("result_is_a_folder", bad_inputs)) == 2
        assert [path.name for path in bad_inputs["blocked"].iterdir()] == ["good.png"]


class TestLargeImages:
    @pytest.fixture
    def photo(self, tmp_path: Path) -> Path:
        """108 megapixels, as telephones make them."""
        path = tmp_path / "phone.jpg"
        Image.new("RGB", (12_000, 9_000), (90, 60, 30)).save(path)
        return path

    def test_scaled(self, photo, checkpoint, tmp_path, capsys):
        arguments = ["segment", str(photo), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
        assert cli.main([*arguments, "--scale", "0.01"]) == 0
        assert capsys.readouterr().err == ""
        assert images.size(tmp_path / "out" / "phone.png") == (9_000, 12_000)

    def test_limits(self, photo, checkpoint, tmp_path, monkeypatch, capsys):
        """Of the file and of the network's input; both can be moved."""
        arguments = ["segment", str(photo), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
        assert cli.main(arguments) == 2
        assert "the network's input would be 12000 x 9000, more than 89478485 pixels" in capsys.readouterr().err
        assert cli.main([*arguments, "--scale", "0.01", "--max-pixels", "1000"]) == 2
        assert f"{photo}: has more than 1000 pixels, 12000 x 9000; " in capsys.readouterr().err
        monkeypatch.setenv("LWRN_FAST_MAX_PIXELS", "1000")
        assert cli.main([*arguments, "--scale", "0.01"]) == 2
        assert f"{photo}: has more than 1000 pixels" in capsys.readouterr().err
        assert cli.main([*arguments, "--scale", "0.01", "--max-pixels", "200000000"]) == 0
        monkeypatch.setenv("LWRN_FAST_MAX_PIXELS", "1e9")
        assert cli.main([*arguments, "--scale", "0.01"]) == 2
        assert "LWRN_FAST_MAX_PIXELS must be a whole number of at least 1, got '1e9'" in capsys.readouterr().err


class TestUnexpected:
    """An error that nobody thought of: one line and 2, and the traceback for who asks for it."""

    @pytest.fixture(autouse=True)
    def _breaks(self, monkeypatch):
        def breaks() -> str:
            raise ZeroDivisionError("division\x1b[2J by\nzero")

        monkeypatch.setattr(cli, "info", breaks)

    def test_one_line(self, capsys):
        assert cli.main(["info"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{MARK}ZeroDivisionError: division\\x1b[2J by (unexpected; LWRN_FAST_TRACEBACK=1 ")

    def test_traceback(self, monkeypatch):
        monkeypatch.setenv("LWRN_FAST_TRACEBACK", "1")
        with pytest.raises(ZeroDivisionError):
            cli.main(["info"])


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1:strict"])
def test_names_that_cannot_be_encoded(encoding, tmp_path):
    """On stdout, where a result has another name than its image."""
    for ending in (b".png", b".bmp"):
        for name in (b"Stra\xdfe", "Stra\u00dfe\u3042".encode()):
            save(Path(os.fsdecode(os.fsencode(tmp_path) + b"/in/" + name + ending)))
    command = [*COMMAND, "segment", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--size", "16", "16"]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")
    assert sum(b" is in " in line for line in done.stdout.splitlines()) == 2
    assert len(list((tmp_path / "out").iterdir())) == 4


class TestProcess:
    def test_info(self):
        outcome = subprocess.run([*COMMAND, "info"], capture_output=True, text=True, timeout=300, check=True)
        assert outcome.stderr == ""
        for name in ("version", "torch", "backends.reference", "backends.cpu", "backends.triton"):
            assert f"\n{name} " in "\n" + outcome.stdout

    @pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
    def test_ctrl_c(self, tmp_path, checkpoint):
        photo = save(tmp_path / "in" / "0.png", photograph(96, 128))
        for number in range(1, 2000):  # more than are done while this process waits for its turn
            os.link(photo, tmp_path / "in" / f"{number}.png")
        out = tmp_path / "out"
        command = [*COMMAND, "segment", str(tmp_path / "in"), "--checkpoint", str(checkpoint), "--out", str(out)]
        environment = os.environ | {"LWRN_FAST_BACKEND": "reference"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        deadline = time.monotonic() + 120
        while not list(out.glob("*.png")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 130
        assert stderr == f"{MARK}interrupted\n"
        assert list(out.glob(".*")) == []
        for path in out.iterdir():
            assert labels(path).shape == (96, 128)

    @pytest.mark.parametrize("absent", ["tqdm", "PIL"])
    def test_without_an_optional_package(self, absent, tmp_path, checkpoint, monkeypatch, capsys):
        photos = [str(save(tmp_path / name)) for name in ("a.png", "b.png")]
        monkeypatch.setitem(sys.modules, absent, None)
        if absent == "PIL":
            monkeypatch.delitem(sys.modules, "lwrn_fast.io.images")
            monkeypatch.delitem(sys.modules, "lwrn_fast.inference.segment", raising=False)
            monkeypatch.delattr(lwrn_fast, "images")
            monkeypatch.delattr(lwrn_fast, "segment", raising=False)
        code = cli.main(["segment", *photos, "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")])
        output = capsys.readouterr()
        if absent == "tqdm":
            assert code == 0
            assert "2 images, " in output.out
        else:
            assert code == 2
            assert "needs Pillow: pip install pillow" in output.err
            assert len(output.err.splitlines()) == 1

    def test_progress_bar_for_more_than_one(self, monkeypatch):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        bar = cli.progress_bar()
        assert not bar([1, 2]).disable
        assert bar([1]).disable
