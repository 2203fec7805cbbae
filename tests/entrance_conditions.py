"""The columns of the table of entrances: what must not matter. Each condition is a function of a cell."""

import copy
import functools
import gc
import io
import os
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call, jvp

import lwrn_fast
from comparing import LAYOUTS
from entrance_cells import (
    OTHER_SIZE,
    SIZE,
    Cell,
    Made,
    filled,
    in_double,
    mapped,
    maps_are_right,
    noise,
    plain_tensors,
)
from lwrn_fast import _native

Condition = Callable[[Cell], None]
CONDITIONS: dict[str, Condition] = {}


def condition(function: Condition) -> Condition:
    CONDITIONS[function.__name__] = function
    return function


# Calls, instances and their order.


@condition
def first_call(cell: Cell) -> None:
    cell.right(cell.made())


@condition
def second_call(cell: Cell) -> None:
    """The same values again, then others, then the first again."""
    made = cell.made()
    for seed in (0, 0, 1, 0):
        cell.right(made, cell.inputs(seed))


@condition
def second_instance(cell: Cell) -> None:
    """One of other weights is made after the first has answered; each answers for itself."""
    first = cell.made(0)
    cell.right(first)
    second = cell.made(1)
    cell.right(second)
    cell.right(first)
    cell.right(second)


@condition
def instance_made_before(cell: Cell) -> None:
    """One of other weights is there, and has not been called yet."""
    other, made = cell.made(1), cell.made(0)
    cell.right(made)
    cell.right(other)


@condition
def other_order(cell: Cell) -> None:
    instances = [cell.made(seed) for seed in (0, 1)]
    for turn in (1, 0, 0, 1):
        cell.right(instances[turn])


@condition
def deleted_instance(cell: Cell) -> None:
    """Another one has answered and is gone, and its memory is free for this one."""
    cell.right(cell.made(2, fresh=True))
    gc.collect()
    cell.right(cell.made(3, fresh=True))


@condition
def other_width_before(cell: Cell) -> None:
    """An instance of the same class with another number of channels answers before and in between."""
    wide = cell.made(0, wide=True)
    cell.right(wide)
    made = cell.made(0)
    cell.right(made)
    cell.right(wide)


@condition
def other_size_before(cell: Cell) -> None:
    made = cell.made()
    for size in (OTHER_SIZE, SIZE, OTHER_SIZE):
        cell.right(made, cell.inputs(0, size))


@condition
def part_of_a_batch(cell: Cell) -> None:
    """A batch of three, and each of its images alone."""
    made = cell.made()
    batch = cell.inputs(0, SIZE, 3)
    cell.right(made, batch)
    for i in range(3):
        cell.right(made, mapped(lambda x, i=i: x[i : i + 1] if _has_batch(x) else x, batch))


def _has_batch(x: Any) -> bool:
    return isinstance(x, (Tensor, np.ndarray)) and len(x.shape) == 4 and x.shape[0] == 3


# Threads.


@condition
def another_thread(cell: Cell) -> None:
    """Made here, called there, and here again."""
    made = cell.made()
    in_thread(lambda: cell.right(made))
    cell.right(made)


@condition
def made_in_a_thread(cell: Cell) -> None:
    """Made in a thread that has ended when it is called."""
    made = in_thread(lambda: cell.made(4, fresh=True))
    cell.right(made)


@condition
def threads_at_once(cell: Cell) -> None:
    """Two instances, each called by its own thread at the same time, with values that change."""
    instances = [cell.made(seed) for seed in (0, 1)]

    def work(made: Made) -> None:
        for seed in (0, 1, 0):
            cell.right(made, cell.inputs(seed))

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, made) for made in instances]:
            done.result()


@condition
def thread_count(cell: Cell) -> None:
    made, before = cell.made(), torch.get_num_threads()
    for count in (2, 1):
        torch.set_num_threads(count)
        cell.right(made)
    torch.set_num_threads(before)


def in_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


# Copies.


@condition
def deep_copy(cell: Cell) -> None:
    """The copy of an instance that has answered stays what it was when the instance's weights change."""
    made = cell.made(fresh=True)
    cell.right(made)
    copied = copy.deepcopy(made.run)
    cell.right(made, call=copied)
    _zero(made.run)
    cell.right(made, call=copied)


@condition
def pickled(cell: Cell) -> None:
    made = cell.made()
    cell.right(made)
    cell.right(made, call=pickle.loads(pickle.dumps(made.run)))


@condition
def saved_whole(cell: Cell) -> None:
    """torch.save of the instance itself."""
    made, file = cell.made(), io.BytesIO()
    cell.right(made)
    torch.save(made.run, file)
    file.seek(0)
    cell.right(made, call=torch.load(file, weights_only=False))


@condition
def shallow_copy(cell: Cell) -> None:
    """A copy that is given children of its own answers with their weights, the original with its own."""
    made, other = cell.made(fresh=True), cell.made(1, fresh=True)
    cell.right(made)
    twin: Any = copy.copy(made.run)
    cell.right(made, call=twin)
    twin._modules = dict(other.run._modules)  # type: ignore[attr-defined]
    cell.right(made, call=twin, weights=other.weights)
    cell.right(made)


@condition
def replica(cell: Cell) -> None:
    """nn.DataParallel's replicas run their own weights."""
    made, other = cell.made(fresh=True), cell.made(1, fresh=True)
    cell.right(made)
    with torch.no_grad():
        cell.right(made, call=_replica(made.run, other.run), weights=other.weights)
    cell.right(made)


def _replica(module: nn.Module, weights: nn.Module) -> nn.Module:
    """As torch.nn.parallel.replicate makes them: the dictionary copied, and tensors in place of parameters."""
    made = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        made._modules[name] = None if child is None else _replica(child, weights._modules[name])  # type: ignore[arg-type]
    for name, parameter in weights._parameters.items():
        if parameter is None:
            made._parameters[name] = None
        else:
            setattr(made, name, parameter.detach())
    for name, buffer in weights._buffers.items():
        made._buffers[name] = buffer
    return made


def _zero(run: Any) -> None:
    module = run if isinstance(run, nn.Module) else run.network
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()


@condition
def changed_weights(cell: Cell) -> None:
    """An instance that has answered is given other weights, by load_state_dict and in place."""
    made: Any = cell.made(fresh=True)
    cell.right(made)
    names = list(made.run.state_dict())
    for seed in (1, 2):
        weights = cell.subject.weights(seed, False)
        state = {next(name for name in names if name.endswith(ours)): value for ours, value in weights.items()}
        if seed == 1:
            made.run.load_state_dict(state)
        else:
            for name, tensor in [*made.run.named_parameters(), *made.run.named_buffers()]:
                tensor.data.copy_(state[name])
        cell.right(made, weights=weights)


@condition
def subclass(cell: Cell) -> None:
    """An instance of a class derived from the network's, of which another instance has answered."""
    cell.right(cell.made())

    def derived(module: nn.Module) -> nn.Module:
        module.__class__ = type("Derived", (type(module),), {})
        return module

    cell.right(cell.made(1, change=derived))


# Ways to call.


@condition
def keywords(cell: Cell) -> None:
    made = cell.made()
    cell.right(made)
    cell.right(made, call=lambda *args: made.run(**dict(zip(cell.subject.names, args, strict=False))))


@condition
def tuple_for_list(cell: Cell) -> None:
    made = cell.made()
    cell.right(made)
    cell.right(made, call=lambda *args: made.run(*(tuple(arg) if isinstance(arg, list) else arg for arg in args)))


@condition
def numpy_integers(cell: Cell) -> None:
    """Sizes that come from NumPy."""
    made = cell.made()

    def convert(item: Any) -> Any:
        return np.int64(item) if type(item) is int else item

    cell.right(made, call=lambda *args: made.run(*mapped(convert, args)))


@condition
def memory_formats(cell: Cell) -> None:
    made, layouts = cell.made(), ("contiguous", "channels_last", "sliced_columns", "transposed_image")
    for name in layouts:
        cell.right(made, mapped(functools.partial(_in_layout, name), cell.inputs()))


def _in_layout(name: str, x: Any) -> Any:
    if not isinstance(x, Tensor) or x.dim() != 4:
        return x
    if name == "sliced_columns" and not x.is_floating_point():  # what lies between cannot be NaN
        return x.repeat_interleave(2, 3)[:, :, :, ::2]
    return LAYOUTS[name](x)


@condition
def image_memory(cell: Cell) -> None:
    """The image in another order, read backwards, in memory that may not be written, and as a part of a larger one."""
    made, (image, *rest) = cell.made(), cell.inputs()
    read_only = image.copy()
    read_only.flags.writeable = False
    larger = np.zeros((image.shape[0], 2 * image.shape[1], 3), np.uint8)
    larger[:, ::2] = image
    backwards = np.ascontiguousarray(image[::-1, ::-1])[::-1, ::-1]
    for each in (np.asfortranarray(image), backwards, read_only, larger[:, ::2]):
        assert np.array_equal(each, image)
        cell.right(made, (each, *rest))


class Mine(Tensor):
    """A subclass of Tensor that adds nothing."""


@condition
def tensor_subclass(cell: Cell) -> None:
    made = cell.made()
    cell.right(made, mapped(lambda x: x.as_subclass(Mine) if isinstance(x, Tensor) else x, cell.inputs()))
    cell.right(made)


# The state of the process.


@condition
def default_dtype(cell: Cell) -> None:
    """torch.set_default_dtype changes nothing for an instance that is there."""
    made = cell.made()
    torch.set_default_dtype(torch.float64)
    cell.right(made)
    torch.set_default_dtype(torch.float32)
    cell.right(made)


@condition
def made_under_default_dtype(cell: Cell) -> None:
    """Nor for one that is made then."""
    torch.set_default_dtype(torch.float64)
    made = cell.made(5, fresh=True)
    cell.right(made)
    torch.set_default_dtype(torch.float32)
    cell.right(made)


@condition
def grad_mode(cell: Cell) -> None:
    """With inputs that need gradients; where the entrance has gradients, they are right too."""
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
    """Its own tensors, and others, within and after it."""
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
    """The derivative with respect to the weights knows nothing of an ordinary call before."""
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
    """Each backend that can run answers the same, in any order."""
    made = cell.made()
    for name in ("reference", *(() if _native.missing() else ("cpu",)), "auto", "reference"):
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
    assert ours or _native.missing()
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
    """Fresh memory is NaN, or all ones, and nothing of it comes through."""
    made, before = cell.made(), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        cell.right(made)
    finally:
        torch.use_deterministic_algorithms(before)


@condition
def another_folder(cell: Cell) -> None:
    """Made in one working directory, called in another one."""
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
    """Other entrances answer for networks of the same class before and in between."""
    assert cell.neighbours, "the table names none"
    for neighbour in cell.neighbours:
        neighbour.right(neighbour.made(1))
    made = cell.made()
    cell.right(made)
    for neighbour in cell.neighbours:
        neighbour.right(neighbour.made(2))
        cell.right(made)


# Images of any kind.


def _grey(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[:, :, :1], 3, 2)


def _hidden(image: np.ndarray) -> np.ndarray:
    white = image.copy()
    white[: len(image) // 2] = 255
    return white


def _with_alpha(image: np.ndarray) -> Image.Image:
    alpha = np.full(image.shape[:2], 255, np.uint8)
    alpha[: len(image) // 2] = 0
    return Image.fromarray(np.dstack([image, alpha]))


def _turned(image: np.ndarray, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it 90 degrees clockwise
    Image.fromarray(image).save(path, exif=exif)


FEW = np.random.RandomState(5).randint(0, 256, (8, 3)).astype(np.uint8)


def _palette(image: np.ndarray) -> Image.Image:
    indexed = Image.fromarray(image[:, :, 0] // 32)
    indexed.putpalette(FEW.tobytes())
    return indexed


# name: the file's ending, what writes an image of uint8 (H, W, 3) there, and the RGB that it must be taken for
FILES: dict[str, tuple[str, Callable[[np.ndarray, Path], None], Callable[[np.ndarray], np.ndarray]]] = {
    "png": ("png", lambda a, path: Image.fromarray(a).save(path), lambda a: a),
    "bmp": ("bmp", lambda a, path: Image.fromarray(a).save(path), lambda a: a),
    "grey": ("png", lambda a, path: Image.fromarray(a[:, :, 0]).save(path), _grey),
    "deep_grey": ("png", lambda a, path: Image.fromarray(a[:, :, 0].astype(np.uint16) * 257).save(path), _grey),
    "black_and_white": (
        "png",
        lambda a, path: Image.fromarray(a[:, :, 0] > 127).save(path),
        lambda a: np.where(_grey(a) > 127, 255, 0).astype(np.uint8),
    ),
    "palette": ("png", lambda a, path: _palette(a).save(path), lambda a: FEW[a[:, :, 0] // 32]),
    "transparent": ("png", lambda a, path: _with_alpha(a).save(path), _hidden),
    "turned": ("png", _turned, lambda a: np.ascontiguousarray(np.rot90(a, -1))),
}


def _file(kind: str) -> Condition:
    ending, write, expected = FILES[kind]

    def check(cell: Cell) -> None:
        made, (image, *rest) = cell.made(), cell.inputs()
        path = cell.folder / f"{kind}.{ending}"
        write(image, path)
        cell.right(made, (expected(image), *rest), call=lambda *_: cell.subject.of_file(made.run, path))
        cell.right(made)

    return check


CONDITIONS.update({f"{kind}_file": _file(kind) for kind in FILES})


@condition
def image_as_pil(cell: Cell) -> None:
    made = cell.made()
    cell.right(made, call=lambda image, *rest: made.run(Image.fromarray(image), *rest))


@condition
def image_as_tensor(cell: Cell) -> None:
    made = cell.made()
    cell.right(made, call=lambda image, *rest: made.run(torch.from_numpy(image), *rest))


CONDITIONS["another_environment"] = lambda cell: None  # its result comes from a process of its own: test_entrances.py
