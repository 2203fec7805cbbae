"""Every Triton kernel in the interpreter, each tensor of its launches beside memory that may not be touched.

A program for a process of its own, which a read beyond a tensor ends. It prints each problem before it runs, and then
how many there were.
"""

import ctypes
import dataclasses
import functools
import mmap
import os
import sys
from collections.abc import Iterator

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from lwrn_fast import reference
from lwrn_fast.kernels import configs, crp, crp_backward, fusion, fusion_backward, normalise, upsample_argmax
from lwrn_fast.kernels.launch import Launch, Launches

GUARD = 1 << 21
"""Bytes that may not be touched, on each side."""
NO_ACCESS = 0
libc = ctypes.CDLL(None, use_errno=True)


class Guarded:
    """Copies of tensors, one for each memory that they share, which end, or begin, where nothing may be read."""

    def __init__(self, at_end: bool) -> None:
        self.at_end = at_end
        self.copies: dict[int, tuple[Tensor, Tensor]] = {}  # with what was copied, so that it stays

    def __call__(self, x: Tensor) -> Tensor:
        memory = x.untyped_storage()
        if memory.nbytes() == 0:
            return x
        if memory._cdata not in self.copies:
            flat = torch.empty(0, dtype=x.dtype).set_(memory)
            self.copies[memory._cdata] = (x, self._guarded(flat))
        return self.copies[memory._cdata][1].as_strided(x.shape, x.stride(), x.storage_offset())

    def _guarded(self, flat: Tensor) -> Tensor:
        size = flat.numel() * flat.element_size()
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, pages + 2 * GUARD)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for begin in (address, address + GUARD + pages):
            if libc.mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(GUARD), NO_ACCESS) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")
        offset = GUARD + (pages - size if self.at_end else 0)
        return torch.frombuffer(memory, dtype=flat.dtype, count=flat.numel(), offset=offset).copy_(flat)

    def run(self, work: Launch | Launches) -> list[Tensor]:
        launches = work.launches if isinstance(work, Launches) else [work]
        for launch in launches:
            launch.arguments.update({k: self(v) for k, v in launch.arguments.items() if isinstance(v, Tensor)})
            launch.run()
        return [self(out) for out in (work.out if isinstance(work.out, list) else [work.out])]


def rows(kind: type, op: str, dtype: torch.dtype) -> list:
    """The table's rows of all devices for a dtype, on small tiles; of those that differ in nothing else, one."""
    same = {"pixels": 0, "warps": 4, "programs": 1, "pipeline": 1, "tap_pipeline": 1, "share": 16}
    same |= {"block_h": 4, "block_w": 4, "block_pixels": 16}
    found = {}
    for device, ops in configs.table().items():
        for name in ops[op]:
            if (name == "half") == (dtype == torch.bfloat16):
                for row in configs.rows(kind, op, device, name):
                    names = {field.name for field in dataclasses.fields(row)}
                    found[dataclasses.replace(row, **{k: v for k, v in same.items() if k in names})] = None
    return list(found)


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype)


def problems() -> Iterator[tuple[str, functools.partial, functools.partial]]:
    """What runs, by name, and what gives the right result."""
    for dtype in (torch.float32, torch.bfloat16):
        yield from crp_problems(dtype)
        yield from crp_backward_problems(dtype)
        yield from fusion_problems(dtype)
        yield from fusion_backward_problems(dtype)
        yield from argmax_problems(dtype)
    images = torch.randint(256, (2, 7, 5, 3), dtype=torch.uint8)
    for size in ((7, 5), (3, 4), (9, 11)):
        mean, std = reference.MEAN, reference.STD
        prepare = functools.partial(normalise.prepare, images, *size, mean, std, torch.float32)
        yield f"normalise {size}", prepare, functools.partial(reference.normalise, images, size)


def crp_problems(dtype: torch.dtype) -> Iterator[tuple]:
    narrow = configs.Crp(4, 4, 32, 1, 64, 32, 1, 4, 1)  # pools fewer planes at a time than it multiplies
    for planes in (96, 192, 320, 384, 640):
        for groups in (1, planes):
            for row in [*rows(configs.Crp, "crp", dtype), narrow]:
                if planes % (row.passes * row.block_planes) == planes % row.block_depth == 0:
                    continue  # every item is full
                x = last(random(1, planes, 1, 9 if row is narrow else 4, dtype=dtype))
                if row is narrow:
                    x[0, 0, 0, 8] = torch.nan  # which reaches the windows of the last three columns alone
                weights = [random(planes, planes // groups, 1, 1, dtype=dtype) / planes**0.5]
                problem = (x, weights, [random(planes, dtype=dtype)], groups)
                name = f"crp {planes} planes, {groups} groups, {row}"
                yield name, functools.partial(crp.prepare, *problem, config=row), functools.partial(exact_crp, problem)


def crp_backward_problems(dtype: torch.dtype) -> Iterator[tuple]:
    for planes, groups in ((20, 1), (96, 1), (192, 192)):
        x = last(random(1, planes, 2, 3, dtype=dtype))
        weights = [random(planes, planes // groups, 1, 1, dtype=dtype) / planes**0.5 for _ in range(2)]
        problem = (last(random(*x.shape, dtype=dtype)), x, [], weights, [], groups, [True] * 3)
        for tile in rows(configs.Tile, "crp_backward", dtype)[:1]:
            for products in rows(configs.Products, "products", dtype)[:1]:
                prepare = functools.partial(crp_backward.prepare, *problem, config=tile, of_products=products)
                yield f"crp_backward {planes} planes, {groups} groups, {tile}, {products}", prepare, None


def fusion_problems(dtype: torch.dtype) -> Iterator[tuple]:
    for planes in (20, 192, 320):
        channels = 21 if planes == 20 else 24  # with a number that 8 does not divide, blocks are less deep
        shapes = ((channels, 3, 5), (96, 2, 3), (40, 3, 5))
        inputs = [last(random(1, *shape, dtype=dtype)) for shape in shapes]
        weights = [random(planes, x.shape[1], 1, 1, dtype=dtype) / 16 for x in inputs]
        problem = (inputs, weights, [random(planes, dtype=dtype) for _ in inputs], "relu6", False)
        for row in rows(configs.Fusion, "fusion", dtype):
            prepare = functools.partial(fusion.prepare, *problem, config=row)
            yield f"fusion {planes} planes, {row}", prepare, functools.partial(exact_fusion, problem)


def fusion_backward_problems(dtype: torch.dtype) -> Iterator[tuple]:
    for planes in (20, 192):
        inputs = [last(random(1, c, *size, dtype=dtype)) for c, size in ((48, (3, 5)), (96, (2, 3)))]
        weights = [random(planes, x.shape[1], 1, 1, dtype=dtype) for x in inputs]
        biases = [random(planes, dtype=dtype) for _ in inputs]
        grad, out = (last(random(1, planes, 3, 5, dtype=dtype)) for _ in range(2))
        problem = (grad, out, inputs, weights, biases, "relu", True, [True] * 6)
        for tile in rows(configs.Tile, "fusion_backward", dtype)[:1]:
            for products in rows(configs.Products, "products", dtype)[:1]:
                prepare = functools.partial(fusion_backward.prepare, *problem, config=tile, of_products=products)
                yield f"fusion_backward {planes} planes, {tile}, {products}", prepare, None


def argmax_problems(dtype: torch.dtype) -> Iterator[tuple]:
    for classes in (1, 21, 40):
        logits = last(random(1, classes, 2, 3, dtype=dtype))
        for size in ((5, 7), (2, 3)):
            exact = functools.partial(reference.upsample_argmax, logits.double(), size, True)
            for row in rows(configs.UpsampleArgmax, "upsample_argmax", dtype):
                prepare = functools.partial(upsample_argmax.prepare, logits, *size, True, config=row)
                yield f"upsample_argmax {classes} classes to {size}, {row}", prepare, exact


def exact_crp(problem: tuple) -> Tensor:
    x, weights, biases, groups = problem
    return reference.crp(x.double(), [w.double() for w in weights], [b.double() for b in biases], groups)


def exact_fusion(problem: tuple) -> Tensor:
    inputs, weights, biases, *how = problem
    return reference.fusion(*([t.double() for t in tensors] for tensors in (inputs, weights, biases)), *how)


def main() -> None:
    torch.manual_seed(0)
    count = 0
    for name, prepare, exact in problems():
        for at_end in (True,) if name.startswith("crp ") else (True, False):
            print(name, "behind" if at_end else "before", flush=True)
            got = Guarded(at_end).run(prepare())
            if exact is not None:
                tolerance = {"rtol": 0.02, "atol": 0.1} if got[0].dtype == torch.bfloat16 else {}
                torch.testing.assert_close(got[0], exact().to(got[0].dtype), equal_nan=True, **tolerance)
            count += 1
    print(f"{count} problems", file=sys.stderr)


if __name__ == "__main__":
    main()
