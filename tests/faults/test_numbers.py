"""Losses and gradients that go wrong, and memory that is too small."""

import random
import threading
import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from harness import MODEL, RUN

from mlm import cli
from mlm.checkpoint import read_folder
from mlm.training.base import SumLossModule
from mlm.training.metrics_csv import read_metrics
from mlm.training.module import PretrainingModule
from mlm.training.spikes import SpikeDetector, WatchSpikes


@pytest.fixture
def pretrain(rows, tmp_path, capsys):
    """A function of words to the exit code and the lines on stderr."""

    def run(words: str) -> tuple[int, list[str]]:
        line = f"pretrain --store {rows} --run_dir {tmp_path / 'run'} {MODEL} {RUN} {words}"
        code = cli.main(line.split())
        return code, capsys.readouterr().err.splitlines()

    return run


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def spoil(monkeypatch, when, change) -> None:
    """Have the losses of the steps that ``when`` holds for changed."""
    sums = PretrainingModule.sums

    def spoilt(module, batch):
        found = sums(module, batch)
        if when(module.spent.steps + 1):
            return found._replace(loss=change(found.loss))
        return found

    monkeypatch.setattr(PretrainingModule, "sums", spoilt)


class Poison(torch.autograd.Function):
    """The identity, whose gradient is not a number."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


BAD = {
    "nan loss": lambda loss: loss * torch.nan,
    "infinite loss": lambda loss: loss + torch.inf,
    "nan gradient": Poison.apply,
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_a_run_stops_before_a_step_that_is_not_finite(change, pretrain, tmp_path, monkeypatch):
    spoil(monkeypatch, lambda step: step == 5, change)
    code, lines = pretrain("--budget 8steps")
    assert code == 1
    assert "step 5: not finite" in lines[-1]
    assert "--on_nonfinite skip" in lines[-1]
    assert names(tmp_path / "run" / "checkpoints") == ["step_00000002", "step_00000004"]
    assert not (tmp_path / "run" / "model").exists()
    monkeypatch.undo()
    assert pretrain("--budget 8steps --resume auto")[0] == 0


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_such_a_step_can_be_left_out(change, optimizer, pretrain, tmp_path, monkeypatch):
    spoil(monkeypatch, lambda step: step in (2, 5), change)
    words = f"--budget 8steps --on_nonfinite skip --optimizer.name {optimizer}"
    code, lines = pretrain(words)
    assert code == 0
    assert sum("left out" in line for line in lines) == 2
    steps = read_metrics(tmp_path / "run" / "metrics.csv")
    assert steps["step"][-2:] == [8, 8]
    assert all(value < 10 for value in steps["val/loss"] if value is not None)


def test_the_module_where_a_number_stopped_being_finite_is_named(pretrain, monkeypatch):
    from mlm.model.feed_forward import GLU

    forward = GLU.forward
    calls = []

    def spoilt(module, hidden):
        calls.append(1)
        made = forward(module, hidden)
        return made / 0 if len(calls) > 6 else made

    monkeypatch.setattr(GLU, "forward", spoilt)
    code, lines = pretrain("--budget 8steps --detect_anomaly true")
    assert code == 1
    assert lines[-1].endswith("the output of encoder.layers.0.feed_forward is not finite")
    assert "step 4" in lines[-1]  # two micro-batches a step


def test_the_module_whose_gradient_is_not_finite_is_named(pretrain, monkeypatch):
    from mlm.model.feed_forward import GLU

    forward = GLU.forward
    monkeypatch.setattr(GLU, "forward", lambda module, x: Poison.apply(forward(module, x)))
    code, lines = pretrain("--budget 8steps --detect_anomaly true")
    assert code == 1
    assert "the gradient of the output of encoder.layers.0" in lines[-1]


def test_a_spike_stands_out_from_noise_and_decline():
    draw = torch.Generator().manual_seed(0)
    noise = (0.1 * torch.randn(3000, generator=draw)).tolist()
    detector = SpikeDetector()
    losses = [4 + 5 * 0.99**step + noise[step] for step in range(3000)]
    assert not any(map(detector.sees_spike, losses))
    assert all(map(detector.sees_spike, [5.5, 6.0, 9.0]))
    assert not detector.sees_spike(4.0)
    assert not any(map(detector.sees_spike, [float("nan"), float("inf")]))  # another guard's
    assert detector.sees_spike(5.5)


@pytest.mark.parametrize("policy", ["record", "rollback"])
def test_a_spike_is_recorded_and_can_be_undone(policy, pretrain, tmp_path, monkeypatch):
    spoil(monkeypatch, lambda step: 61 <= step <= 65, lambda loss: loss * 3)
    words = f"--budget 65steps --checkpoint.every_n_steps 10 --on_spike {policy}"
    code, lines = pretrain(words)
    assert code == 0
    said = [line for line in lines if "the loss rose to" in line]
    assert len(said) == 5
    assert all(("went back to" in line) == (policy == "rollback") for line in said)
    metrics = read_metrics(tmp_path / "run" / "metrics.csv")
    found = [s for s, v in zip(metrics["step"], metrics["spike"], strict=True) if v is not None]
    assert found == [61, 62, 63, 64, 65]
    at_60, at_the_end = (
        read_folder(tmp_path / "run" / place).state
        for place in ("checkpoints/step_00000060/model", "model")
    )
    same = all(torch.equal(at_60[name], at_the_end[name]) for name in at_60)
    assert same == (policy == "rollback")


def test_memory_that_is_too_small_says_what_to_change(pretrain, monkeypatch):
    def sums(module, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(PretrainingModule, "sums", sums)
    code, lines = pretrain("--budget 8steps")
    assert code == 1
    assert "--trainer.accumulate_grad_batches" in lines[-1]
    assert "--activation_checkpointing" in lines[-1]


def test_rows_at_once_are_halved_until_they_fit(pretrain, tmp_path, monkeypatch):
    # Dropout is drawn anew for each micro-batch.
    words = "--budget 6steps --optimizer.name adamw"
    words += " --model.hidden_dropout 0 --model.attention_dropout 0"
    assert pretrain(f"{words} --run_dir {tmp_path / 'whole'}")[0] == 0
    sums, sizes = PretrainingModule.sums, []

    def small(module, batch):
        rows = module.data.batch_size // module.trainer.accumulate_grad_batches
        sizes.append(rows)
        if rows > 2 and module.spent.steps >= 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return sums(module, batch)

    monkeypatch.setattr(PretrainingModule, "sums", small)
    code, lines = pretrain(f"{words} --on_oom split")
    assert code == 0
    assert any("accumulate_grad_batches 4" in line for line in lines)
    assert sizes[-1] == 2
    losses = [
        [v for v in read_metrics(tmp_path / run / "metrics.csv")["train/loss"] if v is not None]
        for run in ("whole", "run")
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def let_two_rows_fit(monkeypatch, since: int = 0) -> None:
    """Memory is too small for more rows at once, from step ``since`` on."""
    sums = PretrainingModule.sums

    def small(module, batch):
        if module.trainer.accumulate_grad_batches < 4 and module.spent.steps >= since:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return sums(module, batch)

    monkeypatch.setattr(PretrainingModule, "sums", small)


def test_halving_goes_on_from_where_a_run_was_told_to(pretrain, tmp_path, monkeypatch):
    assert pretrain("--budget 4steps --checkpoint.every_n_steps 2")[0] == 0
    start = tmp_path / "run" / "checkpoints" / "step_00000002"
    let_two_rows_fit(monkeypatch)
    words = f"--budget 6steps --resume {start} --run_dir {tmp_path / 'on'} --on_oom split"
    assert pretrain(words)[0] == 0
    steps = read_metrics(tmp_path / "on" / "metrics.csv")["step"]
    assert min(steps) == 3


def test_halving_does_not_go_back_behind_where_a_run_was_told_to_begin(
    pretrain, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    assert pretrain("--budget 4steps --checkpoint.every_n_steps 2")[0] == 0
    start = (run / "checkpoints" / "step_00000004").rename(run / "step_00000004")
    let_two_rows_fit(monkeypatch)
    code, lines = pretrain(f"--budget 6steps --resume {start} --on_oom split")
    assert code == 0
    assert not any("going on from" in line for line in lines)  # step 2


def test_halving_in_a_cooldown_goes_on_from_before_it(pretrain, tmp_path, monkeypatch):
    let_two_rows_fit(monkeypatch, since=5)
    words = "--budget 6steps --optimizer.schedule wsd --checkpoint.every_n_steps null"
    code, lines = pretrain(f"{words} --on_oom split")
    assert code == 0
    stable = tmp_path / "run" / "before_cooldown" / "step_00000004"
    assert any(f"going on from {stable}" in line for line in lines)
    assert stable.is_dir()


def test_steps_of_two_kinds_are_each_compared_with_their_own():
    watch = WatchSpikes(None, lambda path: {})
    logged = []
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.append(step))
    trainer = SimpleNamespace(loggers=[logger], is_global_zero=False)
    module = Mock(spec=SumLossModule)
    rng = random.Random(0)
    for step in range(1, 2001):
        kind = "causal" if step % 16 == 0 else ""
        loss = (5.0 if kind else 3.0) + rng.gauss(0, 0.03) + (4.0 if step == 1601 else 0.0)
        module.spent, module.kind_of_step = SimpleNamespace(steps=step), kind
        module.step_metrics = {"train/loss": loss}
        watch.on_train_batch_end(trainer, module)
    assert logged == [1601]
    again = WatchSpikes(None, lambda path: {})
    again.load_state_dict(watch.state_dict())
    assert again.state_dict() == watch.state_dict()
    assert set(again.state_dict()) == {"", "causal"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_failed_is_not_watched_any_more(workers, pretrain, monkeypatch):
    def sums(module, batch):
        if module.spent.steps == 3:
            raise MemoryError
        return found(module, batch)

    found = PretrainingModule.sums
    monkeypatch.setattr(PretrainingModule, "sums", sums)
    words = f"--budget 8steps --data.num_workers {workers} --stall_timeout 1"
    assert pretrain(words)[0] == 1
    time.sleep(0.1)
    assert "end-stalled" not in [thread.name for thread in threading.enumerate()]


def test_no_fewer_rows_than_one_are_tried(pretrain, monkeypatch):
    def sums(module, batch):
        raise MemoryError

    monkeypatch.setattr(PretrainingModule, "sums", sums)
    code, lines = pretrain("--budget 8steps --on_oom split")
    assert code == 1
    assert [line for line in lines if "going on with" in line][-1].endswith("batches 8")


def test_a_bug_of_ours_still_has_its_traceback(pretrain, monkeypatch):
    def sums(module, batch):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(PretrainingModule, "sums", sums)
    with pytest.raises(RuntimeError, match="shapes"):
        pretrain("--budget 8steps")
