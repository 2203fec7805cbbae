"""Columns of the table of entrances: calls, instances, threads, copies and ways to call, which must not matter.

Each condition is a function of a cell.
"""

import copy
import functools
import gc
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from support.comparing import LAYOUTS
from support.entrances.cells import OTHER_SIZE, SIZE, Cell, Made, condition, in_thread, mapped

# Calls, instances and their order.


@condition
def first_call(cell: Cell) -> None:
    cell.right(cell.made())


@condition
def second_call(cell: Cell) -> None:
    """The same values are passed again, then others, then the first again."""
    made = cell.made()
    for seed in (0, 0, 1, 0):
        cell.right(made, cell.inputs(seed))


@condition
def second_instance(cell: Cell) -> None:
    """An instance of other weights is made after the first has answered; each uses its own."""
    first = cell.made(0)
    cell.right(first)
    second = cell.made(1)
    cell.right(second)
    cell.right(first)
    cell.right(second)


@condition
def instance_made_before(cell: Cell) -> None:
    """An instance of other weights exists, and has not been called yet."""
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
    """Another instance has answered and is deleted, and its memory is free for this one."""
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
    """A batch of three is passed, and each of its images alone."""
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
    """The instance is made here, called in another thread, and here again."""
    made = cell.made()
    in_thread(lambda: cell.right(made))
    cell.right(made)


@condition
def made_in_a_thread(cell: Cell) -> None:
    """The instance is made in a thread that has ended when it is called."""
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
    """Return a replica as torch.nn.parallel.replicate makes it: a copied dictionary, tensors instead of parameters."""
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
    """The instance's class is derived from a model's class of which another instance has answered."""
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
    """Sizes are NumPy's integers."""
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
    if name == "sliced_columns" and not x.is_floating_point():  # integers between the columns cannot be NaN
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
