"""Many processes prepare one store at once, and some of them are killed."""

import multiprocessing
import os
import random
import signal
import time

import child
import pytest
from harness import FORKED
from sweep import examples

from mlm.data.store import TokenStore


@pytest.fixture
def corpus(tmp_path):
    rng = random.Random(0)
    words = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "e", "ing", "ow", "um")]
    lines = [" ".join(rng.choices(words, k=12)) for _ in range(4000)]
    (tmp_path / "corpus.txt").write_text("\n\n".join(lines) + "\n")
    return tmp_path / "corpus.txt"


@pytest.mark.parametrize("killed", [0, 1, 3])
def test_twenty_build_one_store(killed, corpus, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(FORKED)
    folder, rng = tmp_path / "stores", random.Random(killed)
    words = f"prepare --corpus {corpus} --output {folder}/store --vocab_size 300 --num_processes 1"
    count = examples(6, 20)

    def preparing(name):
        arguments = (words.split(), tmp_path / "trace", tmp_path / f"out_{name}", {})
        return context.Process(target=child.run, args=arguments)

    processes = [preparing(n) for n in range(count)]
    for process in processes:
        process.start()
    struck = rng.sample(processes, killed)
    for process in struck:
        time.sleep(rng.random() * 0.5)
        seen = [p.name for p in folder.glob("[!.]*")] if folder.exists() else []
        assert seen in ([], ["store"])
        if seen:
            TokenStore.open(folder / "store")  # whenever it is there, it is whole
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join(120)
    assert all(p.exitcode == 0 for p in processes if p not in struck)
    said = [(tmp_path / f"out_{n}").read_text() for n in range(count)]
    finished = sum('"status": "prepared"' in text for text in said)
    assert finished == 1 or (killed and finished <= 1)
    TokenStore.open(folder / "store")
    # One killed after all the others had ended leaves its lock, which the next takes away.
    following = preparing("following")
    following.start()
    following.join(120)
    assert following.exitcode == 0
    assert [p.name for p in folder.iterdir()] == ["store"]
