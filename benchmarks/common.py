"""What the benchmark scripts share: running `mlm`, describing the machine, writing results."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def mlm(*words: Any, log: Path | None = None, threads: int | None = None) -> tuple[str, float]:
    """Run ``mlm`` as a user would; see `python`."""
    return python("-m", "mlm", *words, log=log, threads=threads)


def python(*words: Any, log: Path | None = None, threads: int | None = None) -> tuple[str, float]:
    """Run a Python command, without a network.

    Args:
        words: what follows `python`.
        log: a file that its progress is added to; by default it goes to the terminal.
        threads: how many it may compute with; by default all.

    Returns:
        What it printed to standard output, and the seconds it took.
    """
    begin = time.perf_counter()
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, *map(str, words)]
    with nullcontext() if log is None else log.open("a") as stderr:
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
        )
    return done.stdout, time.perf_counter() - begin


def side_by_side(function: Callable[[Any, int], Any], cases: Sequence[Any], jobs: int) -> list[Any]:
    """``function(case, threads)`` of all cases, ``jobs`` at a time, sharing the cores."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda case: function(case, threads), cases))


def machine() -> str:
    """The processor, its cores, and the GPU where there is one."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores{gpu}"


def record(output: Path, **fields: Any) -> None:
    """Print one result and append it to ``output`` as a line of JSON."""
    packages = ("torch", "pytorch-lightning", "tokenizers", "datasets")
    line = {
        **fields,
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "date": datetime.date.today().isoformat(),
    }
    print(json.dumps(fields), flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
