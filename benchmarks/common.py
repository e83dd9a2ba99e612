"""What the benchmark scripts share: running `mlm`, describing the machine, writing results."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"


class Run(NamedTuple):
    """A command that has ended well."""

    printed: str
    """What it wrote to standard output."""
    seconds: float
    """From start to end."""
    peak: int
    """Bytes of memory it held at most, what it shares with others included."""


def mlm(*words: Any, log: Path | None = None, threads: int | None = None) -> Run:
    """Run ``mlm`` as a user would; see `python`."""
    return python("-m", "mlm", *words, log=log, threads=threads)


def python(*words: Any, log: Path | None = None, threads: int | None = None) -> Run:
    """Run a Python command, without a network.

    Args:
        words: what follows `python`.
        log: a file that its progress is added to; by default it goes to the terminal.
        threads: how many it may compute with; by default all.

    Raises:
        SystemExit: it did not end well.
    """
    begin = time.perf_counter()
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, *map(str, words)]
    with (
        nullcontext() if log is None else log.open("a") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
        ) as process,
    ):
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"ended with {process.returncode}: {shlex.join(command)}")
    return Run(printed, time.perf_counter() - begin, usage.ru_maxrss * 1024)


def side_by_side(function: Callable[[Any, int], Any], cases: Sequence[Any], jobs: int) -> list[Any]:
    """``function(case, threads)`` of all cases, ``jobs`` at a time, sharing the cores."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda case: function(case, threads), cases))


def in_turns(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, ``rounds`` times one after another."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times as long they take, pair by pair, the median."""
    return statistics.median(t / o for o, t in zip(ours, theirs, strict=True))


def draw_rows(table: Path, counts: dict[Path, int]) -> None:
    """Write disjoint random rows of ``table``, as many as are named, to each file."""
    import numpy as np
    import pyarrow.parquet as pq

    rows = pq.read_table(table)
    order = np.random.default_rng(0).permutation(len(rows))
    for path, count in counts.items():
        pq.write_table(rows.take(order[:count]), path)
        order = order[count:]


def machine() -> str:
    """The processor, its cores, and the GPU where there is one."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores{gpu}"


def versions() -> dict[str, str]:
    """Of Python, and of the packages that are installed here and can change a figure."""
    found = {"python": platform.python_version()}
    for package in ("torch", "pytorch-lightning", "transformers", "tokenizers", "datasets"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def record(output: Path, **fields: Any) -> None:
    """Print one result and append it to ``output`` as a line of JSON."""
    line = {
        **fields,
        "machine": machine(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
    }
    print(json.dumps(fields), flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
