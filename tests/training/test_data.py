"""Data to train on: both layouts, augmentation, and the generator's images."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lwrn_fast import cli, models
from lwrn_fast.io import images
from lwrn_fast.training import augment, data, generate, loop

CLASSES = 4


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def example(seed: int = 0, size: tuple[int, int] = (40, 56)) -> tuple[np.ndarray, np.ndarray]:
    """Return an image whose colours encode its labels: 60 times the class in every channel."""
    labels = np.random.RandomState(seed).randint(0, CLASSES, (size[0] // 8, size[1] // 8)).repeat(8, 0).repeat(8, 1)
    labels = labels.astype(np.uint8)
    return np.repeat(60 * labels[:, :, None], 3, axis=2), labels


def pairs_folder(folder: Path, count: int = 3) -> Path:
    for i in range(count):
        image, labels = example(i)
        save(folder / "images" / f"{i}.png", image)
        save(folder / "labels" / f"{i}.png", labels)
    return folder


def voc_folder(folder: Path) -> Path:
    for i, stem in enumerate(["2007_01", "2007_02", "2007_03"]):
        image, labels = example(i)
        save(folder / "JPEGImages" / f"{stem}.jpg", image)
        images.make_folder(folder / "SegmentationClass")
        images.write_labels(folder / "SegmentationClass" / f"{stem}.png", labels)
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_03\n2007_01\n")
    (lists / "val.txt").write_text("2007_02\n")
    return folder


class TestLayouts:
    def test_pairs(self, tmp_path):
        pairs = data.find(pairs_folder(tmp_path), "train")
        assert [pair.image.name for pair in pairs] == ["0.png", "1.png", "2.png"]
        for i, pair in enumerate(pairs):
            for got, expected in zip(data.read(pair, CLASSES), example(i), strict=True):
                np.testing.assert_array_equal(got, expected)

    def test_splits(self, tmp_path):
        pairs_folder(tmp_path / "train", 2)
        pairs_folder(tmp_path / "val", 1)
        (tmp_path / "classes.txt").write_text("ground\nsky\n\n")
        assert len(data.find(tmp_path, "train")) == 2
        assert len(data.find(tmp_path, "val")) == 1
        assert data.has_split(tmp_path, "val")
        assert not data.has_split(tmp_path, "test")
        assert data.class_names(tmp_path) == ["ground", "sky"]

    def test_voc(self, tmp_path):
        voc_folder(tmp_path)
        assert [pair.image.stem for pair in data.find(tmp_path, "train")] == ["2007_03", "2007_01"]
        (pair,) = data.find(tmp_path, "val")
        np.testing.assert_array_equal(data.read(pair, CLASSES)[1], example(1)[1])
        assert data.class_names(tmp_path) == list(models.CLASSES)
        assert data.has_split(tmp_path, "val")

    def test_ignored_pixels(self, tmp_path):
        image, labels = example()
        labels[3, 4] = 255
        pair = data.Pair(save(tmp_path / "a.png", image), save(tmp_path / "b.png", labels))
        np.testing.assert_array_equal(data.read(pair, CLASSES)[1], labels)

    def test_invalid_label_maps(self, tmp_path):
        with pytest.raises(data.DataError, match="nowhere: no such folder"):
            data.find(tmp_path / "nowhere", "train")
        with pytest.raises(data.DataError, match="has neither train/images nor images nor JPEGImages"):
            data.find(tmp_path, "train")
        pairs_folder(tmp_path)
        _, labels = example()
        invalid = {
            "is 48 x 40 pixels, its image 56 x 40": labels[:, :48],
            "has the class 9, classes are 0 to 3, and 255": np.where(labels == 3, 9, labels).astype(np.uint8),
            r"is a colour mask \(4 colours\), label maps hold classes: --map-labels": models.PALETTE[labels],
        }
        for message, array in invalid.items():
            pair = data.find(tmp_path, "train")[1]
            save(pair.labels, array)
            with pytest.raises(data.DataError, match=f"labels/1.png: {message}"):
                data.read(pair, CLASSES)
        pair.labels.write_bytes(b"text")
        with pytest.raises(data.DataError, match="labels/1.png: cannot be read"):
            data.read(pair, CLASSES)
        pair.image.write_bytes(b"text")
        with pytest.raises(data.DataError, match="images/1.png: is not an image"):
            data.read(pair, CLASSES)
        pair.labels.unlink()
        with pytest.raises(data.DataError, match="labels/1.png: no such file; it should hold the labels of .*1.png"):
            data.find(tmp_path, "train")

    @pytest.mark.parametrize("layout", [pairs_folder, voc_folder])
    def test_files_that_systems_leave(self, layout, tmp_path):
        """macOS writes "._x.png" next to "x.png" on other systems' disks; and there are thumbnails, and folders."""
        layout(tmp_path)
        wanted = data.find(tmp_path, "train")
        for folder in {path.parent for pair in wanted for path in (pair.image, pair.labels)}:
            for file in list(folder.iterdir()):
                (folder / f"._{file.name}").write_bytes(b"\0\5\26\7")
            for name in (".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.png", ".png", "notes.txt"):
                (folder / name).write_bytes(b"text")
            (folder / "folder.png").mkdir()
        assert data.find(tmp_path, "train") == wanted

    def test_nothing_but_what_systems_leave(self, tmp_path):
        pairs_folder(tmp_path, 1)
        for kind in ("images", "labels"):
            (tmp_path / kind / "0.png").rename(tmp_path / kind / "._0.png")
        with pytest.raises(data.DataError, match="images: no images in this folder"):
            data.find(tmp_path, "train")

    @pytest.mark.parametrize("ending", ["tif", "TIFF", "bmp", "PNG"])
    @pytest.mark.parametrize("layout", [pairs_folder, voc_folder])
    def test_endings_of_labels(self, layout, ending, tmp_path):
        layout(tmp_path)
        for pair in data.find(tmp_path, "train"):
            pair.labels.unlink()
            save(pair.labels.with_suffix(f".{ending}"), example(1)[1])
        pairs = data.find(tmp_path, "train")
        assert {pair.labels.suffix for pair in pairs} == {f".{ending}"}
        np.testing.assert_array_equal(data.read(pairs[0], CLASSES)[1], example(1)[1])

    def test_png_is_preferred(self, tmp_path):
        pairs_folder(tmp_path, 1)
        for ending in ("bmp", "jpg", "tif"):
            save(tmp_path / "labels" / f"0.{ending}", example()[1])
        assert data.find(tmp_path, "train")[0].labels.name == "0.png"

    @pytest.mark.parametrize("layout", [pairs_folder, voc_folder])
    def test_labels_that_lose(self, layout, tmp_path):
        layout(tmp_path)
        pair = data.find(tmp_path, "train")[0]
        pair.labels.rename(pair.labels.with_suffix(".jpg"))
        with pytest.raises(data.DataError, match="jpg: is JPG, which may change values; save label maps as PNG"):
            data.find(tmp_path, "train")

    def test_voc_images_of_other_kinds(self, tmp_path):
        voc_folder(tmp_path)
        image = tmp_path / "JPEGImages" / "2007_01.jpg"
        image.unlink()
        save(image.with_suffix(".png"), example()[0])
        assert data.find(tmp_path, "train")[1].image == image.with_suffix(".png")

    def test_links_that_lead_nowhere(self, tmp_path):
        """They are reported as missing, not as superfluous."""
        pairs_folder(tmp_path)
        (tmp_path / "images" / "1.png").unlink()
        (tmp_path / "images" / "1.png").symlink_to(tmp_path / "nowhere")
        with pytest.raises(data.DataError, match="images/1.png: cannot be read"):
            data.read(data.find(tmp_path, "train")[1], CLASSES)

    def test_class_names(self, tmp_path):
        pairs_folder(tmp_path)
        (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfground\r\nsky\r\n")  # as Windows' editor has it
        assert data.class_names(tmp_path) == ["ground", "sky"]
        (tmp_path / "classes.txt").write_text("ground\nsky\nground\n")
        with pytest.raises(data.DataError, match="classes.txt: names 'ground' twice"):
            data.class_names(tmp_path)

    def test_voc_lists_are_checked(self, tmp_path):
        voc_folder(tmp_path)
        with pytest.raises(data.DataError, match="test.txt: cannot be read .no such file"):
            data.find(tmp_path, "test")


class TestAugmentation:
    def test_image_and_labels_stay_together(self):
        image, labels = example(size=(64, 80))
        flipped = 0
        for seed in range(12):
            options = augment.Options(crop=48, scales=(1, 2))
            x, y = augment.sample(image, labels, options, np.random.SeedSequence(seed))
            colours = x[0, 0] * (255 * models.STD[0]) + 255 * models.MEAN[0]

            def agreement(labels: torch.Tensor, colours: torch.Tensor = colours) -> float:
                inside = labels != 255
                return float(((colours / 60 - labels).abs() < 0.5)[inside].double().mean())

            # between two classes the image is smooth, the labels are not
            assert agreement(y[0]) > 0.85
            for shift in ((0, 2), (0, -2), (2, 0), (-2, 0)):
                assert agreement(y[0].roll(shift, (0, 1))) < agreement(y[0]) - 0.03
            plain, _ = augment.sample(image, labels, augment.Options(48, (1, 2), False), np.random.SeedSequence(seed))
            if not plain.equal(x):
                flipped += 1
                assert plain.flip(3).equal(x)
        assert 0 < flipped < 12

    def test_what_is_outside_is_ignored(self):
        image, labels = example(size=(40, 56))
        x, y = augment.sample(image, labels, augment.Options(64, (1, 1), False), np.random.SeedSequence(0))
        outside = y[0] == 255
        assert int((~outside).sum()) == 40 * 56
        assert float(x[0][:, outside].abs().max()) < 0.02  # the mean colour, rounded to whole numbers

    def test_same_key_same_sample(self, tmp_path):
        pairs = data.find(pairs_folder(tmp_path), "train")

        def one(key: tuple[int, int], seed: int = 0) -> np.ndarray:
            sample = data.TrainingSet(pairs, CLASSES, augment.Options(32), seed)[key]
            assert not isinstance(sample, data.DataError)
            return sample[0].numpy()

        np.testing.assert_array_equal(one((1, 2)), one((1, 2)))
        for other in (one((0, 2)), one((1, 1)), one((1, 2), seed=1)):
            assert not np.array_equal(one((1, 2)), other)

    def test_batches(self):
        order = loop.batches(11, 4, seed=3, epoch=0)
        assert [len(batch) for batch in order] == [4, 4]
        assert len({index for batch in order for index in batch}) == 8
        assert order == loop.batches(11, 4, seed=3, epoch=0) != loop.batches(11, 4, seed=3, epoch=1)


class TestGenerate:
    def command(self, out: Path, *options: str) -> int:
        return cli.main(["generate", str(out), "--images", "6", "--size", "48", "64", *options])

    def contents(self, folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    def test_same_seed_same_files(self, tmp_path, capsys):
        for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
            assert self.command(tmp_path / out, "--seed", seed) == 0
        assert "a: 4 images in train, 1 images in val, 1 images in test" in capsys.readouterr().out
        a, b, c = (self.contents(tmp_path / out) for out in "abc")
        assert a == b
        assert a.keys() == c.keys()
        assert all(a[name] != c[name] for name in a if "images" in name)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]

    def test_is_data_to_train_on(self, tmp_path):
        self.command(tmp_path / "a")
        assert data.class_names(tmp_path / "a") == list(generate.CLASSES)
        for split in generate.SPLITS:
            for pair in data.find(tmp_path / "a", split):
                image, _ = data.read(pair, len(generate.CLASSES))
                assert image.shape == (48, 64, 3)

    def test_every_class_appears_and_images_differ(self):
        images = [generate.draw_image(0, "train", i, (64, 64)) for i in range(40)]
        pixels = np.bincount(np.concatenate([labels.ravel() for _, labels in images]), minlength=8)
        assert pixels.size == 8
        assert (pixels > 0.005 * pixels.sum()).all()
        assert len({image.tobytes() for image, _ in images}) == 40

    def test_bad_input(self, tmp_path, capsys, monkeypatch):
        assert cli.main(["generate", str(tmp_path / "a"), "--images", "2"]) == 2
        assert self.command(tmp_path / "a", "--size", "8", "64") == 2
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "photo.jpg").touch()
        assert self.command(tmp_path / "a") == 2
        assert self.command(tmp_path / "a" / "photo.jpg" / "b") == 2
        lines = capsys.readouterr().err.splitlines()
        expected = [
            "--images must be at least 3, one for each of train, val, test, got 2",
            "--size must be at least 32, got 8 64",
            "exists already; name a new or an empty folder",
            "cannot be written (not a directory)",
        ]
        assert len(lines) == len(expected)
        for line, text in zip(lines, expected, strict=True):
            assert text in line
        assert [path.name for path in tmp_path.rglob("*")] == ["a", "photo.jpg"]

    def test_nothing_is_left_of_a_failure(self, tmp_path, capsys, monkeypatch):
        def full(path: Path, image: np.ndarray) -> None:
            raise images.ImageError(f"{path}: cannot be written (no space left on device)")

        monkeypatch.setattr(images, "write", full)
        assert self.command(tmp_path / "a") == 2
        assert "no space left on device" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_parent_folders_are_made(self, tmp_path):
        assert self.command(tmp_path / "new" / "a") == 0
        shutil.rmtree(tmp_path / "new")
