"""Runs that differ in seed or setting: in turn, or beside each other in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from mlm.config_files import to_yaml
from mlm.console import say
from mlm.data.processes import check_processes
from mlm.errors import RunError, UserError
from mlm.training.precision import resolve_device
from tasks.reporting.text import read_json

# What a run says of itself that is no score.
NO_SCORES = ("model", "seed", "step", "collapsed")


def jobs_of(settings: Mapping[str, Any], seeds: int) -> list[dict[str, Any]]:
    """The settings of ``seeds`` runs, from `seed` on, each in a folder of `run_dir`."""
    first, run_dir = settings["seed"], Path(settings["run_dir"])
    return [
        {**settings, "seed": seed, "run_dir": str(run_dir / f"seed_{seed}")}
        for seed in range(first, first + seeds)
    ]


def count_workers(settings: Mapping[str, Any], jobs: int) -> int:
    """How many of the jobs run at once: `auto` is one a CUDA device, and in turn without several.

    Raises:
        UserError: less than one, more than the machine bears, or runs beside each other that want
            several devices each.
    """
    asked, devices = settings["parallel_seeds"], str(settings["trainer"]["devices"])
    one_each = devices in ("auto", "1")
    if asked == "auto":
        cuda = resolve_device(settings["trainer"]["accelerator"]) == "cuda"
        return min(jobs, torch.cuda.device_count() if cuda and one_each else 1)
    check_processes("--parallel_seeds", min(jobs, asked), least=1)
    if asked > 1 and not one_each:
        raise UserError(
            "--parallel_seeds: runs beside each other have one device each; leave out "
            "--trainer.devices"
        )
    return min(jobs, asked)


def train_in_processes(jobs: Sequence[Mapping[str, Any]], workers: int) -> list[dict[str, Any]]:
    """Train each job by a `mlm finetune` of its own, ``workers`` at once; their results.

    Args:
        jobs: settings of runs with one seed each.
        workers: each has a CUDA device, where there are some, and else a share of the cores.

    Raises:
        UserError: a job was refused; the others are stopped, and can go on.
        RunError: a job failed.
        SystemExit: 143; a job was stopped by a signal.
    """
    say(f"{len(jobs)} runs, {workers} at once")
    with tempfile.TemporaryDirectory() as drafts:
        pool = _Processes(Path(drafts), workers)
        with ThreadPoolExecutor(workers) as threads:
            try:
                for done in as_completed([threads.submit(pool.run, job) for job in jobs]):
                    done.result()
            except BaseException:  # also a signal to this process
                pool.stop()
                raise
    return [read_json(Path(job["run_dir"]) / "results.json") for job in jobs]


class _Processes:
    """Runs jobs in processes, and can stop them all."""

    def __init__(self, drafts: Path, workers: int) -> None:
        self.drafts, self.workers = drafts, workers
        self.slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(workers):
            self.slots.put(slot)
        self.running: set[subprocess.Popen[str]] = set()
        self.stopped = False

    def run(self, job: Mapping[str, Any]) -> None:
        """Wait for a free slot, and for the job in it."""
        slot = self.slots.get()
        try:
            if not self.stopped:
                self._run(job, slot)
        finally:
            self.slots.put(slot)

    def stop(self) -> None:
        """Ask all to save and end, and begin no other."""
        self.stopped = True
        for process in list(self.running):
            process.send_signal(signal.SIGTERM)

    def _run(self, job: Mapping[str, Any], slot: int) -> None:
        run_dir = Path(job["run_dir"])
        trainer = job["trainer"] | {"devices": 1}
        alone = {**job, "seeds": 1, "search": "none", "trainer": trainer}
        config = self.drafts / f"{slot}.yaml"
        config.write_text(to_yaml(alone), encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-m", "mlm", "finetune", "--config", str(config)],
            env=os.environ | _share(slot, self.workers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C reaches it once, by way of `stop`
        )
        self.running.add(process)
        if self.stopped:  # meanwhile
            process.send_signal(signal.SIGTERM)
        line = ""
        assert process.stderr is not None
        for line in process.stderr:
            say(f"{run_dir.name}: {line.rstrip()}")
        code = process.wait()
        self.running.discard(process)
        if code and not self.stopped:
            raise _failure(code, f"{run_dir}: {line.strip().removeprefix('mlm: ')}")


def _failure(code: int, line: str) -> BaseException:
    if code in (143, -signal.SIGTERM):
        return SystemExit(143)
    return UserError(line) if code == 2 else RunError(line or f"ended with code {code}")


def _share(slot: int, workers: int) -> dict[str, str]:
    """The environment that gives a worker its part of the machine."""
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // workers))}
    if not (count := torch.cuda.device_count()):
        return threads
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return threads | {"CUDA_VISIBLE_DEVICES": visible.split(",")[slot % count]}


def best_of(results: Sequence[Mapping[str, Any]], monitor: str, higher_is_better: bool) -> int:
    """The place of the best result; one that is not a number is never best.

    >>> best_of([{"pearson": float("nan")}, {"pearson": 0.1}, {"pearson": 0.3}], "pearson", True)
    2
    """
    sign = 1.0 if higher_is_better else -1.0
    values = np.array([sign * result[monitor] for result in results])
    return int(np.where(np.isnan(values), -np.inf, values).argmax())


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation, median, and the values themselves.

    >>> spread([1.0, 2.0, 6.0])
    {'mean': 3.0, 'std': 2.6457513110645907, 'median': 2.0, 'values': [1.0, 2.0, 6.0]}
    """
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {
        "mean": float(np.mean(values)),
        "std": std,
        "median": float(np.median(values)),
        "values": list(values),
    }


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of several runs: their seeds, those that collapsed, and each score's `spread`."""
    names = [name for name in results[0] if name not in NO_SCORES]
    return {
        "seeds": [result["seed"] for result in results],
        "collapsed": [result["seed"] for result in results if result["collapsed"]],
        **{name: spread([result[name] for result in results]) for name in names},
    }
