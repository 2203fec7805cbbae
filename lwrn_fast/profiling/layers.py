"""Layers of a model: their costs, and the one that is running at each moment.

`watched` tells a listener whenever the model goes from one layer to the next. A moment belongs to one layer alone, so
nothing that is nested counts twice: what a block does itself, between its children, is a layer by the block's name.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .. import backends
from ..models.decoder import Level
from ..models.networks import Network
from ..ops.crp import CRP
from ..ops.normalise import normalise
from ..ops.upsample_argmax import upsample_argmax
from . import costs
from .costs import Cost

BETWEEN = "between layers"
INPUT, LABELS = "normalise", "upsample_argmax"
Switch = Callable[[str], None]
Note = Callable[[str, str, Cost], None]
# Names of PyTorch's operations in the tables.
NAMES = {
    "avg_pool2d": "average pool",
    "constant_pad_nd": "pad",
    "hardtanh": "relu6",
    "max_pool2d_with_indices": "max pool",
    "native_batch_norm": "batch norm",
    "upsample_bilinear2d": "upsample",
}
# Operations that are not counted: allocations, and the check that folded weights are still right.
UNSEEN = ("empty", "equal")


@dataclass
class Layer:
    """One row of the tables.

    group: the stage of the encoder, the level, the classifier or the labels; part: its role there, e.g. "crp".
    shape: of the result.
    """

    name: str
    group: str
    part: str
    what: str = ""
    shape: tuple[int, ...] = ()
    cost: Cost = Cost()
    operations: list[str] = field(default_factory=list)


def run(model: Network, images: Tensor, switch: Switch = lambda _: None) -> Tensor:
    """Compute the labels (N, H, W) uint8 of images (N, H, W, 3) uint8."""
    switch(INPUT)
    x = normalise(images, dtype=next(model.parameters()).dtype)
    switch(BETWEEN)
    logits = model(x)
    switch(LABELS)
    labels = upsample_argmax(logits, images.shape[1:3])
    switch(BETWEEN)
    return labels


@contextmanager
def watched(model: Network, switch: Switch, note: Note = lambda *_: None) -> Iterator[None]:
    """Tell `switch`, while this is open, the layer that every moment of the model from now on belongs to.

    note: called with a layer's name and the cost of each fusion and CRP. Hooks on modules do all that, but none inside
    a CRP or on a convolution of a fusion, which would keep our ops from running.
    """
    stack: list[Callable[[], str]] = [lambda: BETWEEN]
    level, seen = 0, ""  # the next one, and the part of the encoder that ran last

    def enter(name: Callable[[], str]) -> None:
        stack.append(name)
        switch(name())

    def leave(*_: Any) -> None:
        stack.pop()
        switch(stack[-1]())

    def before(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen = name.partition(".")[0]
        if isinstance(module, CRP):
            note(name, "crp", costs.crp(inputs[0], list(module.parameters())))
        enter(lambda: name)

    def within(method: Callable[..., Any], name: Callable[[], str]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            enter(name)
            result = method(*arguments)
            leave()
            return result

        return wrapped

    def features(x: Tensor) -> list[Tensor]:
        nonlocal level, seen
        level, seen = 0, ""
        return encode(x)

    def next_level(inputs: list[Tensor], weights: list[Tensor], biases: list[Tensor], described: Level) -> Tensor:
        nonlocal level
        if weights:
            note(fused(), "fusion", costs.fusion(inputs, weights, model.activation))
        result = one_level(inputs, weights, biases, described)
        level += 1
        switch(fused())
        return result

    def fused() -> str:
        return f"{_level(model, level)} fusion" if level < len(model.levels) else BETWEEN

    encode, one_level = within(model.features, lambda: f"after {seen}" if seen else BETWEEN), model._level
    methods = {"features": features, "decode": within(model.decode, fused), "_level": next_level}
    with _installed(model, methods, before, leave):
        yield


@contextmanager
def _installed(
    model: Network, methods: dict[str, Any], before: Callable[..., None], after: Callable[..., None]
) -> Iterator[None]:
    """Replace methods of the model, and call `before` with a module's name, and `after`, around each of its modules."""
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, CRP))
    left = {"", *model.read()}
    opened = [(n, m) for n, m in model.named_modules() if n not in left and not (inside and n.startswith(inside))]
    hooks = [module.register_forward_pre_hook(partial(before, name)) for name, module in opened]
    hooks += [module.register_forward_hook(after) for _, module in opened]
    model.__dict__.update(methods)
    try:
        yield
    finally:
        for name in methods:
            del model.__dict__[name]
        for hook in hooks:
            hook.remove()


class Stopwatch:
    """A listener that takes the seconds of each layer; on a GPU, by events in its stream."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def switch(self, name: str) -> None:
        if self._gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))
        else:
            self._marks.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each layer up to the last switch."""
        if self._gpu:
            torch.cuda.synchronize()
        total: dict[str, float] = {}
        for (name, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            seconds = start.elapsed_time(end) / 1e3 if self._gpu else end - start
            total[name] = total.get(name, 0.0) + seconds
        return total


def layers(model: Network, images: Tensor) -> list[Layer]:
    """Return the layers in the order in which they run, by a run on the reference backend."""
    with torch.no_grad(), backends.use_backend("reference"):
        run(model, images)  # folds weights
        counter = _Counter(model)
        with watched(model, counter.switch, counter.note), counter:
            run(model, images, counter.switch)
    size, dtype = tuple(images.shape[1:3]), next(model.parameters()).dtype
    logits = next(layer.shape for layer in counter.layers() if layer.part == "classifier")
    counter.note(INPUT, INPUT, costs.normalise(images.shape, dtype))
    counter.note(LABELS, LABELS, costs.upsample_argmax(logits, size, dtype))
    return counter.layers()


def group_and_part(model: Network, name: str) -> tuple[str, str]:
    """Return group and part of a layer."""
    if name in (INPUT, LABELS, BETWEEN):
        group = {INPUT: "input", LABELS: "labels", BETWEEN: BETWEEN}[name]
        return group, group
    if match := re.fullmatch(r"(level \d+) fusion", name):
        return match[1], "fusion"
    top = name.removeprefix("after ").partition(".")[0]
    if top == model.head:
        return "classifier", "classifier"
    for i, level in enumerate(model.levels):
        parts = {name: "fusion" for chain in level.laterals for name in chain}
        parts |= {level.deeper: "fusion", level.adapt: "fusion", level.crp: "crp", level.refine: "refine"}  # type: ignore[dict-item]
        if top in parts:
            return _level(model, i), parts[top]
    # A module without children at the encoder's beginning is its stem.
    return ("stem" if not list(getattr(model, top).children()) else top), "encoder"


class _Counter(TorchDispatchMode):
    """A listener that notes PyTorch's operations in each layer, and the costs of our ops."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model
        self.by_name: dict[str, Layer] = {}
        self.ours: dict[str, tuple[str, Cost]] = {}
        self.switch(BETWEEN)

    def switch(self, name: str) -> None:
        if name not in self.by_name:
            self.by_name[name] = Layer(name, *group_and_part(self.model, name))
        self.current = self.by_name[name]

    def note(self, name: str, what: str, cost: Cost) -> None:
        self.ours[name] = what, cost

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name, layer = costs.stem(function), self.current
        if not function.is_view and name not in UNSEEN:
            layer.cost = layer.cost.plus(costs.call(function, args, result))
            layer.shape = tuple((result if isinstance(result, Tensor) else result[0]).shape)
            layer.operations.append(_convolution(args) if name == "convolution" else NAMES.get(name, name))
        return result

    def layers(self) -> list[Layer]:
        for name, layer in self.by_name.items():
            layer.what = ", ".join(dict.fromkeys(layer.operations))
            layer.what, layer.cost = self.ours.get(name, (layer.what, layer.cost))
        return [layer for layer in self.by_name.values() if layer.operations and layer.name != BETWEEN]


def _level(model: Network, index: int) -> str:
    """Return the level's name; the finest is level 1."""
    return f"level {len(model.levels) - index}"


def _convolution(arguments: Any) -> str:
    weight, groups = arguments[1], arguments[8]
    kind = "depthwise" if 1 < groups == weight.shape[0] else "conv"
    return f"{kind} {weight.shape[2]}x{weight.shape[3]}"
