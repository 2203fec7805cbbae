"""The logits in the result of a model."""

import collections
import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lwrn_fast.models import outputs

LOGITS, OTHER = torch.rand(1, 5, 6, 7), torch.rand(1, 5, 3, 4)
VECTOR, LOSS = torch.rand(1, 5), torch.tensor(2.0)


class Aux(NamedTuple):
    aux: Tensor
    logits: Tensor


@dataclasses.dataclass
class Output:
    out: Any
    loss: Tensor | None = None


class ModelOutput(collections.OrderedDict):
    """A result as in transformers: items are attributes too, and None entries are left out."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(LOGITS, id="tensor"),
        pytest.param(torch.nn.Parameter(LOGITS), id="parameter"),
        pytest.param({"aux": OTHER, "out": LOGITS}, id="torchvision"),
        pytest.param(collections.OrderedDict(aux=OTHER, out=LOGITS), id="ordered"),
        pytest.param({"loss": LOSS, "logits": LOGITS, "hidden_states": (OTHER,)}, id="logits"),
        pytest.param(ModelOutput(loss=LOSS, logits=LOGITS), id="model_output"),
        pytest.param({"segmentation": LOGITS}, id="one_entry"),
        pytest.param({"segmentation": LOGITS, "image_class": VECTOR}, id="one_map"),
        pytest.param({"out": (LOGITS, OTHER)}, id="deep_supervision"),
        pytest.param({"out": None, "logits": LOGITS}, id="none_entry"),
        pytest.param((LOGITS, OTHER), id="tuple"),
        pytest.param([LOGITS], id="list"),
        pytest.param((None, LOGITS), id="none_first"),
        pytest.param((LOSS, LOGITS, OTHER), id="loss_first"),
        pytest.param(([LOGITS, OTHER], 3), id="nested"),
        pytest.param(({"out": LOGITS},), id="dict_in_tuple"),
        pytest.param(Aux(OTHER, LOGITS), id="named_tuple"),
        pytest.param(Output(LOGITS), id="dataclass"),
    ],
)
def test_takes_the_logits(result):
    got = outputs.logits(result)
    assert got.data_ptr() == LOGITS.data_ptr()
    assert got.shape == LOGITS.shape


def test_a_vector_alone_is_left_to_the_caller():
    assert outputs.logits((None, VECTOR)) is VECTOR


@pytest.mark.parametrize(
    ("result", "got"),
    [
        pytest.param(None, "an object of NoneType", id="none"),
        pytest.param("logits", "an object of str", id="text"),
        pytest.param({"depth": LOGITS, "normals": OTHER}, "a dict of ['depth', 'normals']", id="two_entries"),
        pytest.param({}, "a dict of []", id="empty"),
        pytest.param((None, 3), "a tuple of ['NoneType', 'int']", id="no_tensor"),
        pytest.param(([LOGITS], [OTHER]), "a tuple of ['list', 'list']", id="two_lists"),
        pytest.param(Output("text"), "an object of Output", id="attribute_of_text"),
    ],
)
def test_says_what_came(result, got):
    with pytest.raises(TypeError) as raised:
        outputs.logits(result, "Segmenter")
    assert str(raised.value).startswith("Segmenter: the network must return a tensor, ")
    assert str(raised.value).endswith(f"got {got}")


def test_in_a_captured_graph():
    class Network(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return outputs.logits({"aux": (x,), "out": x + 1})

    x = torch.rand(1, 2, 3, 3)
    assert torch.equal(torch.compile(Network(), backend="eager", fullgraph=True)(x), x + 1)
    assert torch.equal(torch.export.export(Network(), (x,)).module()(x), x + 1)
