"""Run every Triton kernel in the interpreter, with guard pages before or behind each tensor of its launches.

This is a program for a process of its own, which a read beyond a tensor ends. It prints each problem before it runs it,
and their number at the end.
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

# Bytes without access on each side of a tensor.
GUARD = 1 << 21
# PROT_NONE of mprotect.
NO_ACCESS = 0
libc = ctypes.CDLL(None, use_errno=True)


class Guarded:
    """Copies of tensors, one per storage, each of which ends, or begins, at a guard page."""

    def __init__(self, at_end: bool) -> None:
        self.at_end = at_end
        self.copies: dict[
            int, tuple[Tensor, Tensor]
        ] = {}  # by storage: the original, which must outlive this, and the copy

    def __call__(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.nbytes() == 0:
            return x
        if storage._cdata not in self.copies:
            flat = torch.empty(0, dtype=x.dtype).set_(storage)
            self.copies[storage._cdata] = (x, self._copy(flat))
        return self.copies[storage._cdata][1].as_strided(x.shape, x.stride(), x.storage_offset())

    def _copy(self, flat: Tensor) -> Tensor:
        size = flat.numel() * flat.element_size()
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, pages + 2 * GUARD)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for begin in (address, address + GUARD + pages):
            if libc.mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(GUARD), NO_ACCESS) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")
        offset = GUARD + (pages - size if self.at_end else 0)
        return torch.frombuffer(memory, dtype=flat.dtype, count=flat.numel(), offset=offset).copy_(flat)

    def run(self, prepared: Launch | Launches) -> list[Tensor]:
        """Run the launches on guarded copies of their tensors, and return the copies of the results."""
        launches = prepared.launches if isinstance(prepared, Launches) else [prepared]
        for launch in launches:
            launch.arguments.update({k: self(v) for k, v in launch.arguments.items() if isinstance(v, Tensor)})
            launch.run()
        return [self(out) for out in (prepared.out if isinstance(prepared.out, list) else [prepared.out])]


def rows(config_class: type, op: str, dtype: torch.dtype) -> list:
    """Return the table's rows of all devices for a dtype, on small tiles, without those that are then equal."""
    same = {"pixels": 0, "num_warps": 4, "programs_per_sm": 1, "num_stages": 1, "interp_num_stages": 1}
    same |= {"block_h": 4, "block_w": 4, "block_m": 16, "split_pixels": 16}
    distinct = {}
    for key, ops in configs.table().items():
        for precision in ops[op]:
            if (precision == "half") == (dtype == torch.bfloat16):
                for row in configs.rows(config_class, op, key, precision):
                    names = {field.name for field in dataclasses.fields(row)}
                    distinct[dataclasses.replace(row, **{k: v for k, v in same.items() if k in names})] = None
    return list(distinct)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype)


def problems() -> Iterator[tuple[str, functools.partial, functools.partial]]:
    """Yield problems: a name, a function that prepares the launch, and one that returns the exact result, or None."""
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
    narrow = configs.Crp(4, 4, 32, 1, 64, 32, 1, 4, 1)  # pools fewer channels in a step than it multiplies
    for channels in (96, 192, 320, 384, 640):
        for groups in (1, channels):
            for row in [*rows(configs.Crp, "crp", dtype), narrow]:
                if channels % (row.passes * row.block_n) == channels % row.block_k == 0:
                    continue  # every item is full
                x = channels_last(random(1, channels, 1, 9 if row is narrow else 4, dtype=dtype))
                if row is narrow:
                    x[0, 0, 0, 8] = torch.nan  # in the windows of the last three columns only
                weights = [random(channels, channels // groups, 1, 1, dtype=dtype) / channels**0.5]
                problem = (x, weights, [random(channels, dtype=dtype)], groups)
                name = f"crp {channels} channels, {groups} groups, {row}"
                yield name, functools.partial(crp.prepare, *problem, config=row), functools.partial(exact_crp, problem)


def crp_backward_problems(dtype: torch.dtype) -> Iterator[tuple]:
    for channels, groups in ((20, 1), (96, 1), (192, 192)):
        x = channels_last(random(1, channels, 2, 3, dtype=dtype))
        weights = [random(channels, channels // groups, 1, 1, dtype=dtype) / channels**0.5 for _ in range(2)]
        problem = (channels_last(random(*x.shape, dtype=dtype)), x, [], weights, [], groups, [True] * 3)
        for tile in rows(configs.Tile, "crp_backward", dtype)[:1]:
            for products in rows(configs.Products, "products", dtype)[:1]:
                prepare = functools.partial(crp_backward.prepare, *problem, config=tile, products_config=products)
                yield f"crp_backward {channels} channels, {groups} groups, {tile}, {products}", prepare, None


def fusion_problems(dtype: torch.dtype) -> Iterator[tuple]:
    for channels in (20, 192, 320):
        unaligned = 21 if channels == 20 else 24  # where 8 does not divide the input's channels, BLOCK_K is smaller
        shapes = ((unaligned, 3, 5), (96, 2, 3), (40, 3, 5))
        inputs = [channels_last(random(1, *shape, dtype=dtype)) for shape in shapes]
        weights = [random(channels, x.shape[1], 1, 1, dtype=dtype) / 16 for x in inputs]
        problem = (inputs, weights, [random(channels, dtype=dtype) for _ in inputs], "relu6", False)
        for row in rows(configs.Fusion, "fusion", dtype):
            prepare = functools.partial(fusion.prepare, *problem, config=row)
            yield f"fusion {channels} channels, {row}", prepare, functools.partial(exact_fusion, problem)


def fusion_backward_problems(dtype: torch.dtype) -> Iterator[tuple]:
    for channels in (20, 192):
        inputs = [channels_last(random(1, c, *size, dtype=dtype)) for c, size in ((48, (3, 5)), (96, (2, 3)))]
        weights = [random(channels, x.shape[1], 1, 1, dtype=dtype) for x in inputs]
        biases = [random(channels, dtype=dtype) for _ in inputs]
        grad, out = (channels_last(random(1, channels, 3, 5, dtype=dtype)) for _ in range(2))
        problem = (grad, out, inputs, weights, biases, "relu", True, [True] * 6)
        for tile in rows(configs.Tile, "fusion_backward", dtype)[:1]:
            for products in rows(configs.Products, "products", dtype)[:1]:
                prepare = functools.partial(fusion_backward.prepare, *problem, config=tile, products_config=products)
                yield f"fusion_backward {channels} channels, {tile}, {products}", prepare, None


def argmax_problems(dtype: torch.dtype) -> Iterator[tuple]:
    for classes in (1, 21, 40):
        logits = channels_last(random(1, classes, 2, 3, dtype=dtype))
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
            out = Guarded(at_end).run(prepare())[0]
            if exact is not None:
                tolerance = {"rtol": 0.02, "atol": 0.1} if out.dtype == torch.bfloat16 else {}
                torch.testing.assert_close(out, exact().to(out.dtype), equal_nan=True, **tolerance)
            count += 1
    print(f"{count} problems", file=sys.stderr)


if __name__ == "__main__":
    main()
