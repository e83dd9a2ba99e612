"""Freed memory stays in the process: page faults of large temporaries, counted by the system."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from mlm.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)

def step():
    a = torch.ones(9 << 20)  # 36 MiB, as are the two below: above glibc's highest own threshold
    return torch.relu(a * 2).sum()

for _ in range(20 if sys.argv[1] == "keep" else 1):  # the heap grows to the size it needs
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, mode],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the switch")
def test_large_temporaries_are_paged_in_once():
    kept, returned = faults("keep"), faults("default")
    # 3 steps of 3 × 36 MiB are 82,944 pages of 4 KiB.
    assert kept < returned / 10
