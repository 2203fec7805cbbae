"""The CUDA kernels without GPU and torch: on the emulated machine, with sanitizers, and with planted faults."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from support.compiling import TESTS, missing, run
from support.sanitizing import OPTIONS, without

# The folder where the library of the op tests is built, too.
KERNELS = TESTS.parent / "build" / "emulator"
ADDRESS = "-O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
THREAD = "-O1 -g1 -fsanitize=thread"
# ThreadSanitizer counts each thread of a block as a thread of its own: some thousands.
THREAD_OPTIONS = "halt_on_error=1 history_size=0"

pytestmark = pytest.mark.skipif(bool(missing("g++")), reason=f"{missing('g++')}")
needs_asan = pytest.mark.skipif(bool(without("libasan.so")), reason=f"{without('libasan.so')}")
needs_tsan = pytest.mark.skipif(bool(without("libtsan.so")), reason=f"{without('libtsan.so')}")


def build(folder: Path, target: str, flags: str, *elements: str) -> Path:
    """Build a target of tests/emulator/build.py and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(sys.executable, TESTS / "emulator" / "build.py", folder, target, *elements, CXXFLAGS=flags)
    return folder / target


def problems(output: str) -> dict[str, int]:
    """Return the number of problems of each kernel; none may have failed."""
    lines = re.findall(r"^(.+): (\d+) problems, (\d+) wrong$", output, re.MULTILINE)
    assert {wrong for _, _, wrong in lines} == {"0"}, output
    return {kernel: int(count) for kernel, count, _ in lines}


@pytest.mark.slow
def test_the_machine():
    assert run(build(KERNELS, "layer", "")).splitlines()[-1] == "right"


@pytest.mark.slow
def test_every_kernel(everything):
    cases = 40 if everything else 15
    tried = problems(run(build(KERNELS, "selfcheck", ""), cases))
    assert {"crp", "fusion", "upsample_argmax", "normalise"} == {kernel.split()[0] for kernel in tried}
    assert len(tried) == 17
    assert min(tried.values()) >= cases


@pytest.mark.slow
@needs_asan
def test_with_addresses_and_undefined_behaviour(tmp_path):
    program = build(tmp_path, "selfcheck", ADDRESS, "Bf16", "F32")
    assert min(problems(run(program, 5, "bf16", "f32", **OPTIONS)).values()) >= 5


@pytest.fixture(scope="module")
def threaded(tmp_path_factory):
    """Build for bfloat16 with ThreadSanitizer."""
    folder = tmp_path_factory.mktemp("threaded")
    build(folder, "selfcheck", THREAD, "Bf16")
    build(folder, "layer", THREAD)
    return folder


@pytest.mark.slow
@needs_tsan
def test_with_threads(threaded):
    run(threaded / "layer", TSAN_OPTIONS=THREAD_OPTIONS)
    assert min(problems(run(threaded / "selfcheck", 3, "bf16", TSAN_OPTIONS=THREAD_OPTIONS)).values()) >= 3


class Fault(NamedTuple):
    """A text in a file of csrc/cuda, its replacement, and the error that the self-check of a kernel then reports.

    All faults are in one program; fault N acts where `planted` is N. The replacement writes this condition as PLANTED.
    """

    file: str
    text: str
    replacement: str
    kernel: str
    error: str


RACE, WRONG, UNFENCED = "ThreadSanitizer: data race", "are wrong", "not fenced"
FAULTS = {
    "halo off by one": Fault(
        "crp.cuh",
        "min(kHaloH, task_.height - y0_ + 2)",
        "min(kHaloH, task_.height - y0_ + (PLANTED ? 1 : 2))",
        "small",
        WRONG,
    ),
    "window off by one": Fault(
        "crp.cuh", "load_shared(row + columns[5])", "load_shared(row + columns[PLANTED ? 4 : 5])", "small", WRONG
    ),
    "no barrier before the pool": Fault(
        "crp.cuh",
        "        sync();\n        pool(first, count);",
        "        if (!PLANTED) sync();\n        pool(first, count);",
        "small",
        RACE,
    ),
    "no barrier after the pool": Fault(
        "crp.cuh",
        "pool(first, count);\n        sync();",
        "pool(first, count);\n        if (!PLANTED) sync();",
        "depthwise",
        RACE,
    ),
    "no barrier in the product": Fault(
        "crp.cuh", "      sync();  // this step's", "      if (!PLANTED) sync();  // this step's", "small", RACE
    ),
    "no barrier before a result is stored": Fault(
        "crp.cuh",
        "        sync();\n        store_pass",
        "        if (!PLANTED) sync();\n        store_pass",
        "small",
        RACE,
    ),
    "no barrier after a ticket": Fault(
        "crp.cuh",
        "    value = *smem_word_;\n    sync();",
        "    value = *smem_word_;\n    if (!PLANTED) sync();",
        "small",
        RACE,
    ),
    "no barrier after the wait": Fault(
        "schedule.cuh", "      }\n    }\n  }\n  sync();", "      }\n    }\n  }\n  if (!PLANTED) sync();", "small", RACE
    ),
    "flag set before the data": Fault(
        "crp.cuh",
        "        store_pass(pass);\n      }\n      arrive(s, item_);",
        "        if (PLANTED && pass == 0) arrive(s, item_);\n        store_pass(pass);\n      }\n"
        "      if (!PLANTED) arrive(s, item_);",
        "small",
        RACE,
    ),
    "flag set when the first thread is done": Fault(
        "schedule.cuh",
        "arrive(const Schedule& s, const Item& item) {\n  sync();",
        "arrive(const Schedule& s, const Item& item) {\n  if (!PLANTED) sync();",
        "small_resident",
        RACE,
    ),
    "flag without release": Fault(
        "schedule.cuh",
        "    add_release(",
        "    [](int* flag, int n) { PLANTED ? void(add_relaxed(flag, n)) : add_release(flag, n); }(",
        "large_resident",
        RACE,
    ),
    "neighbour not waited for": Fault(
        "schedule.cuh", "neighbour < 9", "neighbour < (PLANTED ? 8 : 9)", "large_resident", RACE
    ),
    "running sum not reset": Fault(
        "crp.cuh",
        "for (float& sum : acc[i]) sum = 0;\n",
        "for (float& sum : acc[i]) sum = PLANTED ? sum : 0;\n",
        "small_resident",
        WRONG,
    ),
    "sum of products not reset": Fault(
        "crp.cuh",
        "float acc[Product::kAccCount] = {};",
        "static thread_local float stale[Product::kAccCount];\n"
        "float fresh[Product::kAccCount] = {}, (&acc)[Product::kAccCount] = PLANTED ? stale : fresh;",
        "small",
        WRONG,
    ),
    "counters not reset": Fault(
        "schedule.cuh",
        "store_relaxed(s.counters + i, 0)",
        "if (!PLANTED) store_relaxed(s.counters + i, 0)",
        "small",
        "is left at",
    ),
    "copies not waited for": Fault(
        "crp.cuh",
        "wait_copies<kPrefetch - 1>()",
        "PLANTED ? wait_copies<kPrefetch>() : wait_copies<kPrefetch - 1>()",
        "small",
        f"{WRONG}|{RACE}",
    ),
    "product not waited for": Fault(
        "crp.cuh",
        "    Product::template wait<0>(acc);\n",
        "    if (!PLANTED) Product::template wait<0>(acc);\n",
        "large_sm90",
        f"{WRONG}|{UNFENCED}",
    ),
    "product of unfenced memory": Fault(
        "product.cuh", "{ fence_for_wgmma(); }", "{ if (!PLANTED) fence_for_wgmma(); }", "large_sm90", UNFENCED
    ),
}
PLANTED_H = """#pragma once
#include <cstdlib>
inline const int planted = std::atoi(std::getenv("PLANTED"));
"""


@pytest.fixture(scope="module")
def faulty(threaded, tmp_path_factory):
    """Build a program with all faults; without a number in PLANTED none acts."""
    folder = tmp_path_factory.mktemp("faulty") / "build"
    shutil.copytree(threaded, folder, symlinks=True)
    (folder / "csrc").unlink()
    shutil.copytree(TESTS.parent / "csrc", folder / "csrc")
    cuda = folder / "csrc" / "cuda"
    (cuda / "planted.h").write_text(PLANTED_H)
    for name in {fault.file for fault in FAULTS.values()}:
        text = (cuda / name).read_text().replace("#pragma once", '#pragma once\n#include "planted.h"')
        for number, fault in enumerate(FAULTS.values()):
            if fault.file == name:
                assert text.count(fault.text) == 1, fault
                text = text.replace(fault.text, fault.replacement.replace("PLANTED", f"(planted == {number})"))
        (cuda / name).write_text(text)
    program = build(folder, "selfcheck", THREAD, "Bf16")
    problems(run(program, 3, "bf16", "crp", PLANTED="-1", TSAN_OPTIONS=THREAD_OPTIONS))
    return program


@pytest.mark.slow
@needs_tsan
@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(faulty, name):
    fault, number = FAULTS[name], list(FAULTS).index(name)
    command = [faulty, "20", "bf16", f"crp {fault.kernel}"]
    variables = {**os.environ, "TSAN_OPTIONS": THREAD_OPTIONS, "PLANTED": str(number)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(fault.error, done.stdout + done.stderr)
