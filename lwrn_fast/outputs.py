"""The results of other people's segmentation networks: a tensor, a dictionary, a tuple, or an object of these."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

# torchvision's and transformers' names for the logits of the segmentation; the first one that is there is taken.
NAMES = ("out", "logits")


def logits(result: Any, op: str = "logits") -> Tensor:
    """Return the tensor of logits in what a segmentation network returned.

    result: a tensor; a mapping or an object with "out" or "logits", which holds a tensor or a tuple, or a mapping of
    one tensor; a tuple or a list, of which the first tensor counts. Where tensors of several ranks are beside each
    other, those of (N, classes, h, w) count. op: the name that an error begins with.
    Raises TypeError for anything else; the message says what came.

    >>> import torch
    >>> logits({"out": torch.rand(1, 21, 6, 7), "aux": torch.rand(1, 21, 3, 4)}).shape
    torch.Size([1, 21, 6, 7])
    """
    if isinstance(result, Tensor):
        return result
    named = _named(result)
    if named is not None:
        return logits(named, op)
    if isinstance(result, Mapping):
        tensors = _maps(result.values())
        if len(tensors) == 1:
            return tensors[0]
    elif isinstance(result, (tuple, list)):
        tensors = _maps(result)
        if tensors:
            return tensors[0]
        lists = [item for item in result if isinstance(item, (tuple, list, Mapping))]
        if len(lists) == 1:
            return logits(lists[0], op)
    raise TypeError(
        f"{op}: the network must return a tensor, a tuple or list that holds one, or a mapping or object "
        f'with "out" or "logits", got {describe(result)}'
    )


def describe(result: Any) -> str:
    """What came, in a few words: the class, and the keys or the classes of the items.

    >>> describe({"depth": 1, "normals": 2})
    "a dict of ['depth', 'normals']"
    """
    kind = type(result).__name__
    if isinstance(result, Mapping):
        return f"a {kind} of {[str(key) for key in result]}"
    if isinstance(result, (tuple, list)):
        return f"a {kind} of {[type(item).__name__ for item in result]}"
    return f"an object of {kind}"


def _named(result: Any) -> Any:
    """What is called "out" or "logits", as a key or as an attribute; None where nothing is."""
    for name in NAMES:
        value = result.get(name) if isinstance(result, Mapping) else getattr(result, name, None)
        if isinstance(value, (Tensor, tuple, list, Mapping)):
            return value
    return None


def _maps(items: Any) -> list[Tensor]:
    """The tensors (N, C, h, w) among the items; where there is none, all tensors."""
    tensors = [item for item in items if isinstance(item, Tensor)]
    return [tensor for tensor in tensors if tensor.dim() == 4] or tensors
