"""What `train` and `eval` say about label maps before work begins; one logit; counts that are kept."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lwrn_fast import models, normalise
from lwrn_fast.training import advice, data, evaluate, labels, loop, preparing, processes, survey
from lwrn_fast.training.label_map import parse
from support.label_maps import (
    CITYSCAPES_CAR,
    CITYSCAPES_ROAD,
    LAYOUTS,
    MARK,
    TRAIN,
    Run,
    classes,
    coloured,
    grey,
    pairs_folder,
    weights,
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Counts are kept where nobody else finds them."""
    folder = tmp_path_factory.mktemp("cache") / "new"
    monkeypatch.setenv(survey.CACHE, str(folder))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    return weights(tmp_path_factory.mktemp("weights"))


def _quantized() -> list[Image.Image]:
    """Colour masks with the palette of each file sorted by its own pixels."""
    masks = []
    for seed in range(4):
        index = classes(seed, (0, 1, 2))
        order = np.roll([0, 1, 2], seed)
        image = Image.fromarray(order[index].astype(np.uint8))
        colours = np.zeros((3, 3), np.uint8)
        colours[order] = models.PALETTE[:3]
        image.putpalette(colours.tobytes())
        masks.append(image)
    return masks


TWO, THREE = "ground thing", "a b c"
REFUSED: dict[str, tuple[Callable[[], list[Image.Image]], str, list[str], str]] = {
    # label maps, names of classes, parts of the line, the remedy in it
    "masks_of_0_and_255": (lambda: grey(0, 255), TWO, ["hold 0 and 255 only", "ignored"], "255:1"),
    "masks_of_0_and_255_in_rgb": (
        lambda: [image.convert("RGB") for image in grey(0, 255)],
        TWO,
        ["hold 0 and 255 only"],
        "255:1",
    ),
    "masks_of_0_and_255_of_16_bits": (
        lambda: [Image.fromarray(np.array(image, np.uint16)) for image in grey(0, 255)],
        TWO,
        ["hold 0 and 255 only"],
        "255:1",
    ),
    "masks_of_0_and_255_for_one_logit": (lambda: grey(0, 255), "thing", ["hold 0 and 255 only"], "255:1"),
    "masks_of_1_and_255": (lambda: grey(1, 255), TWO, ["hold 1 and 255 only"], "255:0"),
    "masks_of_0_128_and_255": (
        lambda: grey(0, 128, 255),
        THREE,
        ["the class 128, classes are 0 to 2, and 255", "4 of 4 label maps", "the values are 0, 128 and 255"],
        "0:0,128:1,255:2",
    ),
    "smoothed_masks": (
        lambda: grey(*range(0, 256, 15)),
        TWO,
        ["the class 240, classes are 0 to 1", "smoothed masks"],
        "0-127:0,128-255:1",
    ),
    "masks_of_0_and_128": (lambda: grey(0, 128), TWO, ["the class 128, classes are 0 to 1"], "0:0,128:1"),
    "one_based": (lambda: grey(1, 2, 3), THREE, ["the class 3, classes are 0 to 2", "count from 1"], "1-3:0-2"),
    "zero_is_unlabelled": (lambda: grey(0, 1, 2, 3), THREE, ["0 to 3 are 4 classes"], "0:255,1-3:0-2"),
    "cityscapes_label_ids": (
        lambda: grey(7, 11, 26, 33, 1),
        " ".join(f"c{i}" for i in range(19)),
        ["the class 33, classes are 0 to 18", "Cityscapes' labelIds"],
        "cityscapes",
    ),
    "all_ignored": (lambda: grey(255), TWO, ["every pixel", "is 255, which is ignored"], "255:1"),
    "voc_colours": (
        lambda: coloured((0, 0, 0), (128, 0, 0), (224, 224, 192)),
        TWO,
        ["p0.png: is a colour mask (3 colours)", "4 of 4 label maps"],
        "voc",
    ),
    "voc_colours_and_alpha": (
        lambda: coloured((0, 0, 0), (128, 0, 0), mode="RGBA"),
        TWO,
        ["is a colour mask (2 colours)"],
        "voc",
    ),
    "cityscapes_colours": (
        lambda: coloured(CITYSCAPES_ROAD, CITYSCAPES_CAR, (0, 0, 0)),
        " ".join(f"c{i}" for i in range(19)),
        ["is a colour mask"],
        "cityscapes",
    ),
    "own_colours": (
        lambda: coloured((255, 0, 0), (0, 0, 0), (10, 20, 30)),
        THREE,
        ["is a colour mask (3 colours)"],
        "000000:0,0a141e:1,ff0000:2",
    ),
    "colours_among_classes": (
        lambda: [*grey(0, 1), *coloured((0, 0, 0), (128, 0, 0))[:1]],
        TWO,
        ["p4.png: is a colour mask"],
        "voc",
    ),
    "palettes_that_differ": (_quantized, THREE, ["p1.png: the colour", "here and", "in p0.png"], "voc"),
}


class TestRefused:
    """Each kind with its remedy, which, followed, works: in both layouts, by both commands."""

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("kind", REFUSED)
    def test_train(self, kind, layout, tmp_path, capsys):
        make, names, parts, remedy = REFUSED[kind]
        folder = LAYOUTS[layout](tmp_path / "d", make(), names)
        arguments = ["train", folder, "--out", tmp_path / "r", *TRAIN]
        run = Run(capsys, *arguments)
        assert run.code == 2
        assert len(run.errors) == 1
        for part in (MARK, str(folder), *parts, f"--map-labels {remedy}"):
            assert part in run.errors[0]
        assert not (tmp_path / "r").exists()
        assert run.out == ""
        classes = 21 if remedy == "voc" else None
        options = preparing.Options(folder, tmp_path, num_classes=classes, map_labels=remedy, batch=2)
        assert preparing.look(preparing.find_data(options, None), parse(remedy))
        if layout == "pairs" and kind in ("masks_of_0_and_255", "own_colours", "zero_is_unlabelled"):
            assert Run(capsys, *arguments, "--map-labels", remedy).code == 0

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("kind", [kind for kind in REFUSED if kind != "colours_among_classes"])
    def test_eval(self, kind, layout, tmp_path, capsys, checkpoint):
        make, names, parts, remedy = REFUSED[kind]
        folder = LAYOUTS[layout](tmp_path / "d", make(), names)
        arguments = ["eval", folder, "--device", "cpu", "--checkpoint"]
        run = Run(capsys, *arguments, checkpoint(len(names.split())), "--out", tmp_path / "s.json")
        assert run.code == 2
        assert len(run.errors) == 1
        for part in (MARK, str(folder), *parts, f"--map-labels {remedy}"):
            assert part in run.errors[0]
        assert not (tmp_path / "s.json").exists()
        assert "--num-classes" not in run.errors[0]  # which eval has not
        if remedy == "voc":
            (folder / "classes.txt").unlink()
        classes = 21 if remedy == "voc" else len(names.split())
        assert Run(capsys, *arguments, checkpoint(classes), "--map-labels", remedy).code == 0

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_either_split(self, split, tmp_path, capsys):
        folder = pairs_folder(tmp_path / "d", grey(0, 1))
        for i, image in enumerate(grey(0, 255)):
            image.save(folder / split / "labels" / f"p{i}.png")
        run = Run(capsys, "train", folder, "--out", tmp_path / "r", *TRAIN)
        assert run.code == 2
        use = "train on" if split == "train" else "validate with"
        assert f"{split}/labels: the label maps to {use} hold 0 and 255" in run.errors[0]

    def test_masks_with_many_classes(self, tmp_path, capsys):
        """A number of classes that was forgotten is part of the remedy."""
        folder = pairs_folder(tmp_path / "d", grey(0, 255), "a b c d e")
        run = Run(capsys, "train", folder, "--out", tmp_path / "r", *TRAIN)
        assert "--map-labels 255:1 with --num-classes 2" in run.errors[0]

    def test_what_is_deliberate_runs(self, tmp_path, capsys):
        folder = pairs_folder(tmp_path / "d", grey(0, 255))
        run = Run(capsys, "train", folder, "--out", tmp_path / "r", *TRAIN, "--map-labels", "255:255")
        assert run.code == 0
        assert "never in the label maps to train on: 1 (thing); the only class is 0 (ground)" in run.out

    def test_palettes_whose_indices_are_meant(self, tmp_path, capsys):
        folder = pairs_folder(tmp_path / "d", _quantized(), THREE)
        assert Run(capsys, "train", folder, "--out", tmp_path / "r", *TRAIN, "--map-labels", "0:0").code == 0

    def test_one_label_map_of_many(self, tmp_path, capsys, checkpoint):
        """train refuses it; eval leaves it out and says so, as it does with any file."""
        folder = pairs_folder(tmp_path / "d", grey(0, 1))
        for split in ("train", "val"):
            Image.fromarray(classes(0, (0, 7))).save(folder / split / "labels" / "p2.png")
        run = Run(capsys, "train", folder, "--out", tmp_path / "r", *TRAIN)
        assert run.code == 2
        assert "p2.png: has the class 7, classes are 0 to 1, and 255" in run.errors[0]
        run = Run(capsys, "eval", folder, "--checkpoint", checkpoint(2))
        assert run.code == 2
        (line,) = run.errors
        assert line.endswith("/p2.png: has the class 7, classes are 0 to 1, and 255")
        assert "1 of 4 images could not be used and do not count" in run.out

    def test_sizes_before_work(self, tmp_path, capsys):
        """The last image's labels are of another size, and no step is done."""
        folder = pairs_folder(tmp_path / "d", grey(0, 1))
        Image.fromarray(classes(0, size=(32, 36))).save(folder / "train" / "labels" / "p3.png")
        run = Run(capsys, "train", folder, "--out", tmp_path / "r", *TRAIN)
        assert run.errors == [f"{MARK}{folder}/train/labels/p3.png: is 36 x 32 pixels, its image 40 x 32"]
        assert not (tmp_path / "r").exists()

    def test_a_turned_photograph_is_of_its_labels_size(self, tmp_path):
        folder = pairs_folder(tmp_path / "d", grey(0, 1))
        turned = Image.Exif()
        turned[0x0112] = 6
        path = folder / "val" / "images" / "p0.jpg"
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=turned)
        seen = survey.look(data.find(folder, "val"))
        assert all(isinstance(counts, labels.Counts) for counts in seen.results)


class TestSaid:
    def test_table(self, tmp_path, capsys):
        folder = pairs_folder(tmp_path / "d", grey(0, 1, 255), TWO)
        maps = [np.asarray(image) for image in grey(0, 1, 255)]
        run = Run(capsys, "train", folder, "--out", tmp_path / "r", *TRAIN)
        assert run.code == 0
        rows = {line.split("  ")[0]: line.split() for line in run.out.splitlines()}
        for name, value in (("ground", 0), ("thing", 1), ("ignored (255)", 255)):
            pixels = f"{sum((a == value).sum() for a in maps):,}"
            assert rows[name].count(pixels) == 2  # train and val hold the same
            assert rows[name].count("4") == 2
        assert "warning" not in run.out

    def test_eval_scores_have_the_counts(self, tmp_path, capsys, checkpoint):
        folder = pairs_folder(tmp_path / "d", [*grey(0, 1, 255), *grey(0, count=1)], "a b c")
        run = Run(capsys, "eval", folder, "--checkpoint", checkpoint(3), "--out", tmp_path / "s.json")
        assert run.code == 0
        assert "warning: " in run.out
        assert "never in the label maps to evaluate with: 2 (c)" in run.out
        rows = [line.split() for line in run.out.splitlines() if line.startswith(("a ", "b ", "c "))]
        assert [row[-1] for row in rows] == ["5", "4", "0"]
        counts = json.loads((tmp_path / "s.json").read_text())["labels"]
        assert [row["images"] for row in counts["classes"]] == [5, 4, 0]
        every = sum(row["pixels"] for row in counts["classes"]) + counts["ignored"]
        assert every == 5 * 32 * 40

    WARNED = {
        "never": (lambda: grey(0, 1), "a b c d", "never in the label maps to train on: 2 (c), 3 (d)"),
        "one_based_with_a_class_more": (
            lambda: grey(1, 2),
            "a b c",
            "if the labels count from 1, give --map-labels 1-3:0-2",
        ),
        "nothing_but_ground": (lambda: grey(0), TWO, "the only class is 0 (ground)"),
        "blank": (
            lambda: [*grey(0, 1), *grey(255, count=2)],
            TWO,
            "2 of 6 label maps are 255 all over, which is ignored: p4.png, p5.png",
        ),
        "masks_of_two_kinds": (
            lambda: [*grey(0, 1), *grey(0, 255)],
            TWO,
            "4 of 8 label maps hold 255, which is ignored, others 1, and none both; if 255 means 1, give --map-",
        ),
    }

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("kind", WARNED)
    def test_warned(self, kind, layout, tmp_path, capsys):
        make, names, message = self.WARNED[kind]
        folder = LAYOUTS[layout](tmp_path / "d", make(), names)
        run = Run(capsys, "train", folder, "--out", tmp_path / "r", *TRAIN)
        assert run.code == 0
        assert any(line.startswith("warning: ") and message in line for line in run.out.splitlines())

    def test_label_maps_without_image(self, tmp_path, capsys, checkpoint):
        """An image that is missing, or that nobody can read, does not go unnoticed."""
        folder = pairs_folder(tmp_path / "d", grey(0, 1))
        for split in ("train", "val"):
            (folder / split / "images" / "p1.jpg").rename(folder / split / "images" / "p1.raw")
        run = Run(capsys, "train", folder, "--out", tmp_path / "r", *TRAIN)
        assert run.code == 0
        for use in ("train on", "validate with"):
            assert f"labels: label maps without an image to {use}: p1.png" in run.out
        run = Run(capsys, "eval", folder, "--checkpoint", checkpoint(2))
        assert "warning: " in run.out
        assert "without an image to evaluate with: p1.png" in run.out

    def test_many_names_are_few(self, tmp_path):
        folder = pairs_folder(tmp_path / "d", grey(0, 1))
        pairs = data.find(folder, "train")
        lines = advice.judge(survey.look(pairs), None, [str(i) for i in range(150)], advice.TRAIN).warnings
        never = "never in the label maps to train on: 2, 3, 4, 5, 6, 7, 8, 9 and 140 more"
        assert lines == [f"{folder}/train/labels: {never}"]

    def test_good_labels_are_not_spoken_about(self, tmp_path):
        """As VOC has them: borders that are ignored, in some images only."""
        images = [*grey(0, 1, 255), *grey(0, 2), *grey(0, 255, 2)]
        folder = pairs_folder(tmp_path / "d", images, THREE)
        judged = advice.judge(survey.look(data.find(folder, "train")), None, THREE.split(), advice.TRAIN)
        assert judged == advice.Advice()


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
        clear = (mean - 0.5).abs() > 1e-5  # float32 decides the rest as it likes
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


class TestCache:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return pairs_folder(tmp_path / "d", grey(0, 1))

    @pytest.fixture
    def counted(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """The label maps that were decoded."""
        decoded: list[Path] = []
        count = labels.count
        monkeypatch.setattr(labels, "count", lambda path: decoded.append(path) or count(path))
        monkeypatch.setattr(survey, "RECENT", -1.0)  # files of a moment ago are kept too
        return decoded

    def test_only_what_changed_is_read_again(self, folder, counted, cache):
        pairs = data.find(folder, "train")
        first = survey.look(pairs)
        assert len(counted) == 4
        assert len(list(cache.iterdir())) == 1
        assert survey.look(pairs).results == first.results
        assert len(counted) == 4
        Image.fromarray(classes(9, (0, 1, 5))).save(pairs[2].labels)
        again = survey.look(pairs)
        assert counted[4:] == [pairs[2].labels]
        assert 5 in again.results[2].values
        pairs[1].image.write_bytes(b"text")  # no image of this size any longer
        assert survey.look(pairs).results[1] == f"{pairs[1].image}: is not an image"

    def test_relative_paths_are_the_same_files(self, folder, counted, monkeypatch):
        survey.look(data.find(folder, "train"))
        monkeypatch.chdir(folder.parent)
        survey.look(data.find(Path("d"), "train"))
        assert len(counted) == 4

    def test_another_map_needs_no_other_counts(self, folder, counted):
        for text in ("0:0", "1:255"):
            survey.look(data.find(folder, "train", parse(text)))
        assert len(counted) == 4

    def test_same_size_and_time(self, folder, counted):
        """A file with another's size and time is noticed, for the file system knows when it changed."""
        pairs = data.find(folder, "train")
        before = pairs[0].labels.stat()
        survey.look(pairs)
        content = bytearray(pairs[0].labels.read_bytes())
        pairs[0].labels.write_bytes(content)
        os.utime(pairs[0].labels, ns=(before.st_atime_ns, before.st_mtime_ns))
        survey.look(pairs)
        assert len(counted) == 5

    def test_what_changed_a_moment_ago_is_not_kept(self, folder, counted, cache, monkeypatch):
        monkeypatch.setattr(survey, "RECENT", 3600.0)
        for _ in range(2):
            survey.look(data.find(folder, "train"))
        assert len(counted) == 8
        assert not cache.exists()

    DAMAGE: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda _: b"",
        "half": lambda content: content[: len(content) // 2],
        "text": lambda _: b"not a cache\nat all\n",
        "other_numbers": lambda content: content.replace(b'"grey"', b'"gray"'),
        "no_text": lambda _: b"\xff\xfe\n",
        "null": lambda _: b"null\nnull\n",
    }

    @pytest.mark.parametrize("damage", DAMAGE)
    def test_damaged_is_none(self, damage, folder, counted, cache):
        pairs = data.find(folder, "train")
        first = survey.look(pairs)
        (file,) = cache.iterdir()
        file.write_bytes(self.DAMAGE[damage](file.read_bytes()))
        assert survey.look(pairs).results == first.results
        assert len(counted) == 8
        survey.look(pairs)
        assert len(counted) == 8  # written anew

    def test_nowhere_to_write(self, folder, counted, cache):
        cache.write_text("a file where the folder should be")
        for _ in range(2):
            survey.look(data.find(folder, "train"))
        assert len(counted) == 8

    def test_places(self, folder, monkeypatch, tmp_path):
        monkeypatch.setattr(survey, "RECENT", -1.0)
        monkeypatch.delenv(survey.CACHE)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        survey.look(data.find(folder, "train"))
        assert len(list((tmp_path / "xdg" / "lwrn_fast").iterdir())) == 1
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        survey.look(data.find(folder, "train"))
        assert len(list((tmp_path / "home" / ".cache" / "lwrn_fast").iterdir())) == 1

    @pytest.mark.slow
    def test_interrupted(self, folder, cache):
        """Ctrl-C ends the look at once: nothing is kept, and no thread goes on."""

        def progress(pairs):
            yield pairs[0]
            raise KeyboardInterrupt

        before = threading.active_count()
        with pytest.raises(KeyboardInterrupt):
            survey.look(data.find(folder, "train"), progress)
        assert not cache.exists()
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and thread.name.startswith("ThreadPool"):
                thread.join(10)
        assert threading.active_count() <= before


class TestSeveralProcesses:
    def torchrun(self, *arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        every = [*command, "-m", "lwrn_fast", *map(str, arguments)]
        return subprocess.run(every, capture_output=True, text=True, timeout=300, env=environment)

    @pytest.mark.slow
    @pytest.mark.parametrize("command", ["train", "eval"])
    def test_the_first_one_says_it(self, command, tmp_path, checkpoint):
        folder = pairs_folder(tmp_path / "d", grey(0, 255))
        options = ["--out", tmp_path / "r", *TRAIN] if command == "train" else ["--checkpoint", checkpoint(2)]
        done = self.torchrun(command, folder, *options)
        assert done.returncode != 0
        assert done.stderr.count(MARK) == 1
        assert "--map-labels 255:1" in done.stderr
        assert not (tmp_path / "r").exists()

    def test_waiting_is_told(self, monkeypatch):
        """The others hear from the first one while it works, and go on when it is done or gives up."""
        told: list[int] = []
        monkeypatch.setattr(processes, "count", lambda: 2)
        monkeypatch.setattr(processes, "rank", lambda: 0)
        monkeypatch.setattr(processes, "_from_first", lambda value: told.append(value) or value)
        assert processes.by_first(lambda tick: [tick(), tick(), "done"][-1]) == "done"
        assert told == [0, 0, 1]

        def refuses(_):
            raise data.DataError("no")

        with pytest.raises(data.DataError, match="no"):
            processes.by_first(refuses)
        answers = iter(told)
        monkeypatch.setattr(processes, "rank", lambda: 1)
        monkeypatch.setattr(processes, "_from_first", lambda _: next(answers))
        assert processes.by_first(refuses) is None
        with pytest.raises(processes.ToldError):
            processes.by_first(refuses)
