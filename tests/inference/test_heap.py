"""The heap's settings, in processes of their own: freed memory stays or goes back."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not the C library that this is about")

PAGES = """
import ctypes, resource, torch
from lwrn_fast import heap
{first}
end_of_heap = ctypes.CDLL(None).sbrk
end_of_heap.restype, end_of_heap.argtypes = ctypes.c_size_t, [ctypes.c_ssize_t]
def once():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [torch.ones(6_000_000) for _ in range(4)]
    faults, end = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, end_of_heap(0)
    within = all(map.data_ptr() < end for map in maps)
    del maps
    return faults, within and end_of_heap(0) == end
[once() for _ in range(3)]
faults, kept = zip(*(once() for _ in range(5)))
print(min(faults), sum(kept))
"""


def maps(first: str, **variables: str) -> tuple[int, int]:
    """Four maps of 24 MB, five times: the least of how many pages had to be mapped for them, for the system may have
    taken pages back in between; and how often they lay in the heap and left it as long as it was."""
    command = [sys.executable, "-c", PAGES.format(first=first)]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    faults, kept = done.stdout.split()[-2:]
    return int(faults), int(kept)


def test_freed_memory_is_kept():
    faults, kept = maps("assert heap.keep()")
    assert faults < 100
    assert kept == 5


def test_is_given_back_when_asked():
    faults, _ = maps("assert heap.keep(); torch.ones = lambda n, ones=torch.ones: (heap.give_back(), ones(n))[1]")
    assert faults > 1000


def test_the_user_may_choose():
    variables = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "100000"}
    faults, kept = maps("assert not heap.keep()", **variables)
    assert faults > 1000
    assert kept == 0
