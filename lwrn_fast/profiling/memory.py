"""Peak memory of one call, measured from outside any allocator: of a process of its own, because the pages that earlier
calls left in the allocator would hide what this one needs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # freed blocks go back to the system
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def growth(call: Callable[[], Any]) -> tuple[int, Any]:
    """By how many bytes this process was larger at the most, while the call ran, than before; and its result.

    Where a first call loads libraries or starts threads, make one on a small input before.
    """
    RESET.write_text("5")
    before = _status("VmRSS")
    result = call()
    return max(0, _status("VmHWM") - before), result


def in_new_process(command: Sequence[str], threads: int) -> int | None:
    """What this Python program prints last, a number of bytes. None where the system does not keep such a record."""
    if not os.access(RESET, os.W_OK):
        return None
    environment = os.environ | PAGES | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def of_network(backend: str, threads: int, **options: Any) -> int | None:
    """Bytes of one run of a network, photographs to labels, beyond these and its weights.

    options: network, checkpoint, size, batch and dtype, as `profile.Options` has them.
    """
    return in_new_process(["-m", __name__, json.dumps(options | {"backend": backend})], threads)


def _status(key: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def main() -> None:
    """The new process."""
    import torch

    from .. import backends
    from . import layers, profile

    options = json.loads(sys.argv[1])
    backend = options.pop("backend")
    given = profile.Options(**options | {"size": tuple(options["size"])})
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with torch.no_grad(), backends.use_backend(backend):
        network, small = profile.prepare(given, (64, 64))
        layers.run(network, small)
        photos = profile.photographs(given, given.size)
        print(growth(lambda: layers.run(network, photos))[0])


if __name__ == "__main__":
    main()
