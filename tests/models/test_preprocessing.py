"""Preprocessing of images, and the palette and classes of PASCAL VOC."""

import numpy as np
import pytest
import torch
from PIL import Image

from lwrn_fast import models
from support.shared_files import shared


class TestPreprocess:
    @pytest.mark.parametrize("kind", ["numpy", "flipped", "read_only", "tensor", "sliced_tensor", "pil"])
    def test_formula(self, kind):
        pixels = np.random.RandomState(0).randint(0, 256, (5, 7, 3)).astype(np.uint8)
        image = pixels
        if kind == "flipped":
            image = pixels[:, ::-1].copy()[:, ::-1]
        elif kind == "read_only":
            image = pixels.copy()
            image.setflags(write=False)
        elif kind == "tensor":
            image = torch.from_numpy(pixels.copy())
        elif kind == "sliced_tensor":
            image = torch.from_numpy(pixels.repeat(2, axis=1))[:, ::2]
        elif kind == "pil":
            image = Image.fromarray(pixels)
        got = models.preprocess(image)
        expected = (pixels / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        assert got.dtype == torch.float32
        assert got.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_allclose(got[0].permute(1, 2, 0).numpy(), expected, rtol=1e-5, atol=1e-6)

    def test_leaves_the_image_alone(self):
        image = torch.full((2, 2, 3), 7, dtype=torch.uint8)
        models.preprocess(image)
        assert image.eq(7).all()

    def test_wrong_dtype(self):
        with pytest.raises(TypeError, match="preprocess: image must be uint8, got float32"):
            models.preprocess(torch.rand(4, 4, 3))
        with pytest.raises(TypeError, match="preprocess: image must be uint8, got int64"):
            models.preprocess(np.zeros((4, 4, 3), np.int64))

    @pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4), (4, 4, 4), (1, 4, 4, 3)], ids=str)
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"preprocess: image must be \(H, W, 3\), got \("):
            models.preprocess(np.zeros(shape, np.uint8))


class TestVoc:
    def test_palette(self):
        assert models.PALETTE.shape == (256, 3)
        assert models.PALETTE.dtype == np.uint8
        assert len({tuple(colour) for colour in models.PALETTE.tolist()}) == 256
        assert models.PALETTE[[0, 1, 15, 20, 255]].tolist() == [
            [0, 0, 0],
            [128, 0, 0],
            [192, 128, 128],
            [0, 64, 128],
            [224, 224, 192],
        ]

    def test_palette_is_that_of_the_ground_truth(self):
        for path in sorted(shared("images/voc").glob("*.png")):
            with Image.open(path) as image:
                colours = np.array(image.getpalette()).reshape(-1, 3)
            np.testing.assert_array_equal(models.PALETTE[: len(colours)], colours)

    def test_classes(self):
        assert len(models.CLASSES) == 21
        assert models.CLASSES[15] == "person"
