"""The classes of the table of entrances: an entrance, its subject, and the cell that a test runs.

An entrance is anything public that takes tensors, models, images or files and returns a result. Its subject makes an
instance, the arguments of a call, and the result of plain PyTorch with the same weights in float64.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE, OTHER_SIZE = (24, 32), (40, 28)
Weights = dict[str, Tensor]
Args = tuple[Any, ...]
Change = Callable[[nn.Module], nn.Module]


class Subject:
    """Makes, calls and checks one class of entrances; the arguments of each method determine its result."""

    # Names of the call's parameters, in order.
    names: tuple[str, ...] = ()
    differentiable = False

    def weights(self, seed: int, wide: bool) -> Weights:
        """Return float32 weights that depend on the seed alone. wide: another number of channels."""
        return {}

    def make(self, weights: Weights, wide: bool, change: Change, folder: Path) -> Callable[..., Any]:
        """Return an instance of the entrance with these weights. change: applied to the module before."""
        raise NotImplementedError

    def inputs(self, seed: int, size: tuple[int, int], batch: int, wide: bool) -> Args:
        """Return the arguments of a call."""
        raise NotImplementedError

    def plain(self, weights: Weights, *args: Any) -> Any:
        """Return the right result from plain PyTorch, in the dtype of the weights and arguments."""
        raise NotImplementedError

    def check(self, got: Any, weights: Weights, args: Args) -> None:
        """Fail where a map is further from float64 than PyTorch's own float32 error explains."""
        args = plain_tensors(args)
        exact = self.plain(in_double(weights), *in_double(args))
        maps_are_right(got, exact, self.plain(weights, *args))

    def of_file(self, run: Callable[..., Any], path: Path) -> Any:
        """Return the instance's answer for the image in this file."""
        raise NotImplementedError


@dataclass(frozen=True)
class Entrance:
    """One row of the table.

    leaves_out: conditions that do not apply, each with the reason. keeps: instances are expensive, and the cells of
    the row share them. beside: other entrances, which are used before and in between. needs: packages, "g++", "native".
    """

    name: str
    subject: Subject
    leaves_out: dict[str, str] = field(default_factory=dict)
    keeps: bool = False
    beside: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """An instance, and what it was made from."""

    run: Callable[..., Any]
    weights: Weights
    seed: int
    wide: bool


@dataclass
class Cell:
    """One entrance under one condition: makes instances and checks their answers."""

    entrance: Entrance
    folder: Path
    kept: dict[tuple[int, bool], Made] = field(default_factory=dict)
    neighbours: tuple["Cell", ...] = ()

    @property
    def subject(self) -> Subject:
        return self.entrance.subject

    def made(self, seed: int = 0, wide: bool = False, *, fresh: bool = False, change: Change | None = None) -> Made:
        """Return an instance with the weights of this seed: the row's own where it keeps them, else fresh."""
        keeps = self.entrance.keeps and not fresh and change is None
        if keeps and (seed, wide) in self.kept:
            return self.kept[seed, wide]
        weights = self.subject.weights(seed, wide)
        run = self.subject.make(dict(weights), wide, change or (lambda module: module), self.folder)
        made = Made(run, weights, seed, wide)
        if keeps:
            self.kept[seed, wide] = made
        return made

    def inputs(self, seed: int = 0, size: tuple[int, int] = SIZE, batch: int = 1, wide: bool = False) -> Args:
        return self.subject.inputs(seed, size, batch, wide)

    def right(
        self,
        made: Made,
        args: Args | None = None,
        call: Callable[..., Any] | None = None,
        weights: Weights | None = None,
    ) -> None:
        """Call the instance, or `call` in its stead, and check the answer by its weights, or by others."""
        args = self.inputs(made.seed, wide=made.wide) if args is None else args
        got = (call or made.run)(*args)
        self.subject.check(got, made.weights if weights is None else weights, args)

    def forget(self) -> None:
        self.kept.clear()


def maps_are_right(got: Any, exact: Tensor, eager: Tensor) -> None:
    """Fail where a map differs from `exact` by more than float32 explains; NaN and infinities fail too.

    exact: float64. eager: float32, whose error is the measure.
    The largest error of a few hundred values is luck, eager's as well as ours: hence the factor.
    """
    assert isinstance(got, Tensor), f"a {type(got).__name__} came, not a tensor"
    assert got.shape == exact.shape
    assert got.dtype == eager.dtype
    scale = float(exact.abs().max())
    allowed = 16 * float((eager.double() - exact).abs().max()) + 16 * torch.finfo(eager.dtype).eps * scale
    error = float((got.detach().double() - exact.detach()).abs().max())
    assert error <= allowed, f"off by {error:.3g} where {allowed:.3g} is allowed and the largest value is {scale:.3g}"


def labels_are_right(got: Any, exact: Tensor) -> None:
    """Fail for wrong labels. exact: logits (N, classes, H, W), float64; nearly equal logits allow either label."""
    labels = torch.as_tensor(got)
    assert labels.dtype == torch.uint8
    assert labels.shape == (exact.shape[0], *exact.shape[2:])
    assert int(labels.max()) < exact.shape[1], "a label is no class"
    best = exact.max(1).values
    chosen = exact.gather(1, labels.long()[:, None])[:, 0]
    near = 1e-4 * float(exact.abs().max())
    wrong = float((best - chosen > near).double().mean())
    assert not wrong, f"{wrong:.1%} of the labels are wrong"


def upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)


def in_double(item: Any) -> Any:
    """Return the same with every float32 tensor in float64."""
    return mapped(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, item)


def plain_tensors(item: Any) -> Any:
    """Return the same without gradients, and without subclasses of Tensor."""
    return mapped(lambda x: x.detach().as_subclass(Tensor) if isinstance(x, Tensor) else x, item)


def mapped(function: Callable[[Any], Any], item: Any) -> Any:
    """Return the function's results in the same containers as the items."""
    if isinstance(item, (list, tuple)):
        return type(item)(mapped(function, each) for each in item)
    if isinstance(item, dict):
        return {name: mapped(function, each) for name, each in item.items()}
    return function(item)


def filled(state: Weights, seed: int) -> Weights:
    """Return weights that keep a deep model's values near 1, from a generator of their own, in float32 on the CPU."""
    generator = torch.Generator().manual_seed(1000 + seed)

    def fill(name: str, shape: torch.Size) -> Tensor:
        noise = torch.randn(shape, generator=generator, dtype=torch.float32)
        if len(shape) > 1:
            return noise * (2 / max(1, noise[0].numel())) ** 0.5
        if name.endswith("running_var"):
            return noise.abs() + 0.5
        return 0.2 * noise + (1.0 if name.endswith("weight") else 0.0)

    return {
        name: fill(name, value.shape) if value.is_floating_point() else torch.zeros(value.shape, dtype=value.dtype)
        for name, value in state.items()
    }


def noise(seed: int, *shape: int) -> Tensor:
    """Return float32 noise that depends neither on the default dtype nor on the process's generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


Condition = Callable[[Cell], None]
# The columns, in their order; the files of conditions fill it.
CONDITIONS: dict[str, Condition] = {}


def condition(function: Condition) -> Condition:
    """Add the condition to the table under the function's name."""
    CONDITIONS[function.__name__] = function
    return function


def in_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
