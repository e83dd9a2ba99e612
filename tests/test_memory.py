"""Freed memory stays in the process, and is used again."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlm.cli import main
from mlm.memory import without_small_caches

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


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the switch")
def test_a_training_begins_anew_once_with_its_own_arguments(monkeypatch):
    code = (
        "import os, sys; print(os.getpid(), sys.argv[1:], os.environ.get('GLIBC_TUNABLES'));"
        "sys.stdout.flush(); from mlm.memory import restart_without_small_caches as restart;"
        "restart()"
    )
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", code, "a b", ""], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first.endswith("['a b', ''] None")
    assert second == first.replace("None", "glibc.malloc.tcache_count=0")


def test_the_users_own_tunables_stay():
    own = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=3"}
    assert without_small_caches(own) == own


def megabytes_by_step(store, run_dir, tunables: str) -> list[float]:
    """What a training of 200 steps holds when it says that it has done 20, 40 and so on."""
    words = f"--store {store} --run_dir {run_dir} --budget 200steps --logging.wandb off"
    words += " --data.batch_size 16 --data.validation_batch_size 16"
    words += " --model.size tiny --model.feed_forward mlp --model.intermediate_size 1024"
    words += " --trainer.log_every_n_steps 20 --trainer.accelerator cpu --trainer.precision fp32"
    process = subprocess.Popen(
        [sys.executable, "-m", "mlm", "pretrain", *words.split()],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"GLIBC_TUNABLES": tunables, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    found = []
    for line in process.stderr:
        if re.match(r"step \d*[02468]0 .*tokens/s", line):
            status = Path("/proc", str(process.pid), "status").read_text()
            found.append(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024)
    assert process.wait() == 0
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the switch")
def test_a_training_does_not_grow_with_every_step(tmp_path):
    words = [f"word{n}" for n in range(5000)]
    draw = random.Random(0)
    texts = (" ".join(draw.choices(words, k=126)) for _ in range(2000))
    (tmp_path / "corpus.txt").write_text("\n\n".join(texts))
    store = tmp_path / "store"
    asked = ["--corpus", str(tmp_path / "corpus.txt"), "--output", str(store)]
    assert main(["prepare", *asked, "--vocab_size", "6000"]) == 0
    level = megabytes_by_step(store, tmp_path / "level", "glibc.malloc.arena_test=2")
    growing = megabytes_by_step(store, tmp_path / "growing", "glibc.malloc.tcache_count=7")
    print(level, growing)
    assert len(level) == len(growing) == 10
    # Both grow at first, until the heap has found its size: 10 MB here, and 70 with caches.
    assert growing[-1] - growing[0] > 30  # else this does not show what it is to
    assert level[-1] - level[0] < (growing[-1] - growing[0]) / 2
