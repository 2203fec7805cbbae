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

from support.compiling import TESTS, missing, run
from support.sanitizing import OPTIONS, without

KERNELS = TESTS.parent / "build" / "emulator"  # where the library of the op tests is built, too
ADDRESS = "-O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
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
    """A build for bfloat16 with the sanitizer of threads."""
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
    """A text in a file of csrc/cuda, what takes its place, and what the self-check of a kernel then says.

    All faults are in one program, each where `planted` is its number: PLANTED stands for that.
    """

    file: str
    text: str
    instead: str
    kernel: str
    found: str


RACE, WRONG, UNFENCED = "ThreadSanitizer: data race", "are wrong", "not fenced"
FAULTS = {
    "halo off by one": Fault(
        "crp.cuh",
        "smaller(kHaloH, task_.height - y0_ + 2)",
        "smaller(kHaloH, task_.height - y0_ + (PLANTED ? 1 : 2))",
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
        "crp.cuh", "    value = *word_;\n    sync();", "    value = *word_;\n    if (!PLANTED) sync();", "small", RACE
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
        "for (float& sum : sums[i]) sum = 0;\n",
        "for (float& sum : sums[i]) sum = PLANTED ? sum : 0;\n",
        "small_resident",
        WRONG,
    ),
    "sum of products not reset": Fault(
        "crp.cuh",
        "float sums[Product::kCount] = {};",
        "static thread_local float stale[Product::kCount];\n"
        "float fresh[Product::kCount] = {}, (&sums)[Product::kCount] = PLANTED ? stale : fresh;",
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
        "wait_copies<kAhead - 1>()",
        "PLANTED ? wait_copies<kAhead>() : wait_copies<kAhead - 1>()",
        "small",
        f"{WRONG}|{RACE}",
    ),
    "product not waited for": Fault(
        "crp.cuh",
        "    Product::template wait<0>(sums);\n",
        "    if (!PLANTED) Product::template wait<0>(sums);\n",
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
    """A build with all faults, of which none shows as long as none is asked for."""
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
                text = text.replace(fault.text, fault.instead.replace("PLANTED", f"(planted == {number})"))
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
    assert re.search(fault.found, done.stdout + done.stderr)
