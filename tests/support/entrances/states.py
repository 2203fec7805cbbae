"""Columns of the table of entrances: the state of the process, which must not matter."""

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, jvp

import lwrn_fast
from lwrn_fast.backends import native
from support.entrances.cells import (
    CONDITIONS,
    Cell,
    condition,
    filled,
    in_double,
    in_thread,
    mapped,
    maps_are_right,
    noise,
    plain_tensors,
)


@condition
def default_dtype(cell: Cell) -> None:
    """torch.set_default_dtype does not change an existing instance."""
    made = cell.made()
    torch.set_default_dtype(torch.float64)
    cell.right(made)
    torch.set_default_dtype(torch.float32)
    cell.right(made)


@condition
def made_under_default_dtype(cell: Cell) -> None:
    """torch.set_default_dtype does not change an instance made under it."""
    torch.set_default_dtype(torch.float64)
    # Not seed 5, where maxima are so near to each other that rounding decides.
    made = cell.made(7, fresh=True)
    cell.right(made)
    torch.set_default_dtype(torch.float32)
    cell.right(made)


@condition
def grad_mode(cell: Cell) -> None:
    """Inputs need gradients; where the entrance has gradients, they are right too."""
    made = cell.made()
    subject = cell.subject
    args = mapped(_leaf, cell.inputs())
    with torch.enable_grad():
        got = made.run(*args)
        subject.check(got.detach() if isinstance(got, Tensor) else got, made.weights, args)
        if not subject.differentiable:
            return
        exact, eager = (
            _gradients(lambda *a, w=weights: subject.plain(w, *a), mapped(_leaf, values))
            for weights, values in (
                (in_double(made.weights), in_double(plain_tensors(args))),
                (made.weights, plain_tensors(args)),
            )
        )
        for name, ours in enumerate(_gradients(lambda *_: got, args)):
            maps_are_right(ours, exact[name], eager[name])


def _leaf(x: Any) -> Any:
    return x.detach().clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x


def _gradients(call: Callable[..., Tensor], args: Any) -> list[Tensor]:
    out = call(*args)
    leaves: list[Tensor] = []
    mapped(lambda x: leaves.append(x) if isinstance(x, Tensor) and x.requires_grad else None, args)
    return list(torch.autograd.grad(out, leaves, noise(9, *out.shape).to(out.dtype)))


@condition
def no_grad(cell: Cell) -> None:
    made = cell.made()
    with torch.no_grad():
        cell.right(made)
    cell.right(made)


@condition
def inference_mode(cell: Cell) -> None:
    """Tensors made in inference mode, and others, are passed within and after it."""
    made = cell.made()
    outside = cell.inputs()
    with torch.inference_mode():
        inside = cell.inputs()
        cell.right(made, inside)
        cell.right(made, outside)
    cell.right(made, outside)


@condition
def made_in_inference_mode(cell: Cell) -> None:
    with torch.inference_mode():
        made = cell.made(6, fresh=True)
        cell.right(made)
    with torch.no_grad():
        cell.right(made)


@condition
def derivative_after_a_call(cell: Cell) -> None:
    """An ordinary call before does not change the derivative with respect to the weights."""
    made: Any = cell.made(fresh=True)
    names = [name for name, _ in made.run.named_parameters()]
    tangents = filled({name: made.weights[name] for name in names}, 7)

    def plain(weights: dict[str, Tensor], direction: dict[str, Tensor], *args: Any) -> Tensor:
        primals = {name: weights[name] for name in names}
        return jvp(lambda given: cell.subject.plain({**weights, **given}, *args), (primals,), (direction,))[1]

    args = cell.inputs()
    exact = plain(in_double(made.weights), in_double(tangents), *in_double(args))
    eager = plain(made.weights, tangents, *args)
    for _ in range(2):
        primals = {name: made.weights[name] for name in names}
        ours = jvp(lambda given: functional_call(made.run, given, args), (primals,), (tangents,))[1]
        maps_are_right(ours, exact, eager)
        with torch.no_grad():
            cell.right(made)


@condition
def reference_backend(cell: Cell) -> None:
    """Each backend that can run gives the same answer, in any order."""
    made = cell.made()
    for name in ("reference", *(() if native.missing() else ("cpu",)), "auto", "reference"):
        with lwrn_fast.use_backend(name):
            cell.right(made)


@condition
def backend_of_a_thread(cell: Cell) -> None:
    """use_backend in a thread holds for that thread alone; in the main thread, for threads that have not chosen."""
    made = cell.made()

    def ops() -> set[str]:
        args = cell.inputs()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            got = made.run(*args)
        cell.right(made, args, call=lambda *_: got)
        return {event.key for event in profile.key_averages() if event.key.startswith("lwrn_fast::")}

    def chosen(name: str) -> set[str]:
        with lwrn_fast.use_backend(name):
            return ops()

    assert not in_thread(lambda: chosen("reference"))
    ours = ops()
    assert ours or native.missing()
    with lwrn_fast.use_backend("reference"):
        assert not in_thread(ops)
        assert in_thread(lambda: chosen("auto")) == ours
        assert not ops()
    assert in_thread(ops) == ours


@condition
def random_state(cell: Cell) -> None:
    made = cell.made()
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  the generator that libraries share
        cell.right(made)


@condition
def poisoned_memory(cell: Cell) -> None:
    """New memory is NaN, or all ones, and none of it appears in a result."""
    made, before = cell.made(), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        cell.right(made)
    finally:
        torch.use_deterministic_algorithms(before)


@condition
def another_folder(cell: Cell) -> None:
    """The instance is made in one working directory and called in another one."""
    before = os.getcwd()
    here, there = (cell.folder / name for name in ("here", "there"))
    for folder in (here, there):
        folder.mkdir(exist_ok=True)
    try:
        os.chdir(here)
        made = cell.made()
        cell.right(made)
        os.chdir(there)
        cell.right(made)
    finally:
        os.chdir(before)


@condition
def entrance_beside(cell: Cell) -> None:
    """Other entrances answer for models of the same class before and in between."""
    assert cell.neighbours, "the table names none"
    for neighbour in cell.neighbours:
        neighbour.right(neighbour.made(1))
    made = cell.made()
    cell.right(made)
    for neighbour in cell.neighbours:
        neighbour.right(neighbour.made(2))
        cell.right(made)


CONDITIONS["another_environment"] = lambda cell: None  # its result comes from a process of its own: test_entrances.py
