"""Peak memory of one call, measured from outside any allocator.

It is measured in a process of its own, because the pages that earlier calls left in the allocator would hide what this
one needs.
"""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# glibc's settings with which freed blocks go back to the system, in bytes.
PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def growth(call: Callable[[], Any]) -> tuple[int, Any]:
    """Return by how many bytes this process was larger, at its peak, while the call ran, than before; and the result.

    Where a first call loads libraries or starts threads, make one on a small input before.
    """
    RESET.write_text("5")
    before = _status("VmRSS")
    result = call()
    return max(0, _status("VmHWM") - before), result


def of_model(backend: str, threads: int, **options: Any) -> int | None:
    """Return the peak bytes of one run of a model, images to labels, beyond these and its weights.

    options: network, checkpoint, size, batch and dtype, as `subject.Options` has them. None where the system keeps no
    such record.
    """
    return _in_new_process(threads, "model", options | {"backend": backend})


def of_case(op: str, case: str, dtype: str, contestant: str, threads: int) -> int | None:
    """Return the peak bytes of a first call beyond its inputs and its result, packed weights included.

    op: a key of `shapes.OPS`; case: one of its cases, as str() gives it. None where the system keeps no such record.
    """
    return _in_new_process(threads, "case", {"op": op, "name": case, "dtype": dtype, "contestant": contestant})


def _in_new_process(threads: int, measure: str, options: dict[str, Any]) -> int | None:
    """Return the bytes that `main` prints in a new process."""
    if not os.access(RESET, os.W_OK):
        return None
    environment = os.environ | PAGES | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", __name__, measure, json.dumps(options)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def _status(key: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def _model_growth(backend: str, size: Sequence[int], **options: Any) -> int:
    import torch

    from .. import backends
    from . import layers, subject

    given = subject.Options(size=(size[0], size[1]), **options)
    with torch.no_grad(), backends.use_backend(backend):
        model, small = subject.prepare(given, (64, 64))
        layers.run(model, small)
        images = subject.random_images(given, given.size)
        return growth(lambda: layers.run(model, images))[0]


def _case_growth(op: str, name: str, dtype: str, contestant: str) -> int:
    import torch

    from . import shapes

    set_up = importlib.import_module(f"{__package__}.workloads.{op}").set_up
    case = next(case for case in shapes.OPS[op] if str(case) == name)
    with torch.inference_mode():
        # The same code on a small image first: libraries, threads and generated code are not the call's memory.
        set_up(_smaller(case), getattr(torch, dtype)).contestants[contestant]()()
        call = set_up(case, getattr(torch, dtype)).contestants[contestant]()
        grown, result = growth(call)
    return max(0, grown - result.nbytes)


def _smaller(case: Any) -> Any:
    """Return the case with the same channels on few pixels."""
    if hasattr(case, "inputs"):
        size = case.inputs[0][1:]
        inputs = tuple((c, 9 if (h, w) == size else 5, 9) for c, h, w in case.inputs)
        return dataclasses.replace(case, inputs=inputs)
    return dataclasses.replace(case, height=9, width=9)


def main() -> None:
    """Print the bytes, in the new process."""
    import torch

    measure: Callable[..., int] = _case_growth if sys.argv[1] == "case" else _model_growth
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    print(measure(**json.loads(sys.argv[2])))


if __name__ == "__main__":
    main()
