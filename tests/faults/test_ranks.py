"""Two processes that train together: one is told to stop, is killed, freezes, or is not there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import MODEL, RUN, Run

from mlm.training.metrics_csv import read_metrics

# One process of a run: `mlm` as the command line has it, with its number in a file.
SCRIPT = """
import os, sys, pathlib
place = pathlib.Path(os.environ["TEST_PLACE"])
rank = os.environ.get("LOCAL_RANK", "0")
(place / f"pid_{rank}").write_text(str(os.getpid()))
sys.path.insert(0, os.environ["TEST_FAULTS"])
import child
child.write_down(place / f"trace_{rank}.txt")
if rank == "0":
    child.sleep_in_steps(0.05)
from mlm import cli
sys.exit(cli.main(sys.argv[1:]))
"""
TWO = "--trainer.devices 2 --trainer.strategy ddp --trainer.accumulate_grad_batches 1"

pytestmark = pytest.mark.slow


class Pair(Run):
    """A run of two processes."""

    def __init__(self, rows: Path, directory: Path, words: str) -> None:
        super().__init__(rows, directory, f"{words} {TWO}")
        self.script = directory / "two.py"
        self.script.write_text(SCRIPT)

    def begin(self) -> subprocess.Popen[str]:
        # By the environment, as a rank is started again with the words of the first.
        places = {"TEST_PLACE": str(self.directory), "TEST_FAULTS": str(Path(__file__).parent)}
        command = [sys.executable, str(self.script), *self.argv]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | places)

    def pid(self, rank: int) -> int:
        return int((self.directory / f"pid_{rank}").read_text())

    def wait_for_step(self, step: int) -> None:
        trace = self.directory / "trace_1.txt"
        until = time.monotonic() + 90
        while time.monotonic() < until:
            if trace.exists() and f"step {step} " in trace.read_text():
                return
            time.sleep(0.01)
        raise AssertionError("never came so far")

    def finish_alone(self) -> int:
        """Go on with one process, to see that it can; its exit code."""
        at = self.argv.index("--store")
        line = f"pretrain --run_dir {self.run_dir} --resume auto {MODEL} {RUN} --budget 12steps"
        command = [sys.executable, "-m", "mlm", *line.split(), *self.argv[at : at + 2]]
        return subprocess.run(command, capture_output=True, timeout=120).returncode

    def steps_of(self, rank: int) -> list[str]:
        lines = (self.directory / f"trace_{rank}.txt").read_text().splitlines()
        return [line.split()[1] for line in lines if line.startswith("step")]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_both_at_the_same_step(rank, rows, tmp_path):
    pair = Pair(rows, tmp_path / "pair", "--budget 2000steps --checkpoint.every_n_steps 1000")
    process = pair.begin()
    pair.wait_for_step(3)
    os.kill(pair.pid(rank), signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert pair.steps_of(0) == pair.steps_of(1)
    saved = [p.name for p in (pair.run_dir / "checkpoints").iterdir()]
    assert saved == [f"step_{int(pair.steps_of(0)[-1]):08d}"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("rank", [0, 1])
def test_the_other_rank_ends_in_time_and_says_where_it_waited(rank, number, rows, tmp_path):
    pair = Pair(rows, tmp_path / "pair", "--budget 5000steps --stall_timeout 5")
    process = pair.begin()
    pair.wait_for_step(3)
    survivor = pair.pid(1 - rank)
    struck = pair.pid(rank)
    os.kill(struck, number)
    begin = time.monotonic()
    while alive(survivor) and time.monotonic() - begin < 60:
        time.sleep(0.05)
    took = time.monotonic() - begin
    if alive(struck):
        os.kill(struck, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert took < 30, errors
    assert process.returncode != 0
    if number == signal.SIGSTOP:
        assert "nothing has moved for 5 s (--stall_timeout)" in errors
        assert "most recent call first" in errors
    assert "Traceback" not in errors
    assert pair.finish_alone() == 0


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def losses(run_dir: Path) -> list[float]:
    found = read_metrics(run_dir / "metrics.csv")["train/loss"]
    return [value for value in found if value is not None]


def rows_of(*traces: Path) -> dict[int, list[int]]:
    """The rows of each step, of all ranks together."""
    found: dict[int, list[int]] = {}
    for trace in traces:
        for line in trace.read_text().splitlines():
            if line.startswith("step"):
                _, step, _, rows, _ = line.split(" ")
                found.setdefault(int(step), []).extend(map(int, rows.split(",")))
    return {step: sorted(rows) for step, rows in found.items()}


@pytest.mark.parametrize("first", [1, 2])
def test_a_run_may_go_on_with_another_number_of_ranks(first, rows, tmp_path):
    still = "--model.hidden_dropout 0 --model.attention_dropout 0 --optimizer.name adamw"
    whole = Run(rows, tmp_path / "whole", f"--budget 8steps {still}")
    assert whole.finish().code == 0
    pair = Pair(rows, tmp_path / "pair", f"--budget 8steps {still}")
    single = Run(rows, tmp_path / "pair", f"--budget 8steps {still}")

    def run_two() -> None:
        process = pair.begin()
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors

    def run_one() -> None:
        assert single.finish().code == 0

    begin, go_on = (run_one, run_two) if first == 1 else (run_two, run_one)
    begin()
    for late in ("step_00000006", "step_00000008"):  # as if it had been killed after step 5
        place = pair.run_dir / "checkpoints" / late
        place.rename(tmp_path / late)
    (pair.run_dir / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "step_00000006").rename(pair.run_dir / "checkpoints" / "step_00000006")
    go_on()
    assert losses(pair.run_dir) == pytest.approx(losses(whole.run_dir), abs=1e-4)
    expected = rows_of(whole.trace)
    alone = rows_of(pair.trace)
    together = rows_of(*(pair.directory / f"trace_{rank}.txt" for rank in (0, 1)))
    assert {step: expected[step] for step in alone} == alone
    assert {step: expected[step] for step in together} == together
    assert set(alone) | set(together) == set(range(1, 9))
