"""normalise on every backend against PyTorch's own antialiased resizing in float64."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import lwrn_fast
from lwrn_fast import models, reference
from support.bench_tools import BENCH

pytestmark = pytest.mark.op("normalise")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPES = [
    ((5, 7), (5, 7)),
    ((5, 7), (10, 14)),
    ((9, 12), (4, 5)),
    ((33, 20), (7, 61)),
    ((1, 1), (3, 2)),
    ((40, 3), (1, 1)),
    ((17, 16), (17, 5)),
    ((3, 65), (8, 65)),
]


def images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("source", "size"), SHAPES, ids=str)
def test_against_float64(backend, source, size, dtype, poisoned):
    """The error is one rounding of the exact result, half a unit in the last digit, and that of float32 sums."""
    x = images(2, *source, 3)
    wanted = reference.normalise(x, size, torch.float64)
    got = lwrn_fast.normalise(x, size, DTYPES[dtype])
    assert got.dtype == DTYPES[dtype]
    assert got.shape == (2, 3, *size)
    assert got.is_contiguous(memory_format=torch.channels_last)
    eps = torch.finfo(DTYPES[dtype]).eps
    bound = wanted.abs() * eps / 2 + 4e-6
    if dtype == "float16":  # small numbers are rounded to multiples of 2**-24
        bound += 2.0**-25
    assert ((got.double() - wanted).abs() <= bound).all()


def test_no_worse_than_pytorch(backend):
    """Compare mean errors in float32, where PyTorch rounds after each of its two passes."""
    x = images(1, 61, 83, 3)
    for size in ((61, 83), (40, 50), (122, 90)):
        wanted = reference.normalise(x, size, torch.float64)
        error = (lwrn_fast.normalise(x, size).double() - wanted).abs().mean()
        theirs = (reference.normalise(x, size).double() - wanted).abs().mean()
        assert error <= 1.1 * theirs + 1e-9


def test_same_size_is_exact(backend):
    """Without resizing, there are the same two roundings as PyTorch's."""
    x = images(1, 16, 16, 3)
    assert torch.equal(lwrn_fast.normalise(x), lwrn_fast.normalise(x, (16, 16)))
    assert torch.allclose(lwrn_fast.normalise(x), reference.normalise(x), rtol=0, atol=5e-7)
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    identity = lwrn_fast.normalise(levels, mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))
    assert torch.equal(identity.round().to(torch.uint8).permute(0, 2, 3, 1), levels)


def test_own_mean_and_std(backend):
    x = images(1, 4, 5, 3)
    got = lwrn_fast.normalise(x, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    wanted = (x.double() / 255 - torch.tensor([0.1, 0.2, 0.3], dtype=torch.double)) / torch.tensor([1.0, 2.0, 4.0])
    assert torch.allclose(got.double(), wanted.permute(0, 3, 1, 2), rtol=0, atol=1e-6)


def test_strides(backend):
    """Parts of a larger image, every second row, transposed, and channels that are not adjacent."""
    whole = images(4, 20, 30, 3)
    for x in (
        whole[::2, 3:17:2, 5:21],
        whole.transpose(1, 2),
        whole.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        whole[:, :, ::3],
    ):
        assert torch.equal(lwrn_fast.normalise(x, (9, 8)), lwrn_fast.normalise(x.contiguous(), (9, 8)))


def test_one_image_and_none(backend):
    x = images(6, 8, 3)
    assert torch.equal(lwrn_fast.normalise(x, 4), lwrn_fast.normalise(x[None], (4, 4)))
    assert lwrn_fast.normalise(images(0, 6, 8, 3), 4).shape == (0, 3, 4, 4)


def test_batch_is_its_images(backend):
    x = images(3, 11, 13, 3)
    each = torch.cat([lwrn_fast.normalise(image, (6, 20)) for image in x])
    assert torch.equal(lwrn_fast.normalise(x, (6, 20)), each)


@pytest.mark.parametrize("threads_", [1, 3])
def test_any_number_of_threads(native, threads, threads_):
    x = images(2, 50, 41, 3)
    with lwrn_fast.use_backend("cpu"):
        torch.set_num_threads(2)
        wanted = lwrn_fast.normalise(x, (33, 77))
        torch.set_num_threads(threads_)
        assert torch.equal(lwrn_fast.normalise(x, (33, 77)), wanted)


@pytest.mark.parametrize("size", [(24, 20), (60, 90), (48, 17)], ids=str)
def test_as_pillow(size):
    """Pillow rounds to whole numbers after each of its two passes."""
    image = np.random.RandomState(0).randint(0, 256, (48, 64, 3)).astype(np.uint8)
    theirs = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    ours = lwrn_fast.normalise(torch.from_numpy(image), size, mean=(0, 0, 0), std=(1 / 255,) * 3)
    assert (ours[0].permute(1, 2, 0) - torch.from_numpy(theirs.copy())).abs().max() <= 1.01


def test_preprocess_resizes():
    image = np.random.RandomState(0).randint(0, 256, (20, 30, 3)).astype(np.uint8)
    wanted = lwrn_fast.normalise(torch.from_numpy(image), (10, 12))
    read_only = image.copy()
    read_only.flags.writeable = False
    turned = np.ascontiguousarray(image[::-1])[::-1]
    for each in (image, read_only, turned, Image.fromarray(image), torch.from_numpy(image)):
        assert torch.equal(models.preprocess(each, (10, 12)), wanted)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((np.zeros((4, 4, 3), np.uint8),), TypeError, "normalise: images must be a torch.Tensor, got ndarray"),
        ((torch.zeros(4, 4, 3),), TypeError, "normalise: images must be uint8, got float32"),
        ((images(4, 4),), ValueError, "images must be (N, H, W, 3) or (H, W, 3), got (4, 4)"),
        ((images(3, 4, 4),), ValueError, "images must be (N, H, W, 3) or (H, W, 3), got (3, 4, 4)"),
        ((images(1, 0, 4, 3),), ValueError, "images must be of height and width >= 1, got (1, 0, 4, 3)"),
        ((images(4, 4, 3), 0), ValueError, "size must be of integers >= 1"),
        ((images(4, 4, 3), None, torch.uint8), ValueError, "dtype must be a floating-point torch.dtype"),
        ((images(4, 4, 3), None, torch.float32, (1, 2)), ValueError, "mean must be 3 numbers"),
        ((images(4, 4, 3), None, torch.float32, (0, 0, 0), (1, 0, 1)), ValueError, "std must be above 0"),
    ],
)
def test_errors(arguments, error, text):
    with pytest.raises(error) as raised:
        lwrn_fast.normalise(*arguments)
    assert text in str(raised.value)


def test_other_dtypes_run_on_the_reference():
    x = images(4, 6, 3)
    assert lwrn_fast.explain("normalise", x, 3, torch.float64)["cpu"] != "ready"
    got = lwrn_fast.normalise(x, 3, torch.float64)
    assert torch.equal(got, reference.normalise(x, 3, torch.float64))


def test_the_op_itself(native):
    """Check by torch.library: schema, strides of the fake kernel, symbolic sizes."""
    arguments = (images(2, 6, 7, 3), 4, 9, [0.1, 0.2, 0.3], [1.0, 2.0, 3.0], torch.bfloat16)
    torch.library.opcheck(torch.ops.lwrn_fast.normalise.default, arguments)
    with pytest.raises(RuntimeError, match="normalise: images must be uint8"):
        torch.ops.lwrn_fast.normalise(torch.zeros(1, 4, 4, 3), 4, 4, [0.0] * 3, [1.0] * 3, torch.float32)
    with pytest.raises(RuntimeError, match="mean and std must be 3 numbers, got 2 and 3"):
        torch.ops.lwrn_fast.normalise(images(1, 4, 4, 3), 4, 4, [0.0] * 2, [1.0] * 3, torch.float32)


COMPILE = """
import aot, torch
from triton.backends.compiler import GPUTarget
from lwrn_fast.kernels.normalise import prepare
for size in ((512, 512), (70000, 70000)):
    images = torch.empty(2, 1080, 1921, 3, dtype=torch.uint8, device="meta")
    for dtype in (torch.float32, torch.float16):
        launch = prepare(images, *size, [0.5, 0.25, 0.125], [1.0, 2.0, 1 / 255], dtype)
        for capability in (80, 90):
            result = aot.measure(aot.compile_launch(launch, GPUTarget("cuda", capability, 32)), disassemble=True)
            assert result.registers > 0 and result.spills == result.stack == 0, result
        assert aot.measure_amd(aot.compile_launch(launch, GPUTarget("hip", aot.AMD, 64))).spills == 0
print("compiled")
"""


@pytest.mark.slow
def test_compiles_for_gpus(tmp_path):
    """The compiler may refuse kernels that the interpreter runs."""
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE]
    environment["PYTHONPATH"] = os.pathsep.join([str(BENCH / "gpu"), *filter(None, [environment.get("PYTHONPATH")])])
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "compiled\n", done.stderr[-3000:]
