"""Image files of every mode as uint8 (H, W, 3), RGB."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lwrn_fast.io import images
from support.commands import random_image


class TestReading:
    """Images of every kind come as uint8 (H, W, 3), RGB."""

    def read(self, tmp_path: Path, image: Image.Image, name: str = "a.png", **options: object) -> np.ndarray:
        image.save(tmp_path / name, **options)
        array = images.read(tmp_path / name)
        assert array.dtype == np.uint8
        assert array.shape == (image.height, image.width, 3)
        return array

    def test_exif_orientation(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: show it 90 degrees clockwise
        Image.fromarray(random_image()).save(tmp_path / "a.png", exif=exif)
        np.testing.assert_array_equal(images.read(tmp_path / "a.png"), np.rot90(random_image(), -1))

    def test_grey(self, tmp_path):
        grey = random_image()[:, :, 0]
        np.testing.assert_array_equal(self.read(tmp_path, Image.fromarray(grey)), np.stack([grey] * 3, axis=2))

    def test_black_and_white(self, tmp_path):
        self.read(tmp_path, Image.fromarray(random_image()[:, :, 0] > 128))

    def test_alpha_is_on_white(self, tmp_path):
        pixels = np.dstack([random_image(), np.full((48, 64), 255, np.uint8)])
        pixels[:10, :, 3] = 0
        got = self.read(tmp_path, Image.fromarray(pixels))
        assert (got[:10] == 255).all()
        np.testing.assert_array_equal(got[10:], random_image()[10:])

    def test_transparent_palette(self, tmp_path):
        image = Image.fromarray(random_image()).quantize(8)
        expected = np.array(image.convert("RGB"))
        hidden = np.array(image) == 3
        expected[hidden] = 255
        np.testing.assert_array_equal(self.read(tmp_path, image, transparency=3), expected)

    @pytest.mark.parametrize("name", ["a.png", "a.tiff"])
    def test_16_bit_is_scaled(self, name, tmp_path):
        grey = random_image()[:, :, 0]
        got = self.read(tmp_path, Image.fromarray(grey.astype(np.uint16) * 257), name)
        np.testing.assert_array_equal(got, np.stack([grey] * 3, axis=2))

    def test_float_is_scaled(self, tmp_path):
        grey = random_image()[:, :, 0]
        got = self.read(tmp_path, Image.fromarray(grey.astype(np.float32) / 255), "a.tiff")
        np.testing.assert_array_equal(got, np.stack([grey] * 3, axis=2))

    def test_cmyk(self, tmp_path):
        got = self.read(tmp_path, Image.fromarray(random_image()).convert("CMYK"), "a.jpg", quality=95)
        assert np.abs(got.astype(int) - random_image()).mean() < 5
