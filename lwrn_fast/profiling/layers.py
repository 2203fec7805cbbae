"""Which layer a network is in, moment by moment, and what each layer is.

`watched` tells a listener whenever the network goes from one layer to the next. A moment belongs to one layer alone, so
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
NAMES = {
    "avg_pool2d": "average pool",
    "constant_pad_nd": "pad",
    "hardtanh": "relu6",
    "max_pool2d_with_indices": "max pool",
    "native_batch_norm": "batch norm",
    "upsample_bilinear2d": "upsample",
}
UNSEEN = ("empty", "equal")  # allocations, and the check whether folded weights are still right


@dataclass
class Layer:
    """One row. group: the stage of the encoder, the level, the classifier or the labels; part: what it is there."""

    name: str
    group: str
    part: str
    what: str = ""
    shape: tuple[int, ...] = ()
    """Of the result."""
    cost: Cost = Cost()
    operations: list[str] = field(default_factory=list)


def run(network: Network, photos: Tensor, switch: Switch = lambda _: None) -> Tensor:
    """Photographs (N, H, W, 3) uint8 to labels (N, H, W) uint8."""
    switch(INPUT)
    image = normalise(photos, dtype=next(network.parameters()).dtype)
    switch(BETWEEN)
    logits = network(image)
    switch(LABELS)
    labels = upsample_argmax(logits, photos.shape[1:3])
    switch(BETWEEN)
    return labels


@contextmanager
def watched(network: Network, switch: Switch, note: Note = lambda *_: None) -> Iterator[None]:
    """While it is open, `switch` is told the layer that every moment of the network from now on belongs to.

    note: called with a layer's name and what each fusion and CRP will cost. Hooks on modules do all that, but none
    inside a CRP or on a convolution of a fusion, which would keep our ops from running.
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
            note(fused(), "fusion", costs.fusion(inputs, weights, network.activation))
        result = one_level(inputs, weights, biases, described)
        level += 1
        switch(fused())
        return result

    def fused() -> str:
        return f"{_level(network, level)} fusion" if level < len(network.levels) else BETWEEN

    encode, one_level = within(network.features, lambda: f"after {seen}" if seen else BETWEEN), network._level
    inside = tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, CRP))
    left = {"", *network.read()}
    opened = [(n, m) for n, m in network.named_modules() if n not in left and not (inside and n.startswith(inside))]
    hooks = [module.register_forward_pre_hook(partial(before, name)) for name, module in opened]
    hooks += [module.register_forward_hook(leave) for _, module in opened]
    own = {"features": features, "decode": within(network.decode, fused), "_level": next_level}
    network.__dict__.update(own)
    try:
        yield
    finally:
        for name in own:
            del network.__dict__[name]
        for hook in hooks:
            hook.remove()


class Stopwatch:
    """A listener: seconds of each layer; on a GPU, by events in its stream."""

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
        """Up to the last switch."""
        if self._gpu:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for (name, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            took = start.elapsed_time(end) / 1e3 if self._gpu else end - start
            found[name] = found.get(name, 0.0) + took
        return found


def layers(network: Network, photos: Tensor) -> list[Layer]:
    """What there is to measure, in the order in which it runs, by a run on the reference backend."""
    with torch.no_grad(), backends.use_backend("reference"):
        run(network, photos)  # folds weights
        counter = _Counter(network)
        with watched(network, counter.switch, counter.note), counter:
            run(network, photos, counter.switch)
    size, dtype = tuple(photos.shape[1:3]), next(network.parameters()).dtype
    found = counter.layers()
    logits = next(layer.shape for layer in found if layer.part == "classifier")
    counter.note(INPUT, INPUT, costs.normalise(photos.shape, dtype))
    counter.note(LABELS, LABELS, costs.upsample_argmax(logits, size, dtype))
    return counter.layers()


def place(network: Network, name: str) -> tuple[str, str]:
    """Group and part of a layer."""
    if name in (INPUT, LABELS, BETWEEN):
        group = {INPUT: "input", LABELS: "labels", BETWEEN: BETWEEN}[name]
        return group, group
    if found := re.fullmatch(r"(level \d+) fusion", name):
        return found[1], "fusion"
    top = name.removeprefix("after ").partition(".")[0]
    if top == network.head:
        return "classifier", "classifier"
    for i, level in enumerate(network.levels):
        parts = {name: "fusion" for chain in level.laterals for name in chain}
        parts |= {level.deeper: "fusion", level.adapt: "fusion", level.crp: "crp", level.refine: "refine"}  # type: ignore[dict-item]
        if top in parts:
            return _level(network, i), parts[top]
    # what stands alone at the encoder's beginning is its stem
    return ("stem" if not list(getattr(network, top).children()) else top), "encoder"


class _Counter(TorchDispatchMode):
    """A listener that notes what each layer does, in PyTorch's own operations, and what our ops cost."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.found: dict[str, Layer] = {}
        self.ours: dict[str, tuple[str, Cost]] = {}
        self.switch(BETWEEN)

    def switch(self, name: str) -> None:
        if name not in self.found:
            self.found[name] = Layer(name, *place(self.network, name))
        self.current = self.found[name]

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
        for name, layer in self.found.items():
            layer.what = ", ".join(dict.fromkeys(layer.operations))
            layer.what, layer.cost = self.ours.get(name, (layer.what, layer.cost))
        return [layer for layer in self.found.values() if layer.operations and layer.name != BETWEEN]


def _level(network: Network, index: int) -> str:
    """The finest level is level 1."""
    return f"level {len(network.levels) - index}"


def _convolution(arguments: Any) -> str:
    weight, groups = arguments[1], arguments[8]
    kind = "depthwise" if 1 < groups == weight.shape[0] else "conv"
    return f"{kind} {weight.shape[2]}x{weight.shape[3]}"
