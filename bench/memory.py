"""Peak memory of one call beyond its inputs and its result, measured from outside any allocator.

`python bench/memory.py crp 256x128x128 float32 ours` prints the bytes. A process of its own, because the pages that
earlier calls left in the allocator would hide what this one needs.
"""

import os
import subprocess
import sys
from pathlib import Path

PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # freed blocks go back to the system
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def extra_bytes(op: str, case: str, dtype: str, contestant: str, threads: int) -> int | None:
    """From a new process: what a first call needs at most, packed weights included. None where the
    system does not keep such a record.

    op: the stem, as in bench_<op>.py; case: as str(case) gives it.
    """
    if not os.access(RESET, os.W_OK):
        return None
    command = [sys.executable, __file__, op, case, dtype, contestant]
    environment = os.environ | PAGES | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1])


def _status(key: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


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
        RESET.write_text("5")
        before = _status("VmRSS")
        result = call()
        print(max(0, _status("VmHWM") - before - result.nbytes))


def smaller(case, replace):  # type: ignore[no-untyped-def]
    """The same channels on few pixels."""
    if hasattr(case, "inputs"):
        first = case.inputs[0]
        return replace(case, inputs=tuple((c, 9 if (h, w) == first[1:] else 5, 9) for c, h, w in case.inputs))
    return replace(case, height=9, width=9)


if __name__ == "__main__":
    main()
