"""The segmentation part of the multi-task model, against its forward written out in plain PyTorch and float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lwrn_fast
from lwrn_fast import models


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    model = models.rf_lw_mbv2_multi_task(num_classes=6).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif "outvar_dimred" in name or name == "pre_segm.weight":
                value.normal_(0, 0.3)
    return model


def oracle(model: torch.nn.Module, image: Tensor) -> Tensor:
    """Compute figure 2 of the paper, with the model's state dict and its encoder."""
    w = {name: value.double() for name, value in model.state_dict().items()}
    features = [x.double() for x in model.features(image)]

    def crp(x: Tensor, name: str, groups: int) -> Tensor:
        stage = x
        for i in range(1, 5):
            stage = F.conv2d(F.max_pool2d(stage, 5, 1, 2), w[f"{name}.0.{i}_outvar_dimred.weight"], groups=groups)
            x = x + stage
        return x

    def up(x: Tensor, number: int, size: torch.Size) -> Tensor:
        adapted = F.conv2d(x, w[f"conv_adapt{number}.weight"])
        return F.interpolate(adapted, size[2:], mode="bilinear", align_corners=False)

    l3, l4, l5, l6, l7, l8 = (F.conv2d(x, w[f"conv{i}.weight"]) for i, x in enumerate(features, start=3))
    x = crp(F.relu6(l8 + l7), "crp4", 1)
    x = crp(F.relu6(l5 + l6 + up(x, 4, l6.shape)), "crp3", 1)
    x = crp(F.relu6(l4 + up(x, 3, l4.shape)), "crp2", 1)
    x = crp(F.relu6(l3 + up(x, 2, l3.shape)), "crp1", 256)
    x = F.relu6(F.conv2d(x, w["pre_segm.weight"], groups=256))
    return F.conv2d(x, w["segm.weight"], w["segm.bias"], padding=1)


@pytest.mark.parametrize("size", [(64, 96), (33, 65), (1, 1)], ids=str)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["fused", "plain"])
@torch.no_grad()
def test_is_the_published_forward(network, size, memory_format):
    torch.manual_seed(1)
    image = torch.rand(2, 3, *size)
    wanted = oracle(network, image)
    network.memory_format = memory_format
    try:
        got = network(image)
        with lwrn_fast.use_backend("reference"):
            plain = network(image)
    finally:
        network.memory_format = torch.channels_last
    largest = wanted.abs().max()
    assert (got - wanted).abs().max() <= 3e-6 * largest
    assert (plain - wanted).abs().max() <= 3e-6 * largest


def test_gradients_reach_every_parameter(network):
    network(torch.rand(1, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_names_and_shapes():
    shapes = {name: tuple(value.shape) for name, value in models.rf_lw_mbv2_multi_task(40).state_dict().items()}
    plain = {name: tuple(value.shape) for name, value in models.rf_lw_mbv2(40).state_dict().items()}
    scales = {f"crp1.0.{i}_outvar_dimred.weight": (256, 1, 1, 1) for i in range(1, 5)}
    assert shapes == {**plain, **scales, "pre_segm.weight": (256, 1, 1, 1)}
    assert list(shapes)[-2:] == ["segm.weight", "segm.bias"]
