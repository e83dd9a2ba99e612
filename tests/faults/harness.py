"""Runs that are struck, and what is left of them.

Processes are forked from one that has everything imported, so that a hundred of them take minutes.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import child

from mlm.training.metrics_csv import read_metrics

# Dropout, masks and order drawn anew at each step, two micro-batches, a checkpoint every other one.
MODEL = (
    "--model.size tiny --model.num_hidden_layers 1 --model.hidden_size 32 "
    "--model.num_attention_heads 2 --model.hidden_dropout 0.1 --model.attention_dropout 0.1"
)
RUN = (
    "--data.batch_size 8 --data.sequence_length 32 --trainer.accumulate_grad_batches 2 "
    "--trainer.accelerator cpu --trainer.precision fp32 --trainer.log_every_n_steps 1 "
    "--checkpoint.every_n_steps 2 --checkpoint.keep 2 --logging.wandb off"
)

FINE_TUNING = (
    "--data.batch_size 8 --trainer.accelerator cpu --trainer.precision fp32 "
    "--trainer.log_every_n_steps 1 --checkpoint.every_n_steps 2 --checkpoint.keep 2 "
    "--logging.wandb off --model.hidden_dropout 0.1 --report false"
)

# What is imported before processes are forked.
FORKED = ["child", "mlm.training.pretraining", "mlm.commands.prepare", "mlm.data.prepare"]
FORKED += ["tasks.finetuning"]


class Step(NamedTuple):
    """What a step was."""

    loss: str
    """`float.hex` of it."""
    rows: str
    checksums: str
    """Of all that the model was given."""


@dataclass
class Ended:
    """A process that has ended."""

    code: int
    """As `Process.exitcode`: negative for the signal that killed it."""
    output: str
    """What it printed."""


class Run:
    """A run directory, and the processes that go on in it one after another."""

    def __init__(self, store: Path, directory: Path, words: str = "--budget 12steps") -> None:
        self.directory, self.run_dir = directory, directory / "run"
        self.trace, self.output = directory / "trace.txt", directory / "output.txt"
        directory.mkdir(parents=True, exist_ok=True)
        line = f"--run_dir {self.run_dir} --resume auto"
        self.argv = f"pretrain --store {store} {line} {MODEL} {RUN} {words}".split()

    def start(self, **fault: float) -> BaseProcess:
        """A process that trains until it ends or is struck; see `child.strike`."""
        self.output.write_text("")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(FORKED)
        arguments = (self.argv, self.trace, self.output, fault)
        process = context.Process(target=child.run, args=arguments)
        process.start()
        return process

    def finish(self, process: BaseProcess | None = None, seconds: float = 120) -> Ended:
        """Wait for the end of it."""
        process = process or self.start()
        process.join(seconds)
        assert process.exitcode is not None, f"hangs: {self.output.read_text()}"
        return Ended(process.exitcode, self.output.read_text())

    def kill(self, process: BaseProcess, number: int = signal.SIGKILL) -> bool:
        """Send a signal; whether it was still there to be struck."""
        alive = process.is_alive()
        if alive:
            assert process.pid is not None
            os.kill(process.pid, number)
        return alive

    def lines(self) -> list[list[str]]:
        """What was written down so far."""
        text = self.trace.read_text() if self.trace.exists() else ""
        return [line.split(" ") for line in text.splitlines()]

    def wait_for(self, step: int, process: BaseProcess) -> None:
        """Until ``step`` is done, or the process has ended."""
        while process.is_alive() and not any(w[:2] == ["step", str(step)] for w in self.lines()):
            time.sleep(0.001)

    def died_inside_a_save(self) -> bool:
        """Whether the last thing it wrote down is that it had begun to save."""
        lines = self.lines()
        return bool(lines) and lines[-1] == ["save"]

    def steps(self) -> dict[int, Step]:
        """Every step, which however often it was taken was the same."""
        found: dict[int, Step] = {}
        for words in self.lines():
            if words[0] == "step":
                step = Step(*words[2:])
                assert found.setdefault(int(words[1]), step) == step, f"step {words[1]} differs"
        return found

    def curve(self) -> dict[str, list[int | float | None]]:
        """`metrics.csv` without what a clock says."""
        timed = ("tokens_per_second", "mfu", "data_wait", "seconds")
        rows = read_metrics(self.run_dir / "metrics.csv")
        return {name: values for name, values in rows.items() if name not in timed}

    def litter(self) -> list[str]:
        """Names in the run's folders that no run should leave."""
        return [str(p) for p in self.run_dir.rglob(".*")]


class FineTuningRun(Run):
    """The same of `mlm finetune`, whose rows are known by the losses only."""

    def __init__(self, made: Path, directory: Path, words: str) -> None:
        super().__init__(made, directory)
        line = f"finetune --model {made}/run/model --run_dir {self.run_dir} --resume auto"
        self.argv = f"{line} {FINE_TUNING} {words}".split()


def strike_at_random(run: Run, kills: int, last_step: int, rng: random.Random) -> tuple[int, int]:
    """Kill ``run`` at ``kills`` random moments; how many hit, and how many of them a save."""
    hits = inside = 0
    for _ in range(kills):
        process = run.start()
        run.wait_for(rng.randrange(1, last_step), process)
        time.sleep(rng.random() * 0.03)
        if run.kill(process):
            process.join()
            hits += process.exitcode == -signal.SIGKILL
            inside += run.died_inside_a_save()
        process.join()
    return hits, inside
