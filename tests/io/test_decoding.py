"""One way in for images: a file, a PIL image and its pixels give the same, whatever their mode and metadata."""

import io
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lwrn_fast
from lwrn_fast import models
from lwrn_fast.io import decoding, formats, images
from lwrn_fast.models.preprocessing import pixels
from lwrn_fast.receptive.field import receptive_field

HEIGHT, WIDTH = 20, 24
RAMP = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)


def sample() -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.rint(values).astype(np.uint8)[:, :, None], 3, axis=2)


def with_alpha(mode: str) -> Image.Image:
    """Left half transparent, right half opaque."""
    image = Image.fromarray(sample()).convert({"PA": "P", "LA": "L", "La": "L"}.get(mode, "RGB"))
    alpha = Image.fromarray(np.where(np.arange(WIDTH) < WIDTH // 2, 0, 255).astype(np.uint8)[None].repeat(HEIGHT, 0))
    if mode == "PA":
        image = image.convert("PA")
    image.putalpha(alpha)
    return image.convert(mode)


def on_white(image: np.ndarray) -> np.ndarray:
    result = image.copy()
    result[:, : WIDTH // 2] = 255
    return result


def luminance() -> np.ndarray:
    return np.array(Image.fromarray(sample()).convert("L").convert("RGB"))


# A PIL image of the mode, and the pixels that it stands for.
MODES: dict[str, Callable[[], tuple[Image.Image, np.ndarray]]] = {
    "1": lambda: (Image.fromarray(RAMP > 0.5), grey(255 * (RAMP > 0.5))),
    "L": lambda: (Image.fromarray(sample()).convert("L"), luminance()),
    "RGB": lambda: (Image.fromarray(sample()), sample()),
    "RGBX": lambda: (Image.fromarray(sample()).convert("RGBX"), sample()),
    "RGBA": lambda: (with_alpha("RGBA"), on_white(sample())),
    "RGBa": lambda: (with_alpha("RGBa"), on_white(sample())),
    "LA": lambda: (with_alpha("LA"), on_white(luminance())),
    "La": lambda: (with_alpha("La"), on_white(luminance())),
    "PA": lambda: (
        with_alpha("PA"),
        on_white(np.array(Image.fromarray(sample()).convert("P").convert("RGB"))),
    ),
    "I;16": lambda: (Image.fromarray((RAMP * 65535).astype(np.uint16)), grey((RAMP * 65535).astype(np.uint16) / 257)),
    "I;16B": lambda: (
        Image.frombytes("I;16B", (WIDTH, HEIGHT), (RAMP * 65535).astype(">u2").tobytes()),
        grey((RAMP * 65535).astype(np.uint16) / 257),
    ),
    "I": lambda: (Image.fromarray((RAMP * 65535).astype(np.int32)), grey((RAMP * 65535).astype(np.int32) / 257)),
    "I_of_8_bits": lambda: (Image.fromarray((RAMP * 255).astype(np.int32)), grey((RAMP * 255).astype(np.int32))),
    "F": lambda: (Image.fromarray(RAMP.astype(np.float32)), grey(RAMP.astype(np.float32).astype(float) * 255)),
    "F_of_16_bits": lambda: (Image.fromarray((RAMP * 65535).astype(np.float32)), grey(RAMP * 65535 / 257)),
    "CMYK": lambda: (Image.fromarray(sample()).convert("CMYK"), sample()),
}
FILES = {
    **{"1": "png", "L": "png", "RGB": "png", "RGBA": "png", "LA": "png", "I;16": "png", "I": "tiff", "F": "tiff"},
    **{"CMYK": "tiff", "I;16B": "tiff", "F_of_16_bits": "tiff", "I_of_8_bits": "tiff"},
}


@pytest.fixture(scope="module")
def segmenter() -> lwrn_fast.Segmenter:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), lwrn_fast.CRP(4, 4))
    return lwrn_fast.Segmenter(model.eval())


def assert_every_entrance(segmenter: lwrn_fast.Segmenter, given: object, expected: np.ndarray) -> None:
    """An image through Segmenter and preprocess is what its pixels are."""
    wanted = torch.from_numpy(expected)
    assert torch.equal(pixels(given, "image"), wanted)
    assert torch.equal(models.preprocess(given), models.preprocess(expected))
    assert torch.equal(segmenter.input(given), segmenter.input(expected))
    for labels in (segmenter(given), segmenter([given])[0], next(segmenter.map([given]))):
        assert isinstance(labels, np.ndarray)
        np.testing.assert_array_equal(labels, segmenter(expected))


class TestModes:
    @pytest.mark.parametrize("mode", MODES)
    def test_pil(self, mode, segmenter):
        image, expected = MODES[mode]()
        before = image.tobytes()
        assert_every_entrance(segmenter, image, expected)
        assert image.tobytes() == before

    @pytest.mark.parametrize("mode", FILES)
    def test_file_as_path_and_as_pil(self, mode, segmenter, tmp_path):
        image, expected = MODES[mode]()
        path = tmp_path / f"a.{FILES[mode]}"
        image.save(path)
        np.testing.assert_array_equal(images.read(path), expected)
        for given in (path, str(path), Image.open(path)):
            assert_every_entrance(segmenter, given, expected)

    @pytest.mark.parametrize("name", ["HSV", "LAB", "YCbCr"])
    def test_other_colours(self, name, tmp_path):
        """As Pillow converts them."""
        image = Image.new(name, (WIDTH, HEIGHT), (150, 120, 140))
        np.testing.assert_array_equal(pixels(image, "x").numpy(), np.array(image.convert("RGB")))

    def test_transparent_colours(self, segmenter, tmp_path):
        """One value of a palette, a value for each, a palette with alpha, one grey and one colour."""
        palette = Image.fromarray(sample()).quantize(8)
        index, opaque = np.array(palette), np.array(palette.convert("RGB"))
        same_as_first = (opaque == opaque[0, 0]).all(axis=2)
        shades = bytes([0, 128, 255, 255, 0])
        half = ((opaque.astype(int) * 128 + 255 * 127) / 255).round()
        cases = [
            (palette, 3, np.where((index == 3)[:, :, None], 255, opaque)),
            (palette, shades, np.where((index == 1)[:, :, None], half, opaque)),
            (Image.fromarray(index * 9), 27, np.where((index == 3)[:, :, None], 255, grey(index * 9))),
            (Image.fromarray(opaque), tuple(opaque[0, 0].tolist()), np.where(same_as_first[:, :, None], 255, opaque)),
        ]
        cases[1][2][(index == 0) | (index == 4)] = 255
        for number, (image, transparency, expected) in enumerate(cases):
            path = tmp_path / f"{number}.png"
            image.save(path, transparency=transparency)
            expected = expected.astype(np.uint8)
            got = images.read(path)
            assert abs(got.astype(int) - expected).max() <= 1  # halves of 128 / 255
            np.testing.assert_array_equal(got[(index != 1)], expected[(index != 1)])
            assert_every_entrance(segmenter, Image.open(path), got)

    def test_transparent_16_bit_grey(self, tmp_path):
        values = (RAMP * 65535).astype(np.uint16)
        path = tmp_path / "a.png"
        Image.fromarray(values).save(path)
        key = struct.pack(">H", int(values[3, 4]))
        path.write_bytes(with_chunk(path.read_bytes(), b"tRNS", key))
        expected = grey(values / 257)
        expected[values == values[3, 4]] = 255
        np.testing.assert_array_equal(images.read(path), expected)

    def test_odd_transparency_is_ignored(self):
        image = Image.fromarray(sample())
        for value in ("no", (1, 2), [3], None):
            image.info["transparency"] = value
            np.testing.assert_array_equal(decoding.to_rgb(image, "x"), sample())
            assert image.info["transparency"] is value

    def test_float_that_is_no_number(self):
        values = np.array([[0.5, np.nan], [np.inf, -np.inf]], np.float32)
        got = decoding.to_rgb(Image.fromarray(values), "x")[:, :, 0]
        np.testing.assert_array_equal(got, [[128, 0], [255, 0]])

    @pytest.mark.parametrize("kind", ["gif", "png", "tiff", "webp"])
    def test_the_first_of_several(self, kind, segmenter, tmp_path):
        frames = [Image.fromarray(np.full((HEIGHT, WIDTH, 3), value, np.uint8)) for value in (40, 90, 200)]
        path = tmp_path / f"a.{kind}"
        options = {"lossless": True} if kind == "webp" else {}
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        for given in (path, Image.open(path)):
            assert_every_entrance(segmenter, given, np.array(frames[0]))
        later = Image.open(path)
        later.seek(1)  # the frame that its owner has chosen
        np.testing.assert_array_equal(pixels(later, "x").numpy(), np.array(frames[1]))

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16", "F"])
    def test_bands(self, mode, monkeypatch):
        """Converted a few rows at a time, as large images are."""
        image = with_alpha("RGBA").convert(mode) if mode in ("RGB", "RGBA", "P") else MODES[mode]()[0]
        if mode == "P":
            image.info["transparency"] = 7
        whole = decoding.to_rgb(image, "x")
        monkeypatch.setattr(decoding, "BAND", 3 * WIDTH + 1)
        np.testing.assert_array_equal(decoding.to_rgb(image, "x"), whole)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


class TestOrientation:
    TURNED = (
        *(None, lambda a: a, lambda a: a[:, ::-1], lambda a: a[::-1, ::-1], lambda a: a[::-1]),
        *(lambda a: a.swapaxes(0, 1), lambda a: np.rot90(a, -1)),
        *(lambda a: a[::-1, ::-1].swapaxes(0, 1), lambda a: np.rot90(a)),
    )

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
    def test_all(self, orientation, kind, segmenter, tmp_path):
        path = tmp_path / f"a.{kind}"
        options = {"lossless": True} if kind == "webp" else {}
        Image.fromarray(sample()).save(path, exif=exif(orientation), **options)
        expected = np.ascontiguousarray(self.TURNED[orientation](sample()))
        for given in (path, Image.open(path)):
            assert_every_entrance(segmenter, given, expected)

    @pytest.mark.parametrize("orientation", [0, 9, 65535])
    def test_others_mean_nothing(self, orientation, tmp_path):
        Image.fromarray(sample()).save(tmp_path / "a.png", exif=exif(orientation))
        np.testing.assert_array_equal(images.read(tmp_path / "a.png"), sample())

    def test_once(self, tmp_path):
        """An image that Pillow has turned already is not turned again."""
        from PIL import ImageOps

        Image.fromarray(sample()).save(tmp_path / "a.png", exif=exif(6))
        image = ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))
        np.testing.assert_array_equal(pixels(image, "x").numpy(), np.rot90(sample(), -1))


def with_chunk(png: bytes, kind: bytes, content: bytes, before: bytes = b"IDAT", checksum: int | None = None) -> bytes:
    place = png.index(before) - 4
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
    return png[:place] + chunk + png[place:]


def with_segment(jpeg: bytes, kind: int, content: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 255, kind, len(content) + 2) + content + jpeg[2:]


BOMB = zlib.compress(bytes(3 << 20))
ENTRY = struct.pack("<HHI", 0x0112, 2, 2) + b"6\0\0\0"
TIFF_OF_TEXT = b"II*\0\x08\0\0\0\x01\0" + ENTRY + bytes(4)
CHUNKS = {
    "exif": (b"eXIf", b"no tiff"),
    "exif_of_text": (b"eXIf", TIFF_OF_TEXT),
    "text_that_is_long": (b"zTXt", b"key\0\0" + BOMB),
    "international_text": (b"iTXt", b"key\0\1\0\0\0" + BOMB),
    "xmp": (b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="99"'),
    "profile": (b"iCCP", b"p\0\0" + BOMB),
    "profile_of_another_kind": (b"iCCP", b"p\0\5abc"),
    "profile_cut": (b"iCCP", b"p"),
    "resolution": (b"pHYs", b"ab"),
    "gamma": (b"gAMA", b"a"),
    "intent": (b"sRGB", b""),
    "animation": (b"acTL", b"a"),
    "frame": (b"fcTL", b"a"),
    "transparency": (b"tRNS", b"a"),
}
SEGMENTS = {
    "jfif": (0xE0, b"JFIF"),
    "exif": (0xE1, b"Exif\0\0nonsense"),
    "exif_of_text": (0xE1, b"Exif\0\0" + TIFF_OF_TEXT),
    "xmp": (0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="0">'),
    "profile": (0xE2, b"ICC_PROFILE\0\1\2abc"),
    "several_images": (0xE2, b"MPF\0nonsense"),
    "several_images_empty": (0xE2, b"MPF\0II*\0\x08\0\0\0\0\0"),
    "adobe": (0xEE, b"Adobe"),
    "photoshop": (0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\2ab"),
}


@pytest.mark.filterwarnings("ignore:::PIL")
class TestMetadata:
    """Data beside the pixels never reject an image, in a file and in a PIL image."""

    def check(self, path: Path, expected: np.ndarray) -> None:
        np.testing.assert_array_equal(images.read(path), expected)
        try:
            image = Image.open(path)
        except Exception:  # Pillow's, before this package is asked
            return
        np.testing.assert_array_equal(pixels(image, "x").numpy(), expected)

    @pytest.mark.parametrize("before", [b"IDAT", b"IEND"], ids=["before", "after"])
    @pytest.mark.parametrize("case", CHUNKS)
    def test_png(self, case, before, tmp_path):
        path = tmp_path / "a.png"
        Image.fromarray(sample()).save(path)
        path.write_bytes(with_chunk(path.read_bytes(), *CHUNKS[case], before))
        self.check(path, sample())

    def test_png_with_a_wrong_checksum_of_a_text(self, tmp_path):
        path = tmp_path / "a.png"
        Image.fromarray(sample()).save(path)
        path.write_bytes(with_chunk(path.read_bytes(), b"tEXt", b"key\0value", checksum=1))
        self.check(path, sample())

    @pytest.mark.parametrize("case", SEGMENTS)
    def test_jpeg(self, case, tmp_path):
        path = tmp_path / "a.jpg"
        Image.fromarray(sample()).save(path, quality=90)
        expected = np.array(Image.open(path))
        path.write_bytes(with_segment(path.read_bytes(), *SEGMENTS[case]))
        self.check(path, expected)

    def test_orientation_is_kept_beside_what_is_broken(self, tmp_path):
        png, jpeg = tmp_path / "a.png", tmp_path / "a.jpg"
        for path in (png, jpeg):
            Image.fromarray(sample()).save(path, exif=exif(6))
        expected = np.rot90(np.array(Image.open(jpeg)), -1)
        png.write_bytes(with_chunk(png.read_bytes(), *CHUNKS["profile_cut"]))
        jpeg.write_bytes(with_segment(jpeg.read_bytes(), *SEGMENTS["adobe"]))
        np.testing.assert_array_equal(images.read(png), np.rot90(sample(), -1))
        np.testing.assert_array_equal(images.read(jpeg), expected)

    def test_two_images_of_which_the_second_is_cut(self, tmp_path):
        path = tmp_path / "a.mpo"
        image = Image.fromarray(sample())
        image.save(path, save_all=True, append_images=[image], quality=90)
        expected = images.read(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        self.check(path, expected)

    @pytest.mark.parametrize("kind", ["bmp", "gif", "jpg", "png", "tiff", "webp"])
    def test_something_behind_the_image(self, kind, tmp_path):
        path = tmp_path / f"a.{kind}"
        Image.fromarray(sample()).save(path)
        expected = images.read(path)
        with open(path, "ab") as file:
            file.write(b"more" * 50)
        self.check(path, expected)

    @pytest.mark.parametrize("kind", ["png", "jpg"])
    def test_a_broken_image_stays_one(self, kind, tmp_path):
        """Broken metadata do not hide that pixels are missing."""
        path = tmp_path / f"a.{kind}"
        Image.fromarray(sample()).save(path)
        whole = path.read_bytes()
        cut = whole[: len(whole) * 2 // 3]
        odd = with_chunk(cut, b"zTXt", b"key\0\0" + BOMB) if kind == "png" else with_segment(cut, 0xEE, b"Adobe")
        for data in (cut, odd):
            path.write_bytes(data)
            with pytest.raises(images.ImageError, match="cannot be read"):
                images.read(path)


class TestErrors:
    def test_a_cut_file_is_named_in_one_line(self, segmenter, tmp_path):
        path = tmp_path / "cut.jpg"
        Image.fromarray(sample()).save(path)
        path.write_bytes(path.read_bytes()[:-200])
        for given in (path, str(path), Image.open(path)):
            for call in (segmenter, models.preprocess, segmenter.input):
                with pytest.raises(OSError, match="cannot be read") as raised:
                    call(given)
                assert str(path) in str(raised.value)
                assert "image" in str(raised.value)
                assert len(str(raised.value).splitlines()) == 1

    @pytest.mark.parametrize("text", ["", "this is text"], ids=["empty", "text"])
    def test_no_image(self, text, tmp_path):
        (tmp_path / "a.png").write_text(text)
        with pytest.raises(OSError, match="preprocess: image .*a.png: is not an image"):
            models.preprocess(tmp_path / "a.png")

    def test_no_file(self, segmenter):
        with pytest.raises(OSError, match="Segmenter: image nope.png: cannot be read .no such file or folder"):
            segmenter("nope.png")

    @pytest.mark.parametrize(
        ("array", "error", "text"),
        [
            (np.zeros((4, 5), np.uint8), ValueError, "(H, W, 3), got (4, 5); PIL.Image.fromarray(image) is taken"),
            (np.zeros((4, 5, 4), np.uint8), ValueError, "got (4, 5, 4); PIL.Image.fromarray(image) is taken"),
            (np.zeros((4, 5), np.uint16), TypeError, "must be uint8, got uint16; PIL.Image.fromarray(image) is taken"),
            (np.zeros((4, 5, 3)), TypeError, "must be uint8, got float64; (image * 255).round().astype(np.uint8)"),
            (np.zeros((3, 4, 5), np.uint8), ValueError, "got (3, 4, 5); colours come last: image.transpose(1, 2, 0)"),
            (torch.zeros(3, 4, 5, dtype=torch.uint8), ValueError, "colours come last: image.permute(1, 2, 0)"),
            (torch.zeros(2, 3, 4, 5, dtype=torch.uint8), ValueError, "colours come last: image.permute(0, 2, 3, 1)"),
            (b"a.png", TypeError, "must be uint8, got |S5"),
            (None, TypeError, "must be uint8, got object"),
        ],
        ids=["grey", "alpha", "16_bit", "float", "first", "tensor", "batch", "bytes", "none"],
    )
    def test_arrays_that_are_no_images(self, array, error, text, segmenter):
        for call in (segmenter, models.preprocess):
            with pytest.raises(error) as raised:
                call(array)
            assert text in str(raised.value)

    def test_the_remedy_works(self):
        for array in (np.zeros((4, 5), np.uint8), np.zeros((4, 5, 4), np.uint8), np.zeros((4, 5), np.uint16)):
            assert pixels(Image.fromarray(array), "x").shape == (4, 5, 3)


class TestLimits:
    @pytest.fixture(autouse=True)
    def _pillows_limit(self, monkeypatch):
        """As if Pillow's limit were far below the images of these tests."""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)

    @pytest.mark.parametrize("kind", ["png", "jpg", "tiff", "webp", "bmp", "gif"])
    def test_pillows_does_not_count(self, kind, tmp_path):
        path = tmp_path / f"a.{kind}"
        Image.fromarray(sample()).save(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert images.read(path).shape == (HEIGHT, WIDTH, 3)
            assert images.size(path) == (HEIGHT, WIDTH)
        assert Image.MAX_IMAGE_PIXELS == 100

    def test_our_own(self, tmp_path, monkeypatch):
        path = tmp_path / "a.png"
        Image.fromarray(sample()).save(path)
        with pytest.raises(images.ImageError, match=f"a.png: has more than 100 pixels, {WIDTH} x {HEIGHT}; "):
            images.read(path, 100)
        monkeypatch.setenv("LWRN_FAST_MAX_PIXELS", "100")
        with pytest.raises(images.ImageError, match="has more than 100 pixels"):
            images.read(path)
        assert images.read(path, HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
        monkeypatch.setenv("LWRN_FAST_MAX_PIXELS", "many")
        with pytest.raises(images.ImageError, match="LWRN_FAST_MAX_PIXELS must be a whole number"):
            images.read(path)

    def test_from_several_threads(self, tmp_path):
        path = tmp_path / "a.tiff"
        Image.fromarray(sample()).save(path)
        with ThreadPoolExecutor(8) as pool:
            for got in pool.map(images.read, [path] * 200):
                np.testing.assert_array_equal(got, sample())
        assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
def test_one_image_in_several_threads(kind, tmp_path):
    """Opened and not yet decoded: one thread decodes it, and all see it turned."""
    path = tmp_path / f"a.{kind}"
    options = {"lossless": True} if kind == "webp" else {}
    Image.fromarray(sample()).resize((400, 300)).save(path, exif=exif(6), **options)
    expected = images.read(path)
    for _ in range(5):
        image, started = Image.open(path), threading.Barrier(4)

        def work(_: int, image=image, started=started) -> bool:
            started.wait()
            return np.array_equal(pixels(image, "x"), expected)

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))


def test_filters_of_warnings_stay(tmp_path):
    Image.fromarray(sample()).save(tmp_path / "a.png")
    before = list(warnings.filters)
    images.read(tmp_path / "a.png")
    assert list(warnings.filters) == before


def test_arrays_do_without_pillow(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "PIL"]:
        monkeypatch.delitem(sys.modules, name)
    assert pixels(sample(), "x").shape == (HEIGHT, WIDTH, 3)
    assert not [name for name in sys.modules if name.partition(".")[0] == "PIL"]


def test_receptive_field_of_images(tmp_path):
    """Paths, PIL images and arrays give the same."""
    path = tmp_path / "a.png"
    MODES["I;16"]()[0].save(path)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), lwrn_fast.CRP(4, 4))
    wanted = receptive_field(net, size=(16, 16), images=[images.read(path)])["1"].after.map
    for given in ([path], [Image.open(path)], str(path), path, Image.open(path)):
        assert torch.equal(receptive_field(net, size=(16, 16), images=given)["1"].after.map, wanted)


class TestFormats:
    @pytest.mark.parametrize("ending", formats.EXTENSIONS)
    def test_what_is_taken_can_be_read(self, ending, tmp_path):
        """A file of each format that Pillow can write."""
        path = tmp_path / f"a{ending}"
        kind = Image.registered_extensions().get(ending)
        assert kind is not None
        mode = {".pbm": "1", ".pgm": "L"}.get(ending, "RGB")
        data = io.BytesIO()
        if kind not in Image.SAVE:
            pytest.skip(f"this Pillow does not write {kind}")
        Image.fromarray(sample()).convert(mode).save(data, kind)
        path.write_bytes(data.getvalue())
        assert images.read(path).shape == (HEIGHT, WIDTH, 3)

    def test_telephones_and_old_browsers(self):
        assert {".jfif", ".jpe", ".jpeg", ".mpo", ".apng"} <= {*formats.EXTENSIONS}

    @pytest.mark.parametrize(("brand", "remedy"), [(b"heic", "pillow-heif"), (b"avif", "Pillow 11.3")])
    def test_other_images_by_the_name_of_one(self, brand, remedy, tmp_path):
        path = tmp_path / "a.jpg"
        path.write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(100))
        assert remedy in decoding._unidentified(path)
