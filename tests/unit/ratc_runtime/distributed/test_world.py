"""The settings that a process of a run makes for itself."""

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from ratc_runtime.distributed.world import keep_freed_blocks

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(16 << 20)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.ones(16 << 20)
by_default = faults()
keep_freed_blocks()
faults()  # the heap grows once or twice
print(by_default, faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_the_cpu_allocator_reuses_freed_blocks():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    by_default, kept = map(int, done.stdout.split())
    assert by_default > 100  # a page each, or 2 MiB each with huge pages
    assert kept < by_default / 4
