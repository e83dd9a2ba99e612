"""Runs that are killed go on as if nothing had been, to the last bit."""

import random
import signal
from pathlib import Path

import pytest
import torch
from harness import FineTuningRun, Run, strike_at_random
from sweep import FULL, examples

from mlm.checkpoint import read_folder
from mlm.files import _host
from mlm.training.checkpoint_io import latest_checkpoint

STEPS = 12
KINDS = {
    "plain": f"--budget {STEPS}steps",
    "workers": f"--budget {STEPS}steps --data.num_workers 2",
    "validation": f"--budget {STEPS}steps --trainer.val_check_interval 3",
    "tokens": "--budget 2700tokens --data.num_workers 2 --trainer.val_check_interval 3",
    "cooldown": f"--budget {STEPS}steps --optimizer.schedule wsd",  # after step 8
}


@pytest.fixture(scope="session")
def whole(rows, tmp_path_factory):
    """A function to the run of a kind that was never struck."""
    runs = {}

    def find(kind: str) -> Run:
        if kind not in runs:
            runs[kind] = Run(rows, tmp_path_factory.mktemp(kind), KINDS[kind])
            ended = runs[kind].finish()
            assert ended.code == 0, ended.output
        return runs[kind]

    return find


def assert_alike(run: Run, other: Run) -> None:
    """Both saw the same, learned the same, and left the same."""
    assert run.steps() == other.steps()
    assert list(run.steps()) == list(range(1, len(other.steps()) + 1)) or FULL
    assert run.curve() == other.curve()
    a, b = (read_folder(each.run_dir / "model").state for each in (run, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert run.litter() == []


def assert_goes_on(run: Run, other: Run) -> None:
    """Once more, to the end."""
    ended = run.finish()
    assert ended.code == 0, ended.output
    assert_alike(run, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_at_random_goes_on_bit_by_bit(kind, rows, whole, tmp_path, record_property):
    rng = random.Random(kind)
    reference, hits, inside, wanted = whole(kind), 0, 0, examples(2, 25)
    last = len(reference.steps())
    for number in range(wanted * 3):
        if hits >= wanted:
            break
        run = Run(rows, tmp_path / str(number), KINDS[kind])
        found = strike_at_random(run, kills=2, last_step=last, rng=rng)
        hits, inside = hits + found[0], inside + found[1]
        assert_goes_on(run, reference)
    assert hits >= wanted
    record_property("kills", hits)
    record_property("inside a save", inside)
    print(f"{kind}: {hits} kills, {inside} of them in a save")


@pytest.mark.parametrize(
    ("moment", "number"), [("validation", 1), ("training", 6), ("training", 24)]
)
def test_a_signal_loses_no_step_and_no_validation(moment, number, rows, whole, tmp_path):
    """It comes within a validation, in the step before one, and in the last."""
    run = Run(rows, tmp_path, KINDS["validation"])
    assert run.finish(run.start(signal=signal.SIGTERM, **{moment: number})).code == 143
    assert_goes_on(run, whole("validation"))


@pytest.mark.parametrize(
    "fault",
    [
        {"training": 16, "signal": signal.SIGTERM},  # in the last step before
        {"save": 5, "event": 1},  # after the ordinary save, at the one that stays
    ],
    ids=["stopped", "killed"],
)
def test_a_run_that_ends_where_its_cooldown_begins_keeps_what_is_before(
    fault, rows, whole, tmp_path
):
    run = Run(rows, tmp_path, KINDS["cooldown"])
    ended, stable = run.finish(run.start(**fault)), run.run_dir / "before_cooldown"
    assert ended.code in (143, -signal.SIGKILL), ended.output
    assert latest_checkpoint(run.run_dir / "checkpoints").name == "step_00000008"
    assert latest_checkpoint(stable) is None
    assert_goes_on(run, whole("cooldown"))
    assert [path.name for path in stable.iterdir()] == ["step_00000008"]


@pytest.mark.parametrize(("every", "micro_batch"), [("null", 21), ("3", 18)])
def test_a_run_killed_in_its_cooldown_goes_on_from_before_it(
    every, micro_batch, rows, whole, tmp_path
):
    """Where it has saved nothing else, or nothing so late."""
    run = Run(rows, tmp_path, f"{KINDS['cooldown']} --checkpoint.every_n_steps {every}")
    process = run.start(training=micro_batch, signal=signal.SIGKILL)
    assert run.finish(process).code == -signal.SIGKILL
    stable = run.run_dir / "before_cooldown"
    (stable / f".step_00000009.gone-{_host()}-{process.pid}-00000000").mkdir()
    assert_goes_on(run, whole("cooldown"))
    assert f"going on from {stable / 'step_00000008'}" in run.output.read_text()
    assert [path.name for path in stable.iterdir()] == ["step_00000008"]


@pytest.mark.slow
def test_a_save_may_be_killed_at_any_of_its_file_operations(rows, whole, tmp_path):
    reference, event, killed = whole("plain"), 0, 0
    step = examples(13, 1)
    while True:
        event += step
        run = Run(rows, tmp_path / str(event), KINDS["plain"])
        # From the fourth save on, when two checkpoints are there and one has to go.
        process = run.start(save=4, event=event)
        if run.finish(process).code == 0:
            break
        killed += 1
        found = latest_checkpoint(run.run_dir / "checkpoints")
        assert found is not None
        assert found.name >= "step_00000006"
        assert_goes_on(run, reference)
    assert killed >= 3
    print(f"killed at {killed} of {event} file operations")


def test_a_save_may_be_killed_in_the_middle_of_a_write(rows, whole, tmp_path):
    reference, rng = whole("plain"), random.Random(0)
    sizes = [
        path.stat().st_size
        for path in (reference.run_dir / "checkpoints" / "step_00000012").rglob("*")
    ]
    for number in range(examples(2, 20)):
        run = Run(rows, tmp_path / str(number), KINDS["plain"])
        ended = run.finish(run.start(save=3, bytes=rng.randrange(1, max(sizes))))
        assert ended.code < 0, ended.output
        assert run.died_inside_a_save()
        assert latest_checkpoint(run.run_dir / "checkpoints").name == "step_00000004"
        assert_goes_on(run, reference)


def test_a_budget_of_time_repeats_what_its_clock_had_said(rows, tmp_path):
    rng = random.Random(0)
    for number in range(examples(1, 10)):
        run = Run(rows, tmp_path / str(number), "--budget 4s")
        hits, _ = strike_at_random(run, kills=2, last_step=30, rng=rng)
        assert hits
        ended = run.finish()
        assert ended.code == 0, ended.output
        steps = run.steps()  # those taken twice were the same twice
        assert list(steps) == list(range(1, len(steps) + 1))
        assert len(run.lines()) > len(steps)
        assert not (run.run_dir / "clock.txt").exists()
        assert run.litter() == []


def reviews(path: Path, count: int, seed: int) -> Path:
    """A table in which one word gives the label away."""
    rng = random.Random(seed)
    lines = ["text,label"]
    for number in range(count):
        filler, label = rng.choices(["cat", "dog", "bird"], k=rng.randint(1, 9)), number % 2
        lines.append(f"{' '.join(filler)} {('red', 'blue')[label]},{('no', 'yes')[label]}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_fine_tuning_killed_at_random_goes_on_bit_by_bit(made, tmp_path):
    """With validations whose best state is kept; three epochs of eight steps."""
    train, validation = (reviews(tmp_path / f"{n}.csv", n, n) for n in (64, 20))
    words = f"--train {train} --validation {validation} --trainer.max_epochs 3"
    words += " --trainer.val_check_interval 3"
    whole, rng = FineTuningRun(made, tmp_path / "whole", words), random.Random(0)
    ended = whole.finish()
    assert ended.code == 0, ended.output
    hits, wanted = 0, examples(2, 25)
    for number in range(wanted * 3):
        if hits >= wanted:
            break
        run = FineTuningRun(made, tmp_path / str(number), words)
        hits += strike_at_random(run, kills=2, last_step=24, rng=rng)[0]
        assert_goes_on(run, whole)
    assert hits >= wanted
    print(f"fine-tuning: {hits} kills")
