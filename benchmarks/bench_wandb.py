"""What logging to Weights & Biases costs a run: with a server, without one, with one that hangs.

    python benchmarks/bench_wandb.py --store runs/enwiki/store --work runs/wandb

Pretrains the `mini_cpu` model for some steps, with a row at every one of them, ten times as many as
by default, against servers on this machine. What counts is the time that the thread which trains
spends in calls of the logger, beside the time that its steps take: it can be told apart to a
millionth even where the machine is busy, which the times of whole runs cannot.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common import RESULTS, python, record

from mlm.training.metrics_csv import read_metrics

# In the process that trains: sums the seconds of the logger's calls, and of all steps.
CHILD = """
import json, sys, threading, time
from mlm.cli import main
from mlm.training.wandb_run import WandbRun

spent = {"calls": 0, "logger": 0.0}
def timed(method):
    def call(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent["logger"] += time.perf_counter() - begin
            spent["calls"] += 1
    return call
for name in ("log_metrics", "log_table", "log_hyperparams"):
    setattr(WandbRun, name, timed(getattr(WandbRun, name)))
code = main(sys.argv[1:])
print(json.dumps(spent))
sys.exit(code)
"""


@contextmanager
def refusing() -> Iterator[str]:
    """An address where nothing listens."""
    yield "http://127.0.0.1:9"


@contextmanager
def silent() -> Iterator[str]:
    """A server that takes calls and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def falling_silent(requests: int = 4) -> Iterator[str]:
    """A server that answers a few requests, and then hangs."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "training"))
    from wandb_stub import serve

    with serve(hangs_after=requests) as server:
        yield server.url


SERVERS: dict[str, Callable] = {
    "nothing listens": refusing,
    "never answers": silent,
    "hangs after four requests": falling_silent,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/wandb"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--output", type=Path, default=RESULTS / "wandb.jsonl")
    args = parser.parse_args()
    for case, server in SERVERS.items():
        run_dir = args.work / case.replace(" ", "_")
        words = ["pretrain", "--config", "mini_cpu", "--store", args.store, "--run_dir", run_dir]
        words += ["--budget", f"{args.steps}steps", "--trainer.log_every_n_steps", 1]
        with server() as url:
            os.environ |= {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40}
            done = python("-c", CHILD, *words, "--logging.wandb", "online")
        spent = json.loads(done.printed.splitlines()[-1])
        times = read_metrics(run_dir / "metrics.csv")["seconds"]
        seconds = max(time for time in times if time is not None)
        record(
            args.output,
            benchmark="wandb",
            case=f"{case}, {args.steps} steps, a row each",
            ours=100 * spent["logger"] / seconds,
            unit="% of the time of training",
            calls=spent["calls"],
            step_seconds=seconds,
            run_seconds=done.seconds,
        )


if __name__ == "__main__":
    main()
