"""What runs in the process that is struck: `mlm`, with every step and every save written down.

A line a step: its number, the loss as `float.hex`, the rows it saw, a checksum of all it was given.
A line before each save, and one after.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlm import cli
from mlm.data.order import stream_row
from mlm.training.base import SumLossModule
from mlm.training.batches import read_row
from mlm.training.checkpoint_io import FolderCheckpointIO
from mlm.training.module import PretrainingModule


def run(argv: list[str], trace: Path, output: Path, fault: dict[str, float]) -> None:
    """`mlm argv` in this process, with its output in a file; ends with its exit code."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    multiprocessing.set_start_method("fork", force=True)  # as in a process that nobody forked
    write_down(trace)
    strike(fault)
    sys.exit(cli.main(argv))


def write_down(trace: Path) -> None:
    """Have steps and saves written to ``trace``, each by one system call."""
    descriptor = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    seen: list[tuple[list[int], int]] = []

    def line(*words: Any) -> None:
        os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())

    training_step = PretrainingModule.training_step

    def observed(module, batch, batch_idx):
        source = module.trainer.train_dataloader.dataset
        micro_batch = module.spent.steps * source.share.accumulation + len(seen)
        places = source.share.places(micro_batch, source.options.batch_size)
        rows = [stream_row(g, source.rows, source.seed)[0] for g in places]
        parts = [
            part
            for row in rows
            for part in read_row(source.split, row, source.options.sequence_length)
        ]
        special = np.isin(batch.input_ids, [source.vocabulary.cls, source.vocabulary.sep])
        assert np.array_equal(np.concatenate(parts), batch.input_ids[~special])
        given = [batch.input_ids, batch.masked_positions, batch.replacements, batch.mask_thresholds]
        seen.append((rows, zlib.crc32(b"".join(t.numpy().tobytes() for t in given))))
        return training_step(module, batch, batch_idx)

    PretrainingModule.training_step = observed
    before_step = SumLossModule.on_before_optimizer_step

    def stepped(module, optimizer):
        before_step(module, optimizer)
        rows = ",".join(str(row) for part, _ in seen for row in part)
        checksums = ",".join(str(checksum) for _, checksum in seen)
        line("step", module.spent.steps, module.step_metrics["train/loss"].hex(), rows, checksums)
        seen.clear()

    SumLossModule.on_before_optimizer_step = stepped
    save = FolderCheckpointIO.save_checkpoint

    def saved(*args, **kwargs):
        line("save")
        save(*args, **kwargs)
        line("saved")

    FolderCheckpointIO.save_checkpoint = saved


MOMENTS: dict[str, tuple[type, str]] = {
    "training": (PretrainingModule, "training_step"),
    "validation": (PretrainingModule, "validation_step"),
    "save": (FolderCheckpointIO, "save_checkpoint"),
}


def strike(fault: dict[str, float]) -> None:
    """Have ``fault`` happen: a moment and how many times it comes before, and an action.

    Without a moment it happens at once.
    """
    fault = dict(fault)
    found = [(name, fault.pop(name)) for name in MOMENTS if name in fault]
    for name, value in fault.items():
        action = ACTIONS[name]
        if not found:
            action(value)
        for moment, number in found:
            at(moment, int(number), lambda action=action, value=value: action(value))


def at(moment: str, number: int, action: Callable[[], None]) -> None:
    """Have ``action`` done at the beginning of the ``number``-th such moment."""
    owner, name = MOMENTS[moment]
    method, calls = getattr(owner, name), []

    def struck(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            action()
        return method(*args, **kwargs)

    setattr(owner, name, struck)


def kill_at_event(number: float) -> None:
    """Killed at that file operation from now on."""
    events = []

    def count() -> None:
        events.append(1)
        if len(events) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    watched = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}

    def audit(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT
        if event in watched or writes:
            count()

    fsync = os.fsync

    def synced(descriptor: int) -> None:
        count()
        fsync(descriptor)
        count()

    sys.addaudithook(audit)
    os.fsync = synced


def kill_in_write(size: float) -> None:
    """Killed by the system when a file grows beyond ``size`` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), hard))


def sleep_in_steps(seconds: float) -> None:
    """Every micro-batch takes longer."""
    step = PretrainingModule.training_step

    def slow(*args, **kwargs):
        found = step(*args, **kwargs)
        time.sleep(seconds)
        return found

    PretrainingModule.training_step = slow


def jump_clock(seconds: float) -> None:
    """The wall clock jumps to and fro, as it may when it is set."""
    wall, calls = time.time, []

    def jumping() -> float:
        calls.append(1)
        return wall() + (seconds if len(calls) % 2 else -seconds)

    time.time = jumping


def strike_workers(number: float) -> None:
    """A signal to the loader's processes."""
    for process in multiprocessing.active_children():
        os.kill(process.pid, int(number))


ACTIONS: dict[str, Callable[[float], None]] = {
    "event": kill_at_event,
    "bytes": kill_in_write,
    "signal": lambda number: os.kill(os.getpid(), int(number)),
    "sleep": sleep_in_steps,
    "workers": strike_workers,
    "jumping_clock": jump_clock,
}


def attempt(argv: list[str], output: Path, memory: int = 4 << 30, steps: int = 20) -> None:
    """`mlm argv` in this process, which asks for a stop after ``steps`` micro-batches.

    It may take ``memory`` bytes more than it has.
    """
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    multiprocessing.set_start_method("fork", force=True)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))
    counted = SumLossModule.training_step
    calls = []

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return counted(*args, **kwargs)

    SumLossModule.training_step = stopping
    sys.exit(cli.main(argv))
