"""Label maps: the files that are read, and the meaning of their values and colours."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lwrn_fast import models
from lwrn_fast.training import data, label_map, labels
from lwrn_fast.training.label_map import LabelMap, parse
from support.label_maps import CITYSCAPES_CAR, CITYSCAPES_ROAD, MARK, Run, classes, coloured, grey, pairs_folder

pytestmark = pytest.mark.usefixtures("cache")


class TestFiles:
    """One map of classes in every file format that can hold it."""

    CLASSES = classes(0, (0, 1, 2, 255))
    FILES = {
        "grey": lambda a: (Image.fromarray(a), "png"),
        "palette": lambda a: (_with_palette(a), "png"),
        "two_bits_of_palette": lambda a: (_with_palette(a), "png"),
        "grey_rgb": lambda a: (Image.fromarray(np.repeat(a[:, :, None], 3, 2)), "png"),
        "grey_rgba": lambda a: (Image.fromarray(np.repeat(a[:, :, None], 3, 2)).convert("RGBA"), "png"),
        "grey_and_alpha": lambda a: (Image.fromarray(a).convert("LA"), "png"),
        "sixteen_bits": lambda a: (Image.fromarray(a.astype(np.uint16)), "png"),
        "tiff": lambda a: (Image.fromarray(a), "tif"),
        "deep_tiff": lambda a: (Image.fromarray(a.astype(np.int32)), "tiff"),
        "float_tiff": lambda a: (Image.fromarray(a.astype(np.float32)), "TIFF"),
        "bmp": lambda a: (Image.fromarray(a), "bmp"),
        "pgm": lambda a: (Image.fromarray(a), "pgm"),
    }

    @pytest.mark.parametrize("kind", FILES)
    def test_same_classes_and_counts(self, kind, tmp_path):
        image, ending = self.FILES[kind](self.CLASSES)
        path = tmp_path / f"a.{ending}"
        image.save(path)
        got = labels.read(path)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, self.CLASSES)
        counts = labels.count(path)
        assert dict(zip(counts.values, counts.pixels, strict=True)) == _bins(self.CLASSES)
        assert (counts.width, counts.height) == (40, 32)
        np.testing.assert_array_equal(
            labels.read(path, parse("255:3")), np.where(self.CLASSES == 255, 3, self.CLASSES)
        )

    @pytest.mark.parametrize("ending", ["png", "bmp", "tif"])
    def test_one_bit(self, ending, tmp_path):
        wanted = classes(1, (0, 1))
        path = tmp_path / f"a.{ending}"
        Image.fromarray(wanted * 255).convert("1").save(path)
        np.testing.assert_array_equal(labels.read(path), wanted)
        np.testing.assert_array_equal(labels.read(path, parse("255:1")), wanted)
        counts = labels.count(path)
        assert dict(zip(counts.values, counts.pixels, strict=True)) == _bins(wanted)

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_few_bits_of_grey(self, bits, tmp_path):
        """A file of 2 bits holds the values 0 to 3, although Pillow widens them."""
        wanted = classes(2, tuple(range(1 << bits)), (32, 64))
        path = _few_bits(tmp_path / "a.png", wanted, bits)
        np.testing.assert_array_equal(labels.read(path), wanted)
        assert sorted(labels.count(path).values) == list(range(1 << bits))

    def test_colours(self, tmp_path):
        path = tmp_path / "a.png"
        colours = models.PALETTE[[0, 3, 20, 255]]
        Image.fromarray(colours[classes(3, (0, 1, 2, 3))]).save(path)
        wanted = np.array([0, 3, 20, 255], np.uint8)[classes(3, (0, 1, 2, 3))]
        np.testing.assert_array_equal(labels.read(path, parse("voc")), wanted)
        with pytest.raises(data.DataError, match=r"a.png: is a colour mask \(4 colours\).*--map-labels"):
            labels.read(path)
        with pytest.raises(data.DataError, match="has the colour [0-9a-f]{6}, which --map-labels does not name"):
            labels.read(path, parse("000000:0,808000:1"))

    def test_colours_of_palettes_and_grey(self, tmp_path):
        """A map of colours alone applies to files of any mode."""
        wanted = classes(4, (0, 1, 2))
        table = np.array([(0, 0, 0), (255, 255, 255), (128, 128, 128)], np.uint8)
        named = parse("ffffff:1,000000:0,808080:2")
        for i, image in enumerate(
            (
                Image.fromarray(table[wanted]),
                Image.fromarray(table[wanted]).quantize(3),
                Image.fromarray(table[wanted][:, :, 0]),
            )
        ):
            image.save(tmp_path / f"{i}.png")
            np.testing.assert_array_equal(labels.read(tmp_path / f"{i}.png", named), wanted)

    def test_cityscapes(self, tmp_path):
        ids = classes(5, (0, 7, 26, 33, 4))
        Image.fromarray(ids).save(tmp_path / "ids.png")
        wanted = np.full(256, 255, np.uint8)
        wanted[[7, 26, 33]] = 0, 13, 18
        np.testing.assert_array_equal(labels.read(tmp_path / "ids.png", parse("cityscapes")), wanted[ids])
        (image, *_) = coloured(CITYSCAPES_ROAD, CITYSCAPES_CAR, (0, 0, 0))
        image.convert("RGBA").save(tmp_path / "colours.png")  # as in the data set
        got = labels.read(tmp_path / "colours.png", parse("cityscapes"))
        np.testing.assert_array_equal(got, np.array([0, 13, 255], np.uint8)[classes(0, (0, 1, 2))])

    REFUSED = {
        "jpeg": (lambda a: Image.fromarray(a), "JPEG", "is JPEG, which may change values; save label maps as PNG"),
        "webp": (lambda a: Image.fromarray(a), "WEBP", "is WEBP, which may change values"),
        "gif": (lambda a: Image.fromarray(a), "GIF", "is GIF, which may change values"),
        "photograph": (
            lambda a: Image.fromarray(np.random.RandomState(0).randint(0, 256, (32, 40, 3)).astype(np.uint8)),
            "PNG",
            "holds more than 256 colours",
        ),
        "transparent": (
            lambda a: Image.merge("LA", [Image.fromarray(a), Image.fromarray(a * 255)]),
            "PNG",
            "has transparent pixels",
        ),
        "cmyk": (lambda a: Image.new("CMYK", (4, 4)), "TIFF", "must hold classes as a palette, grey or RGB, is CMYK"),
        "halves": (lambda a: Image.fromarray(a / np.float32(2)), "TIFF", "holds numbers that are not whole"),
        "nan": (lambda a: Image.fromarray(a * np.float32("nan")), "TIFF", "holds numbers that are not whole"),
        "negative": (lambda a: Image.fromarray(a.astype(np.int32) - 1), "TIFF", "has the value -1"),
        "instances": (lambda a: Image.fromarray(a.astype(np.uint16) * 7001), "PNG", "has the value 7001, classes are"),
    }

    @pytest.mark.parametrize("kind", REFUSED)
    def test_refused_whatever_they_are_called(self, kind, tmp_path):
        make, file_format, message = self.REFUSED[kind]
        path = tmp_path / "a.png"
        make(classes(0)).save(path, format=file_format)
        with pytest.raises(data.DataError, match=f"a.png: {message}"):
            labels.read(path)

    @pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n"])
    def test_damaged(self, content, tmp_path):
        (tmp_path / "a.png").write_bytes(content)
        for function in (labels.read, labels.count):
            with pytest.raises(data.DataError, match="a.png: cannot be read"):
                function(tmp_path / "a.png")


class TestLabelMap:
    def test_values(self):
        named = parse("0:255, 1-150:0-149,65535:255,200-202:7")
        got = named.classes(label_map.GREY, [0, 1, 150, 65535, 201, 160])
        assert got == [255, 0, 149, 255, 7, 160]

    def test_later_wins(self):
        assert parse("cityscapes,0:3").values[0] == 3
        assert parse("#FF0000:1,ff0000:2").colours == {0xFF0000: 2}

    def test_six_digits_are_a_colour(self):
        assert parse("123456:1") == LabelMap({}, {0x123456: 1}, by_colour=True)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("255=1", "got '255=1'"),
            ("", "got ''"),
            ("255:1,", "got ''"),
            ("pascal", "or voc or cityscapes, got 'pascal'"),
            ("1:256", "classes are 0 to 254, and 255 for what is ignored, got 256"),
            ("ff0000:999", "got 999"),
            ("5-1:0", "the smaller one first, got '5-1:0'"),
            ("70000:1", "values are 0 to 65535"),
            ("1-3:0-1", "3 values cannot have 2 classes, got '1-3:0-1'"),
            ("-1:255", "got '-1:255'"),
        ],
    )
    @pytest.mark.parametrize("command", ["train", "eval"])
    def test_one_line(self, command, text, message, tmp_path, capsys, checkpoint):
        pairs_folder(tmp_path / "d", grey(0, 1))
        options = ["--out", tmp_path / "r"] if command == "train" else ["--checkpoint", checkpoint(2)]
        run = Run(capsys, command, tmp_path / "d", *options, f"--map-labels={text}")
        assert run.code == 2
        assert len(run.errors) == 1
        assert run.errors[0].startswith(f"{MARK}--map-labels: ")
        assert message in run.errors[0]
        assert not (tmp_path / "r").exists()


def _bins(array: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(array, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _with_palette(array: np.ndarray) -> Image.Image:
    image = Image.fromarray(array)
    image.putpalette(models.PALETTE.tobytes())
    return image


def _few_bits(path: Path, array: np.ndarray, bits: int) -> Path:
    """Write a grey PNG of 1, 2 or 4 bits, which Pillow cannot, and return its path."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = array.shape
    unpacked = (array[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(unpacked.reshape(height, width * bits).astype(np.uint8), axis=1)
    content = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path
