"""The CUDA kernels without a GPU and without torch: on the machine in emulator/, with sanitizers, and with faults that
must be found."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from compiling import TESTS, missing, run
from test_sanitizers import OPTIONS, without

KERNELS = TESTS.parent / "build" / "emulator"  # where the library of the op tests is built, too
ADDRESS = "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
THREAD = "-O1 -g1 -fsanitize=thread"
# To this sanitizer each thread of a block is a thread of its own, of which there may be some thousands.
THREAD_OPTIONS = "halt_on_error=1 history_size=0"

pytestmark = pytest.mark.skipif(bool(missing("g++")), reason=f"{missing('g++')}")
needs_asan = pytest.mark.skipif(bool(without("libasan.so")), reason=f"{without('libasan.so')}")
needs_tsan = pytest.mark.skipif(bool(without("libtsan.so")), reason=f"{without('libtsan.so')}")


def build(folder: Path, target: str, flags: str, *kinds: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(sys.executable, TESTS / "emulator" / "build.py", folder, target, *kinds, CXXFLAGS=flags)
    return folder / target


def problems(output: str) -> dict[str, int]:
    """How many problems each kernel was given; none may have gone wrong."""
    lines = re.findall(r"^(.+): (\d+) problems, (\d+) wrong$", output, re.MULTILINE)
    assert {wrong for _, _, wrong in lines} == {"0"}, output
    return {kernel: int(count) for kernel, count, _ in lines}


def test_the_machine():
    assert run(build(KERNELS, "layer", "")).splitlines()[-1] == "right"


def test_every_kernel():
    tried = problems(run(build(KERNELS, "selfcheck", ""), 40))
    assert {"crp", "fusion", "upsample_argmax"} == {kernel.split()[0] for kernel in tried}
    assert len(tried) == 16
    assert min(tried.values()) >= 40


@needs_asan
def test_with_addresses_and_undefined_behaviour(tmp_path):
    program = build(tmp_path, "selfcheck", ADDRESS, "Bf16", "F32")
    assert min(problems(run(program, 5, "bf16", "f32", **OPTIONS)).values()) >= 5


@pytest.fixture(scope="module")
def threaded(tmp_path_factory):
    """A build for bfloat16 with the sanitizer of threads."""
    folder = tmp_path_factory.mktemp("threaded")
    build(folder, "selfcheck", THREAD, "Bf16")
    build(folder, "layer", THREAD)
    return folder


@needs_tsan
def test_with_threads(threaded):
    run(threaded / "layer", TSAN_OPTIONS=THREAD_OPTIONS)
    assert min(problems(run(threaded / "selfcheck", 3, "bf16", TSAN_OPTIONS=THREAD_OPTIONS)).values()) >= 3


class Fault(NamedTuple):
    """A text in a file of csrc/cuda, what takes its place, and what the self-check of a kernel then says."""

    file: str
    text: str
    instead: str
    kernel: str
    found: str


RACE, WRONG, UNFENCED = "ThreadSanitizer: data race", "are wrong", "not fenced"
FAULTS = {
    "halo off by one": Fault(
        "crp.cuh", "smaller(kHaloH, task_.height - y0_ + 2)", "smaller(kHaloH, task_.height - y0_ + 1)", "small", WRONG
    ),
    "window off by one": Fault(
        "crp.cuh", "load_shared(row + columns[5])", "load_shared(row + columns[4])", "small", WRONG
    ),
    "no barrier before the pool": Fault(
        "crp.cuh", "        sync();\n        pool(first, count);", "        pool(first, count);", "small", RACE
    ),
    "no barrier after the pool": Fault(
        "crp.cuh", "pool(first, count);\n        sync();", "pool(first, count);", "depthwise", RACE
    ),
    "no barrier in the product": Fault(
        "crp.cuh", "      sync();  // this step's", "      // this step's", "small", RACE
    ),
    "no barrier before a result is stored": Fault(
        "crp.cuh", "        sync();\n        store_pass", "        store_pass", "small", RACE
    ),
    "no barrier after a ticket": Fault(
        "crp.cuh", "    value = *word_;\n    sync();", "    value = *word_;", "small", RACE
    ),
    "no barrier after the wait": Fault(
        "schedule.cuh", "      }\n    }\n  }\n  sync();", "      }\n    }\n  }", "small", RACE
    ),
    "flag set before the data": Fault(
        "crp.cuh",
        "        store_pass(pass);\n      }\n      arrive(s, item_);",
        "        if (pass == 0) arrive(s, item_);\n        store_pass(pass);\n      }",
        "small",
        RACE,
    ),
    "flag set when the first thread is done": Fault(
        "schedule.cuh",
        "arrive(const Schedule& s, const Item& item) {\n  sync();",
        "arrive(const Schedule& s, const Item& item) {",
        "small_resident",
        RACE,
    ),
    "flag without release": Fault("schedule.cuh", "    add_release(", "    add_relaxed(", "large_resident", RACE),
    "neighbour not waited for": Fault("schedule.cuh", "neighbour < 9", "neighbour < 8", "large_resident", RACE),
    "running sum not reset": Fault(
        "crp.cuh", "      for (float& sum : sums[i]) sum = 0;\n", "", "small_resident", WRONG
    ),
    "sum of products not reset": Fault(
        "crp.cuh",
        "float sums[Product::kCount] = {};",
        "static thread_local float sums[Product::kCount] = {};",
        "small",
        WRONG,
    ),
    "counters not reset": Fault("schedule.cuh", "store_relaxed(s.counters + i, 0)", "continue", "small", "is left at"),
    "copies not waited for": Fault(
        "crp.cuh", "wait_copies<kAhead - 1>()", "wait_copies<kAhead>()", "small", f"{WRONG}|{RACE}"
    ),
    "product not waited for": Fault(
        "crp.cuh", "    Product::template wait<0>(sums);\n", "", "large_sm90", f"{WRONG}|{UNFENCED}"
    ),
    "product of unfenced memory": Fault("product.cuh", "{ fence_for_wgmma(); }", "{}", "large_sm90", UNFENCED),
}


@needs_tsan
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_faults_are_found(threaded, tmp_path, fault):
    folder = tmp_path / "build"
    shutil.copytree(threaded, folder, symlinks=True)
    (folder / "csrc").unlink()
    shutil.copytree(TESTS.parent / "csrc", folder / "csrc")
    file = folder / "csrc" / "cuda" / fault.file
    text = file.read_text()
    assert text.count(fault.text) == 1
    file.write_text(text.replace(fault.text, fault.instead))
    command = [build(folder, "selfcheck", THREAD, "Bf16"), "20", "bf16", f"crp {fault.kernel}"]
    done = subprocess.run(command, env={**os.environ, "TSAN_OPTIONS": THREAD_OPTIONS}, capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(fault.found, done.stdout + done.stderr)
