"""The modules inside the blocks of a whole model: every change that a user makes to one of them counts."""

import copy

import pytest
import torch
from torch import nn

from lwrn_fast import models
from lwrn_fast.models.networks import MobileNetV2Network, ResNetNetwork
from support.conv_parameters import CALLED, FUSED, assert_close, decoder_written_out


@pytest.fixture(scope="module")
def tiny_models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    tiny = {
        "rf_lw14": ResNetNetwork("rf_lw14", (1, 1, 1, 1), 5, torch.channels_last),
        "rf_lw14_rcu": ResNetNetwork("rf_lw14", (1, 1, 1, 1), 5, torch.channels_last, rcu=True),
        "rf_lw_mbv2": MobileNetV2Network("rf_lw_mbv2", 5, torch.channels_last),
    }
    for model in tiny.values():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return tiny


IN_MODELS = [
    ("rf_lw14", "p_ims1d2_outl1_dimred"),
    ("rf_lw14", "p_ims1d2_outl3_dimred"),
    ("rf_lw14", "adapt_stage3_b2_joint_varout_dimred"),
    ("rf_lw14", "mflow_conv_g2_b3_joint_varout_dimred"),
    ("rf_lw14", "mflow_conv_g4_pool.0.2_outvar_dimred"),
    ("rf_lw14_rcu", "adapt_stage2_b2_joint_varout_dimred"),
    ("rf_lw_mbv2", "conv7"),
    ("rf_lw_mbv2", "conv_adapt3"),
    ("rf_lw_mbv2", "crp1.0.4_outvar_dimred"),
]


@pytest.mark.parametrize("mode", ["eval", "train", "plain", "inference"])
@pytest.mark.parametrize(("which", "name"), IN_MODELS)
@pytest.mark.parametrize("change", ["forward_hook", "own_forward", "adapter", "pruned", "bias", "weight_norm"])
def test_in_the_models(tiny_models, change, which, name, mode):
    model = copy.deepcopy(tiny_models[which]).eval()
    model.dropout = 0.0
    image = torch.rand(1, 3, 40, 48)
    with torch.no_grad():
        model(image)  # the folded weights are in the cache now
    {**CALLED, **FUSED}[change](model, name)
    model.train(mode == "train")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    if mode == "plain":
        model.memory_format = torch.contiguous_format
    with torch.inference_mode(mode == "inference"), torch.set_grad_enabled(mode == "train"):
        got = model(image)
        expected = decoder_written_out(model, model.features(image.contiguous(memory_format=model.memory_format)))
    assert_close(got, expected)
    assert got.is_contiguous(memory_format=model.memory_format)


@pytest.mark.parametrize("plain", [False, True], ids=["ours", "plain"])
@pytest.mark.parametrize("where", ["mflow_conv_g3_pool", "mflow_conv_g3_pool.0"])
def test_a_replaced_or_hooked_block_is_called(tiny_models, where, plain):
    model = copy.deepcopy(tiny_models["rf_lw14"]).eval()
    model.memory_format = torch.contiguous_format if plain else torch.channels_last
    image, seen = torch.rand(1, 3, 32, 32), []
    with torch.no_grad():
        model.get_submodule(where).register_forward_hook(lambda m, i, o: seen.append(o))
        before = model(image)
        assert len(seen) == 1
        model.set_submodule(where, nn.Identity())
        assert not torch.equal(model(image), before)


def test_the_original_refinenet_calls_its_modules():
    model = models.rf50(3, variant="single").eval()
    image, seen = torch.rand(1, 3, 32, 32), []
    for name in ("mflow_conv_g1_pool", "mflow_conv_g1_pool.0", "mflow_conv_g1_pool.0.2_outvar_dimred"):
        model.get_submodule(name).register_forward_hook(lambda m, i, o: seen.append(m))
    with torch.no_grad():
        for memory_format in (torch.channels_last, torch.contiguous_format):
            model.memory_format = memory_format
            model(image)
    assert len(seen) == 6
