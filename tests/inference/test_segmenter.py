"""Segmenter against its stages done one by one, from every type of image, size and thread."""

import copy
import gc
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import lwrn_fast
from lwrn_fast import heap, models, reference
from lwrn_fast.training import evaluate
from support.exporting import needs_compiler
from support.segmenting import CLASSES, assert_same_labels, network, random_image


def by_hand(model: nn.Module, image: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """In plain PyTorch."""
    with lwrn_fast.use_backend("reference"), torch.inference_mode():
        logits = model(reference.normalise(torch.from_numpy(image), size))
        return reference.upsample_argmax(logits, image.shape[:2])[0].numpy()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(3)
    return network()


@pytest.fixture(scope="module")
def segmenter(model) -> lwrn_fast.Segmenter:
    return lwrn_fast.Segmenter(model)


@pytest.mark.parametrize("size", [(40, 64), (33, 57), (1, 1), (7, 200)], ids=str)
def test_any_size(segmenter, model, size):
    image = random_image(*size)
    assert_same_labels(segmenter(image), by_hand(model, image))


def test_input_of_one_size(model):
    segmenter = lwrn_fast.Segmenter(model, size=(48, 40))
    for size in ((50, 70), (48, 40), (20, 9)):
        image = random_image(*size)
        assert segmenter.input(image).shape == (1, 3, 48, 40)
        assert_same_labels(segmenter(image), by_hand(model, image, (48, 40)))


def test_scale(model):
    image = random_image(60, 41)
    assert_same_labels(lwrn_fast.Segmenter(model, scale=0.5)(image), by_hand(model, image, (30, 20)))


def test_kinds_of_images(segmenter):
    image = random_image(24, 32)
    wanted = segmenter(image)
    read_only = image.copy()
    read_only.flags.writeable = False
    for kind in (read_only, Image.fromarray(image), image.copy(order="F")):
        got = segmenter(kind)
        assert isinstance(got, np.ndarray)
        assert np.array_equal(got, wanted)
    tensor = segmenter(torch.from_numpy(image))
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), wanted)
    grey = Image.fromarray(image[:, :, 0])
    assert np.array_equal(segmenter(grey), segmenter(np.asarray(grey.convert("RGB"))))


def test_batches_and_lists(segmenter):
    images = [random_image(24, 32, seed) for seed in range(3)]
    each = [segmenter(image) for image in images]
    batch = segmenter(np.stack(images))
    assert batch.shape == (3, 24, 32)
    assert np.array_equal(batch, np.stack(each))
    mixed = segmenter([images[0], torch.from_numpy(images[1]), Image.fromarray(images[2]), random_image(9, 9)])
    assert all(np.array_equal(got, wanted) for got, wanted in zip(mixed, each, strict=False))
    assert isinstance(mixed[1], torch.Tensor)
    assert segmenter([]) == []
    assert all(np.array_equal(got, wanted) for got, wanted in zip(segmenter.map(iter(images)), each, strict=True))


def test_scales_and_flip(model):
    """As `lwrn-fast eval` averages them."""
    named = copy.deepcopy(model)
    named.num_classes = CLASSES
    image = random_image(40, 56)
    for scales, flip in (((0.5, 1.0, 1.5), False), ((1.0,), True), ((0.75, 1.0), True)):
        wanted = evaluate.predict(named, image, evaluate.Options(scales, flip))
        assert_same_labels(lwrn_fast.Segmenter(model, scales=scales, flip=flip)(image), wanted.numpy())
    mirrored = lwrn_fast.Segmenter(model, flip=True)
    assert_same_labels(mirrored(image[:, ::-1])[:, ::-1], mirrored(image))


def test_own_normalisation(model):
    image = random_image(16, 16)
    segmenter = lwrn_fast.Segmenter(model, mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.equal(segmenter.input(image), lwrn_fast.normalise(torch.from_numpy(image), mean=[0] * 3, std=[1] * 3))


def test_bfloat16(model):
    segmenter = lwrn_fast.Segmenter(model, dtype=torch.bfloat16)
    image = random_image(40, 40)
    assert segmenter.input(image).dtype == torch.bfloat16
    assert (segmenter(image) != by_hand(model, image)).mean() < 0.1


def test_the_model_stays_as_it_was(model):
    mine = copy.deepcopy(model).train()
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    segmenter = lwrn_fast.Segmenter(mine)
    wanted = segmenter(random_image(16, 16))
    assert mine.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())
    with torch.no_grad():
        mine[4].weight.mul_(-1)
    assert np.array_equal(segmenter(random_image(16, 16)), wanted)


@pytest.mark.slow
@needs_compiler
def test_compiled(model, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    segmenter = lwrn_fast.Segmenter(model, how="compile")
    for size in ((40, 64), (50, 33)):
        assert_same_labels(segmenter(random_image(*size)), by_hand(model, random_image(*size)))


def test_timings(model):
    segmenter = lwrn_fast.Segmenter(model)
    assert set(segmenter.timings().values()) == {0}
    segmenter(random_image(64, 64))
    found = segmenter.timings()
    assert list(found) == ["copy in", "pre", "network", "post", "copy out"]
    assert all(found[stage] > 0 for stage in ("pre", "network", "post"))
    assert found["copy in"] == found["copy out"] == 0


def test_from_several_threads(segmenter):
    """Changing sizes, each thread with its own, give what one thread gets."""
    images = [random_image(8 + 5 * seed, 60 - 3 * seed, seed) for seed in range(12)]
    wanted = [segmenter(image) for image in images]
    started = threading.Barrier(4)

    def work(first: int) -> bool:
        started.wait()
        order = [(first * 3 + i) % len(images) for i in range(60)]
        return all(np.array_equal(segmenter(images[i]), wanted[i]) for i in order)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


@pytest.mark.slow
def test_nothing_is_kept(segmenter):
    """Tensors that outlive their call would add up; `bench/targets/soak.py` looks at the whole process for longer."""

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    segmenter(random_image(16, 16))
    before = alive()
    for side in range(8, 40):
        segmenter(random_image(side, 50 - side))
    assert alive() <= before


def test_memory_is_given_back_where_sizes_change(model, monkeypatch):
    given, memory = [], iter(range(0, 1 << 40, heap.MAX_GROWTH // 4 + 1))
    monkeypatch.setattr(heap, "give_back", lambda: given.append(True))
    monkeypatch.setattr(heap, "resident", lambda: next(memory))
    monkeypatch.setattr(heap, "MIN_CHANGES", 6)
    segmenter = lwrn_fast.Segmenter(model)
    for _ in range(10):
        segmenter(random_image(16, 16))
    assert not given
    counts = []
    for side in (8, 12) * 6:
        segmenter(random_image(side, 16))
        counts.append(len(given))
    assert counts == [0] * 4 + [1] * 6 + [2] * 2  # the first image of all was a change too


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"model": 3}, TypeError, "Segmenter: model must be a torch.nn.Module, got int"),
        ({"size": (4, 4), "scale": 2.0}, ValueError, "give size or scale, not both"),
        ({"size": (4,)}, ValueError, "Segmenter: size must be an integer or (height, width)"),
        ({"scale": 0}, ValueError, "Segmenter: scale must be above 0, got 0"),
        ({"scales": ()}, ValueError, "Segmenter: scales must be at least one number, got none"),
        ({"scales": (1, float("nan"))}, ValueError, "Segmenter: scales must be above 0, got nan"),
        ({"how": "fast"}, ValueError, 'how must be "compile" or "eager"'),
        ({"shapes": 0}, ValueError, "Segmenter: shapes must be at least 1, got 0"),
    ],
    ids=str,
)
def test_bad_arguments(model, arguments, error, text):
    with pytest.raises(error) as raised:
        lwrn_fast.Segmenter(**{"model": model} | arguments)
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("image", "error", "text"),
    [
        (np.zeros((4, 4, 3)), TypeError, "Segmenter: image must be uint8, got float64"),
        (np.zeros((4, 4), np.uint8), ValueError, "Segmenter: image must be (H, W, 3), got (4, 4)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "Segmenter: image must be (H, W, 3), got (0, 4, 3)"),
        (torch.zeros(4, 4, 3), TypeError, "Segmenter: image must be uint8, got float32"),
    ],
    ids=str,
)
def test_bad_images(segmenter, image, error, text):
    with pytest.raises(error) as raised:
        segmenter(image)
    assert text in str(raised.value)


def test_a_published_network():
    """The package's own weights on an image like those they were trained with."""
    model = models.load(models.SHAPES)
    image = random_image(96, 128)
    assert_same_labels(lwrn_fast.Segmenter(model)(image), by_hand(model, image))


class Wraps(nn.Module):
    """Returns logits as other people's networks do."""

    def __init__(self, wrap, classes: int = 5) -> None:
        super().__init__()
        self.conv, self.wrap = nn.Conv2d(3, classes, 1), wrap

    def forward(self, x):
        return self.wrap(self.conv(x))


class Output(NamedTuple):
    loss: torch.Tensor | None
    logits: torch.Tensor


class TestOtherPeoplesNetworks:
    IMAGE = np.random.RandomState(0).randint(0, 256, (32, 48, 3), np.uint8)  # noqa: NPY002

    @pytest.mark.slow
    @pytest.mark.parametrize("how", ["eager", pytest.param("compile", marks=needs_compiler)])
    @pytest.mark.parametrize(
        "wrap",
        [
            pytest.param(lambda y: {"out": y, "aux": -y}, id="dict"),
            pytest.param(lambda y: {"segmentation": y}, id="dict of one"),
            pytest.param(lambda y: (y, -y), id="tuple"),
            pytest.param(lambda y: [y], id="list"),
            pytest.param(lambda y: Output(None, y), id="named tuple"),
        ],
    )
    def test_logits_are_found(self, how, wrap):
        network = Wraps(wrap).eval()
        plain = Wraps(lambda y: y).eval()
        plain.load_state_dict(network.state_dict())
        expected = lwrn_fast.Segmenter(plain, size=32)(self.IMAGE)
        assert len(np.unique(expected)) > 1
        assert np.array_equal(lwrn_fast.Segmenter(network, size=32, how=how)(self.IMAGE), expected)

    def test_no_logits(self):
        network = Wraps(lambda y: {"depth": y, "normals": y}).eval()
        with pytest.raises(TypeError, match=r"Segmenter: the network must return .* a dict of \['depth', 'normals'\]"):
            lwrn_fast.Segmenter(network)(self.IMAGE)

    @pytest.mark.parametrize("options", [{}, {"scales": (0.5, 1.0), "flip": True}], ids=["once", "averaged"])
    def test_one_logit_is_a_threshold_at_0(self, options):
        network = Wraps(lambda y: y, classes=1).eval()
        nn.init.zeros_(network.conv.bias)
        labels = lwrn_fast.Segmenter(network, **options)(self.IMAGE)
        assert np.unique(labels).tolist() == [0, 1]
        if not options:
            with torch.no_grad():
                expected = network(models.preprocess(self.IMAGE))[0, 0] > 0
            assert np.array_equal(labels, expected.numpy())

    @pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda s: pickle.loads(pickle.dumps(s))])
    @pytest.mark.parametrize("theirs", [False, True])
    def test_copies(self, theirs, copied):
        network = nn.Sequential(nn.Conv2d(3, 4, 1)) if theirs else models.rf_lw_mbv2(3)
        segmenter = lwrn_fast.Segmenter(network.eval(), size=64)
        other = copied(segmenter)
        assert np.array_equal(other(self.IMAGE), segmenter(self.IMAGE))

    @needs_compiler
    def test_copies_of_compiled_ones(self):
        segmenter = lwrn_fast.Segmenter(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), size=16, how="compile")
        with pytest.raises(TypeError, match="compiled code can be neither copied nor pickled"):
            pickle.dumps(segmenter)
