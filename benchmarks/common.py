"""What the benchmark scripts share: running `mlm`, describing the machine, writing results."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def mlm(*words: str | Path) -> tuple[str, float]:
    """Run ``mlm`` as a user would, progress on the terminal.

    Returns:
        What it printed to standard output, and the seconds it took.
    """
    begin = time.perf_counter()
    command = [sys.executable, "-m", "mlm", *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout, time.perf_counter() - begin


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
