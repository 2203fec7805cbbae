"""The command `lwrn-fast segment`: one clear line for every error."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from lwrn_fast import cli
from lwrn_fast.io import images
from support.commands import COMMAND, MARK, save

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
    """Results of the real command in the cases IN_A_PROCESS, as many at a time as there are cores."""

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
        """The file and the model's input have limits, and options raise both."""
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
