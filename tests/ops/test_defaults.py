"""Common uses of any PyTorch module: saving, copying, other defaults, NumPy's integers."""

import copy
import io
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import lwrn_fast
from lwrn_fast import models, reference

NETWORKS = ["rf_lw50", "rf_lw_mbv2", "rf_lw_nasnet_mobile", "rf50"]


def saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "torch_save": saved,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "pickle_of_old": lambda module: pickle.loads(pickle.dumps(module, protocol=2)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}
BLOCKS = {
    "CRP": (lambda: lwrn_fast.CRP(8, 8), [torch.rand(1, 8, 6, 7)]),
    "Fusion": (lambda: lwrn_fast.Fusion([8, 4], 5), [torch.rand(1, 8, 6, 7), torch.rand(1, 4, 3, 4)]),
    "UpsampleArgmax": (lambda: lwrn_fast.UpsampleArgmax((9, 8)), [torch.rand(1, 8, 6, 7)]),
    "Decoder": (lambda: models.Decoder([8, 4], 3, 8, rcu=True), [[torch.rand(1, 8, 6, 7), torch.rand(1, 4, 3, 4)]]),
}


class TestCopies:
    @pytest.mark.parametrize("how", COPIES)
    @pytest.mark.parametrize("name", BLOCKS)
    def test_of_blocks(self, name, how):
        make, inputs = BLOCKS[name]
        block = make().eval()
        with torch.no_grad():
            expected = block(*inputs)
            assert torch.equal(COPIES[how](block)(*inputs), expected)

    @pytest.mark.parametrize("how", COPIES)
    @pytest.mark.parametrize("name", NETWORKS)
    def test_of_models(self, name, how):
        model, image = models.NETWORKS[name](3).eval(), torch.rand(1, 3, 32, 32)
        model.memory_format = torch.contiguous_format if how == "deepcopy" else torch.channels_last
        with torch.no_grad():
            expected = model(image)
            twin = COPIES[how](COPIES[how](model))
            assert torch.equal(twin(image), expected)
        assert twin.memory_format is model.memory_format
        assert list(twin.state_dict()) == list(model.state_dict())
        assert twin.train().plain == model.plain

    def test_in_another_process(self):
        model, image = models.rf_lw_mbv2(3).eval().requires_grad_(False), torch.rand(1, 3, 32, 32)
        # multiprocessing.Pool would wait for ever for a worker that dies
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            assert torch.equal(pool.submit(nn.Module.__call__, model, image).result(), model(image))


class TestDefaultDtype:
    @pytest.fixture(autouse=True, params=[torch.float64, torch.bfloat16], ids=str)
    def _default(self, request):
        torch.set_default_dtype(request.param)
        yield
        torch.set_default_dtype(torch.float32)

    def test_results_have_the_dtype_of_their_inputs(self, backend):
        x = torch.rand(1, 8, 6, 7, dtype=torch.float32)
        weight = torch.rand(8, 8, 1, 1, dtype=torch.float32)
        assert lwrn_fast.crp(x, [weight]).dtype == torch.float32
        assert lwrn_fast.fusion([x], [weight], [weight[:, 0, 0, 0]]).dtype == torch.float32
        assert lwrn_fast.upsample_argmax(x, 9).dtype == torch.uint8

    def test_inputs_of_models_are_as_documented(self, backend):
        image = torch.randint(0, 256, (9, 7, 3), dtype=torch.uint8)
        made = lwrn_fast.normalise(image, (5, 6))
        assert made.dtype == torch.float32
        torch.testing.assert_close(made, reference.normalise(image, (5, 6)))

    def test_a_model_of_float32(self):
        model = models.rf_lw_mbv2(3).float().eval()
        with torch.no_grad():
            got = model(models.preprocess(np.zeros((32, 32, 3), np.uint8)))
            torch.set_default_dtype(torch.float32)
            assert torch.equal(got, model(models.preprocess(np.zeros((32, 32, 3), np.uint8))))
        assert got.dtype == torch.float32

    def test_blocks_are_of_the_default_like_every_module(self):
        dtype = torch.get_default_dtype()
        for make, inputs in BLOCKS.values():
            block = make()
            given = [[x.to(dtype) for x in i] if isinstance(i, list) else i.to(dtype) for i in inputs]
            assert {p.dtype for p in block.parameters()} <= {dtype}
            assert block(*given).dtype in (dtype, torch.uint8)


def test_another_default_device():
    """No op uses it: results are on the device of the inputs."""
    model, image = models.rf_lw50(3).eval(), torch.rand(1, 3, 32, 32)
    block, x = lwrn_fast.CRP(8, 8, bias=True), torch.rand(1, 8, 6, 7, requires_grad=True)
    block.get_submodule("2_outvar_dimred").bias = None
    torch.set_default_device("meta")
    try:
        for backend in ("auto", "reference"):
            with lwrn_fast.use_backend(backend):
                with torch.no_grad():
                    labels = lwrn_fast.upsample_argmax(model(image), 32)
                block(x).sum().backward()
                made = lwrn_fast.normalise(torch.zeros((4, 4, 3), dtype=torch.uint8, device="cpu"), 5)
                assert {t.device.type for t in (labels, x.grad, made)} == {"cpu"}
    finally:
        torch.set_default_device(None)


INTEGERS = [np.int64, np.int32, np.uint8, np.int16]


class TestNumpyIntegers:
    @pytest.mark.parametrize("integer", INTEGERS)
    def test_in_constructors(self, integer):
        x, small = torch.rand(1, 8, 6, 7), torch.rand(1, 4, 3, 4)
        assert lwrn_fast.CRP(integer(8), integer(8), integer(2), groups=np.bool_(True))(x).shape == x.shape
        fused = lwrn_fast.Fusion([integer(8), integer(4)], integer(5), align_corners=np.bool_(False))
        assert fused(x, small).shape == (1, 5, 6, 7)
        decoder = models.Decoder(np.array([8, 4], integer), integer(3), integer(8), integer(2))
        assert decoder([x, small]).shape == (1, 3, 6, 7)
        assert lwrn_fast.UpsampleArgmax(integer(9))(x).shape == (1, 9, 9)
        for make in (models.rf_lw50, models.rf_lw_nasnet_mobile, models.rf50):
            with torch.device("meta"):
                assert type(make(integer(7)).num_classes) is int

    @pytest.mark.parametrize("integer", INTEGERS)
    def test_in_functions(self, backend, integer):
        x = torch.rand(1, 8, 6, 7)
        weight = torch.rand(8, 1, 1, 1)
        torch.testing.assert_close(lwrn_fast.crp(x, [weight], groups=integer(8)), reference.crp(x, [weight], groups=8))
        expected = reference.upsample_argmax(x, (9, 8))
        for size in ((integer(9), integer(8)), np.array([9, 8], integer), torch.Size([9, 8]), [9, integer(8)]):
            assert torch.equal(lwrn_fast.upsample_argmax(x, size, np.bool_(True)), expected)
            assert lwrn_fast.normalise(torch.zeros((4, 4, 3), dtype=torch.uint8), size).shape == (1, 3, 9, 8)
        assert lwrn_fast.upsample_argmax(x, integer(9)).shape == (1, 9, 9)

    @pytest.mark.parametrize("value", [True, np.bool_(True), 8.0, np.float64(8), torch.tensor(8), "8", None], ids=repr)
    def test_nothing_else_will_do(self, value):
        x = torch.rand(1, 8, 6, 7)
        calls = {
            "CRP: in_planes": lambda: lwrn_fast.CRP(value, 8),
            "CRP: n_stages": lambda: lwrn_fast.CRP(8, 8, value),
            r"Fusion: in_planes\[1\]": lambda: lwrn_fast.Fusion([8, value], 8),
            "Fusion: out_planes": lambda: lwrn_fast.Fusion([8], value),
            r"Decoder: in_planes\[0\]": lambda: models.Decoder([value], 3),
            "Decoder: num_classes": lambda: models.Decoder([8], value),
            "rf_lw_mbv2: num_classes": lambda: models.rf_lw_mbv2(value),
            "crp: groups": lambda: lwrn_fast.crp(x, [torch.rand(8, 1, 1, 1)], groups=value),
            "upsample_argmax: size": lambda: lwrn_fast.upsample_argmax(x, (8, value)),
            "UpsampleArgmax: size": lambda: lwrn_fast.UpsampleArgmax(value),
        }
        for argument, call in calls.items():
            with pytest.raises((TypeError, ValueError), match=f"^{argument} must be "):
                call()
