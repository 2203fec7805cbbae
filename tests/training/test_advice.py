"""Errors, warnings and tables about label maps, before work begins."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from lwrn_fast import models
from lwrn_fast.training import advice, data, labels, preparing, survey
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
)

pytestmark = pytest.mark.usefixtures("cache")


def _quantized() -> list[Image.Image]:
    """Return colour masks with the palette of each file sorted by its own pixels."""
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
    """Each error names a remedy that works, in both layouts and by both commands."""

    @pytest.mark.slow
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
        assert "--num-classes" not in run.errors[0]  # eval has no such option
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
        """The remedy includes a missing --num-classes."""
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
        """train refuses it; eval leaves it out and reports it, as it does with any file."""
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

    def test_a_turned_image_is_of_its_labels_size(self, tmp_path):
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
        """A missing or unreadable image is reported."""
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
        """Labels as in VOC: borders that are ignored, in some images only."""
        images = [*grey(0, 1, 255), *grey(0, 2), *grey(0, 255, 2)]
        folder = pairs_folder(tmp_path / "d", images, THREE)
        judged = advice.judge(survey.look(data.find(folder, "train")), None, THREE.split(), advice.TRAIN)
        assert judged == advice.Advice()
