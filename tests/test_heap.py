"""What the process does with freed memory, in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not the C library that this is about")

PAGES = """
import resource, torch
from lwrn_fast import heap
{first}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(6_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
[faults() for _ in range(3)]
print(min(faults() for _ in range(5)))
"""


def faults(first: str, **variables: str) -> int:
    """The least of how many pages have to be mapped to make a map of 24 MB once more; others may find the heap's end
    taken, or the system short of memory."""
    command = [sys.executable, "-c", PAGES.format(first=first)]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def test_freed_memory_is_kept():
    assert faults("assert heap.keep()") < 100


def test_is_given_back_when_asked():
    assert faults("assert heap.keep(); torch.ones = lambda n, ones=torch.ones: (heap.give_back(), ones(n))") > 1000


def test_the_user_may_choose():
    variables = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "100000"}
    assert faults("assert not heap.keep()", **variables) > 1000
