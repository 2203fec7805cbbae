"""Models under torch.compile and torch.export."""

import copy

import pytest
import torch

from lwrn_fast import models
from support.random_models import relative_error


class TestTracing:
    @pytest.mark.slow
    def test_compile_fullgraph(self, mobilenet):
        image = torch.rand(1, 3, 48, 64)
        with torch.no_grad():
            got = torch.compile(mobilenet, fullgraph=True, backend="aot_eager")(image)
            assert relative_error(got, mobilenet(image)) < 1e-5

    @pytest.mark.slow
    def test_compiled_folds_follow_their_weights(self, resnet):
        model, image = copy.deepcopy(resnet), torch.rand(1, 3, 32, 32)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            assert relative_error(compiled(image), model(image)) < 1e-5
            model.p_ims1d2_outl4_dimred.weight.mul_(3)
            assert relative_error(compiled(image), model(image)) < 1e-5

    def test_compiled_decoder(self):
        decoder = models.Decoder([12, 20], num_classes=4, planes=16).eval()
        features = [torch.rand(1, 12, 9, 10), torch.rand(1, 20, 5, 5)]
        with torch.no_grad():
            got = torch.compile(decoder, fullgraph=True)(features)
            assert relative_error(got, decoder(features)) < 1e-5

    def test_export_with_any_size(self, mobilenet):
        sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        with torch.no_grad():
            program = torch.export.export(mobilenet, (torch.rand(1, 3, 64, 96),), dynamic_shapes=(sizes,))
            for height, width in ((64, 96), (160, 224)):
                image = torch.rand(1, 3, height, width)
                assert relative_error(program.module()(image), mobilenet(image)) < 1e-5

    def test_export_folded(self, resnet):
        image = torch.rand(1, 3, 32, 32)
        with torch.no_grad():
            program = torch.export.export(resnet, (image,))
            assert relative_error(program.module()(image), resnet(image)) < 1e-5
