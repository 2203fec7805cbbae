"""Results of third-party segmentation models: a tensor, a dictionary, a tuple, or an object of these."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

# Names of the segmentation's logits in torchvision and transformers; the first that is present is taken.
NAMES = ("out", "logits")
# Types of results that are no tensors. Sizes of maps are numbers, or symbols while a model is captured.
NO_TENSOR = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.SymInt, torch.SymFloat)


def logits(result: Any, op: str = "logits") -> Tensor:
    """Return the logits in the result of a segmentation model.

    result: a tensor; a mapping or an object with "out" or "logits", which holds a tensor or a tuple, or a mapping of
    one tensor; a tuple or a list, whose first tensor counts. Among tensors of several ranks, those of
    (N, classes, h, w) count. op: the name that an error begins with.
    Raises TypeError for anything else; the message says what it got.

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


def one_per_class(logits: Tensor) -> Tensor:
    """Return (N, classes, h, w) unchanged; put 0 for class 0 before one logit, (N, 1, h, w): class 1 wins above 0.

    >>> one_per_class(torch.tensor([-2.0, 3.0]).reshape(1, 1, 1, 2)).argmax(1)
    tensor([[[0, 1]]])
    """
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


def classes(number: int) -> str:
    """Return in words how many classes this number of logits stands for.

    >>> classes(21), classes(1)
    ('21 classes', '2 classes in one logit')
    """
    return f"{number} classes" if number != 1 else "2 classes in one logit"


def leaves(result: Any, op: str = "leaves") -> list[tuple[str, Tensor]]:
    """Return all tensors in a model's result, each with a name: its keys, "output0", "output1" in a tuple.

    result: a tensor, called "output", or mappings, tuples, lists and dataclasses of these; None and numbers are left
    out. Raises TypeError for other objects.

    >>> import torch
    >>> [name for name, _ in leaves({"out": torch.ones(1), "features": [torch.ones(1), torch.ones(1)]})]
    ['out', 'features_0', 'features_1']
    """
    named: list[tuple[str, Tensor]] = []
    names: set[str] = set()

    def visit(item: Any, path: tuple[str, ...]) -> None:
        if isinstance(item, Tensor):
            name = "_".join(path) or "output"
            name = f"output{name}" if name[0].isdigit() else name
            while name in names:
                name += "_"
            names.add(name)
            named.append((name, item))
        elif not isinstance(item, NO_TENSOR):
            for key, value in _items(item, op):
                visit(value, (*path, str(key)))

    visit(result, ())
    if not named:
        raise TypeError(f"{op}: the network must return tensors, got {describe(result)}")
    return named


def plain(result: Any) -> Any:
    """Return a model's result in dictionaries, tuples and lists only, without anything but tensors.

    A tensor that occurs twice is copied, since a file has each result once.

    >>> import collections
    >>> plain(collections.OrderedDict(out=(torch.ones(1), None), size=3))
    {'out': (tensor([1.]),)}
    """
    seen: set[int] = set()

    def visit(item: Any) -> Any:
        if isinstance(item, Tensor):
            again = id(item) in seen
            seen.add(id(item))
            return item.clone() if again else item
        items = [(key, visit(value)) for key, value in _items(item, "plain") if not isinstance(value, NO_TENSOR)]
        if isinstance(item, (tuple, list)):
            return (list if isinstance(item, list) else tuple)(value for _, value in items)
        return dict(items)

    return visit(result)


def _items(item: Any, op: str) -> Iterable[tuple[Any, Any]]:
    if isinstance(item, Mapping):
        return item.items()
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return zip(item._fields, item, strict=True)
    if isinstance(item, (tuple, list)):
        return enumerate(item)
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return [(field.name, getattr(item, field.name)) for field in dataclasses.fields(item)]
    raise TypeError(
        f"{op}: the network must return tensors, in tuples, lists, mappings or dataclasses, got {describe(item)}"
    )


def describe(result: Any) -> str:
    """Return in a few words what a result is: the class, and the keys or the classes of the items.

    >>> describe({"depth": 1, "normals": 2})
    "a dict of ['depth', 'normals']"
    """
    name = type(result).__name__
    if isinstance(result, Mapping):
        return f"a {name} of {[str(key) for key in result]}"
    if isinstance(result, (tuple, list)):
        return f"a {name} of {[type(item).__name__ for item in result]}"
    return f"an object of {name}"


def _named(result: Any) -> Any:
    """Return the key or attribute "out" or "logits", None without either."""
    for name in NAMES:
        value = result.get(name) if isinstance(result, Mapping) else getattr(result, name, None)
        if isinstance(value, (Tensor, tuple, list, Mapping)):
            return value
    return None


def _maps(items: Any) -> list[Tensor]:
    """Return the tensors (N, C, h, w) among the items; all tensors where there is none."""
    tensors = [item for item in items if isinstance(item, Tensor)]
    return [tensor for tensor in tensors if tensor.dim() == 4] or tensors
