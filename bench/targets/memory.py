"""Peak memory of one call beyond its inputs and its result, measured from outside any allocator.

`python bench/memory.py crp 256x128x128 float32 ours` prints the bytes. A process of its own, because the pages that
earlier calls left in the allocator would hide what this one needs.
"""

import os
import sys

from lwrn_fast.profiling.memory import growth, in_new_process


def extra_bytes(op: str, case: str, dtype: str, contestant: str, threads: int) -> int | None:
    """From a new process: what a first call needs at most, packed weights included. None where the
    system does not keep such a record.

    op: the stem, as in bench_<op>.py; case: as str(case) gives it.
    """
    return in_new_process([__file__, op, case, dtype, contestant], threads)


def main() -> None:
    import dataclasses
    import importlib

    import torch

    op, case_name, dtype, contestant = sys.argv[1:]
    bench = importlib.import_module(f"bench_{op}")
    case = next(case for case in bench.CASES if str(case) == case_name)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with torch.inference_mode():
        # the same code on a small image first: libraries, threads and generated code are not the call's memory
        bench.set_up(smaller(case, dataclasses.replace), getattr(torch, dtype)).contestants[contestant]()()
        call = bench.set_up(case, getattr(torch, dtype)).contestants[contestant]()
        grown, result = growth(call)
        print(max(0, grown - result.nbytes))


def smaller(case, replace):  # type: ignore[no-untyped-def]
    """The same channels on few pixels."""
    if hasattr(case, "inputs"):
        first = case.inputs[0]
        return replace(case, inputs=tuple((c, 9 if (h, w) == first[1:] else 5, 9) for c, h, w in case.inputs))
    return replace(case, height=9, width=9)


if __name__ == "__main__":
    main()
