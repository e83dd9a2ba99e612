"""Runs in miniature: they learn, resume exactly, and do not depend on how rows are divided."""

import errno
import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.optim.optimizer import register_optimizer_step_post_hook

from mlm.checkpoint import load_masked_lm, read_folder
from mlm.data.store import TokenStore
from mlm.errors import UserError
from mlm.training.batches import TrainingBatches
from mlm.training.checkpoints import Checkpoints
from mlm.training.data_options import DataOptions, Share
from mlm.training.datamodule import From, TimedLoader
from mlm.training.metrics_csv import read_metrics
from mlm.training.module import PretrainingModule
from mlm.training.pretraining import pretrain
from mlm.training.trainer import choose_accelerator


def losses(run_dir: Path) -> dict[int, float]:
    rows = read_metrics(run_dir / "metrics.csv")
    pairs = zip(rows["step"], rows["train/loss"], strict=True)
    return {int(step): loss for step, loss in pairs if loss is not None}


def test_a_run_learns_and_leaves_what_the_design_says(pretrain_settings, tmp_path):
    found = pretrain(
        pretrain_settings("--budget 60steps --optimizer.lr 0.01 --checkpoint.every_n_steps 25")
    )
    run = tmp_path / "run"
    curve = losses(run)
    assert list(curve) == list(range(1, 61))
    assert found["val/loss"] < curve[1] - 1.0
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        f"step_{n:08d}" for n in (25, 50, 60)
    ]
    assert {p.name for p in run.iterdir()} == {"checkpoints", "config.yaml", "metrics.csv", "model"}
    load_masked_lm(run / "model")
    load_masked_lm(run / "checkpoints" / "step_00000025" / "model")
    rows = read_metrics(run / "metrics.csv")
    assert rows["val/loss"][-1] == found["val/loss"]
    for column in ("tokens_per_second", "mfu", "data_wait", "learning_rate", "masking_rate"):
        assert rows[column][0] is not None
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["precision"] == "32-true"
    assert config["model"]["hidden_size"] == 32


def test_validation_tells_bits_per_character(pretrain_settings, store, tmp_path):
    found = pretrain(pretrain_settings("--budget 3steps"))
    counts = json.loads((store / "manifest.json").read_text())["splits"]["validation"]
    bits = found["val/loss"] / math.log(2) * counts["tokens"] / counts["characters"]
    assert found["val/bits_per_character"] == pytest.approx(bits, rel=1e-6)
    logged = read_metrics(tmp_path / "run" / "metrics.csv")["val/bits_per_character"]
    assert logged[-1] == found["val/bits_per_character"]


@pytest.mark.parametrize("masking", ["word", "span"])
def test_words_may_be_masked_whole(masking, pretrain_settings, tmp_path):
    pretrain(pretrain_settings(f"--budget 4steps --run_dir {tmp_path / 'token'}"))
    pretrain(pretrain_settings(f"--budget 4steps --data.masking {masking}"))
    whole, single = losses(tmp_path / "run"), losses(tmp_path / "token")
    assert whole.keys() == single.keys()
    assert whole[1] != single[1]


@pytest.mark.parametrize("masking", ["token", "word"])
def test_rare_tokens_may_be_preferred(masking, store):
    opened = TokenStore.open(store)
    found = []
    for rarity in (0.0, 1.0):
        options = DataOptions(32, 64, masking=masking, mask_rarity=rarity)
        batches = TrainingBatches(opened, options, Share(), seed=0)
        labels = torch.cat([batches[i].labels for i in range(10)])
        counts = np.bincount(np.concatenate([batches[i].input_ids for i in range(10)]))
        found.append((len(labels), float(counts[labels].mean())))
    (plain, common), (preferring, rare) = found
    assert preferring == pytest.approx(plain, rel=0.02)
    assert rare < 0.8 * common


def test_an_unknown_masking_is_refused(pretrain_settings, tmp_path):
    with pytest.raises(UserError, match=r"data\.masking: 'words'.*word"):
        pretrain(pretrain_settings("--data.masking words"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_bit_identical(pretrain_settings, tmp_path, workers):
    common = (
        "--model.hidden_dropout 0.1 --trainer.accumulate_grad_batches 2 "
        f"--checkpoint.every_n_steps 3 --trainer.val_check_interval 2 --data.num_workers {workers}"
    )
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    pretrain(pretrain_settings(f"{common} --budget 8steps --run_dir {whole}"))
    # The same schedule, killed after step 4: what was saved at step 3 is what is left.
    pretrain(pretrain_settings(f"{common} --budget 8steps --run_dir {halves}"))
    for late in ("step_00000006", "step_00000008"):
        (halves / "checkpoints" / late).rename(tmp_path / f"late-{late}")
    pretrain(pretrain_settings(f"{common} --budget 8steps --run_dir {halves} --resume auto"))
    assert losses(halves) == losses(whole)
    assert (
        read_metrics(halves / "metrics.csv")["val/loss"]
        == read_metrics(whole / "metrics.csv")["val/loss"]
    )
    a, b = (read_folder(run / "model").state for run in (whole, halves))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_goes_on_from_its_stable_phase_for_longer(pretrain_settings, tmp_path):
    """A checkpoint from before the cooldown leads to where a longer run would have led."""
    common = "--optimizer.schedule wsd --optimizer.warmup 0 --data.mlm_probability 0.2"
    common += " --data.mlm_probability_end 0.2 --checkpoint.every_n_steps null"
    short, long, on = (tmp_path / name for name in ("short", "long", "on"))
    pretrain(pretrain_settings(f"{common} --budget 6steps --run_dir {short}"))
    pretrain(pretrain_settings(f"{common} --budget 12steps --run_dir {long}"))
    (stable,) = (short / "before_cooldown").iterdir()
    assert stable.name == "step_00000004"  # the middle of the next is beyond 70 % of six
    pretrain(pretrain_settings(f"{common} --budget 12steps --run_dir {on} --resume {stable}"))
    after = {step: loss for step, loss in losses(long).items() if step > 4}
    assert losses(on) == after
    assert [path.name for path in (on / "before_cooldown").iterdir()] == ["step_00000008"]
    assert losses(short)[6] != losses(long)[6]


def test_late_in_a_budget_of_time_only_the_end_is_validated(
    pretrain_settings, tmp_path, monkeypatch
):
    monkeypatch.setattr("mlm.training.pretraining.start", lambda *_: 0.0)
    pretrain(pretrain_settings("--budget 4s --trainer.val_check_interval 2"))
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    seconds = zip(rows["step"], rows["seconds"], strict=True)
    spent = {step: value for step, value in seconds if value is not None}
    losses = zip(rows["step"], rows["val/loss"], strict=True)
    *early, last = [step for step, loss in losses if loss is not None]
    assert early
    assert max(spent[step] for step in early) <= 0.95 * 4
    assert last == max(spent)


def test_a_validation_that_would_outlast_the_budget_is_left_out(
    pretrain_settings, tmp_path, monkeypatch
):
    """A tenth of a second a step, three seconds a validation, by a clock of the test's."""
    now, begin = [0.0], PretrainingModule.on_validation_epoch_start

    def read(clock, step):
        now[0] += 0.1 if step else 0.0
        return now[0]

    def validate(module):
        now[0] += 3.0
        begin(module)

    monkeypatch.setattr("mlm.training.pretraining.start", lambda *_: 0.0)
    monkeypatch.setattr("mlm.training.clock.Clock.read", read)
    monkeypatch.setattr(PretrainingModule, "on_validation_epoch_start", validate)
    words = "--budget 10s --trainer.val_check_interval 10 --trainer.accumulate_grad_batches 2"
    pretrain(pretrain_settings(words))
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    pairs = zip(rows["step"], rows["val/loss"], strict=True)
    # After 1, 5 and 9 seconds; the one at 9 would be over at 12.
    # Half a step of the mean length, validations counted, is more than the last tenth.
    assert [step for step, loss in pairs if loss is not None] == [10, 20, 39]


def test_a_time_that_counting_has_used_up_is_refused(pretrain_settings, tmp_path, monkeypatch):
    monkeypatch.setattr("mlm.training.pretraining.start", lambda *_: 12.0)
    with pytest.raises(UserError, match=r"--budget: 10 seconds are too short.* took 12 of them"):
        pretrain(pretrain_settings("--budget 10s"))
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_left_as_it_is(pretrain_settings, tmp_path, capsys):
    pretrain(pretrain_settings("--budget 4steps"))
    before = (tmp_path / "run" / "metrics.csv").read_text()
    weights = read_folder(tmp_path / "run" / "model").state
    pretrain(pretrain_settings("--budget 4steps --resume auto"))
    said = capsys.readouterr().err
    assert "going on from" in said
    assert "since step 4: nothing left to train" in said
    assert (tmp_path / "run" / "metrics.csv").read_text() == before
    again = read_folder(tmp_path / "run" / "model").state
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_the_model_before_its_first_step(pretrain_settings, tmp_path):
    words = "--budget 6steps --checkpoint.every_n_steps 2 --checkpoint.keep 1"
    words += " --checkpoint.first true"
    pretrain(pretrain_settings(words))
    whole = losses(tmp_path / "run")
    places = tmp_path / "run" / "checkpoints"
    assert sorted(p.name for p in places.iterdir()) == ["step_00000000", "step_00000006"]
    load_masked_lm(places / "step_00000000" / "model")
    pretrain(pretrain_settings(f"{words} --resume {places / 'step_00000000'}"))
    assert losses(tmp_path / "run") == whole


def test_what_a_run_went_back_from_is_not_its_newest(pretrain_settings, tmp_path, monkeypatch):
    words = "--budget 6steps --checkpoint.every_n_steps 2 --checkpoint.keep 3"
    pretrain(pretrain_settings(words))
    places = tmp_path / "run" / "checkpoints"
    kept = []
    start = Checkpoints.on_train_start

    def look(callback, trainer, module):
        start(callback, trainer, module)
        kept.extend(sorted(path.name for path in places.iterdir()))

    monkeypatch.setattr(Checkpoints, "on_train_start", look)
    again = f"{words} --optimizer.lr 1e-4 --resume {places / 'step_00000002'}"
    pretrain(pretrain_settings(again))
    assert kept == ["step_00000002"]
    last = read_folder(places / "step_00000006" / "model").state
    final = read_folder(tmp_path / "run" / "model").state
    assert all(torch.equal(last[name], final[name]) for name in final)


def test_an_epoch_of_pairs_has_the_rows_that_there_are(pretrain_settings, store, tmp_path):
    words = "--trainer.max_epochs 1 --objective.name sentence_order"
    found = pretrain_settings(words)
    pretrain(found)
    data = DataOptions(**found["data"])
    read = TrainingBatches(TokenStore.open(store), data, Share(), 0, negatives="swapped")
    assert max(losses(tmp_path / "run")) == -(-read.rows // data.batch_size)


def test_apples_gpus_are_left_alone(monkeypatch):
    assert choose_accelerator("auto") == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_accelerator("auto") == "cpu"
    assert choose_accelerator("cpu") == "cpu"
    for asked in ("gpu", "mps"):
        with pytest.raises(UserError, match=f"{asked} is a GPU without 64-bit numbers"):
            choose_accelerator(asked)


@pytest.mark.parametrize("asked", ["true", "false"])
def test_a_fresh_head_guesses_tokens_as_often_as_they_occur(
    asked, pretrain_settings, store, tmp_path
):
    words = f"--checkpoint.first true --objective.start_at_frequencies {asked}"
    words += " --objective.start_at_cooccurrences false"  # whose words are long enough to guess too
    pretrain(pretrain_settings(f"--budget 2steps {words}"))
    model = load_masked_lm(tmp_path / "run" / "checkpoints" / "step_00000000" / "model")
    split = TokenStore.open(store).split("train")
    counts = np.bincount(split.tokens(0, split.num_tokens), minlength=model.config.vocab_size)
    if asked == "false":
        assert not model.head.bias.any()
        return
    # The sample overlaps itself in a store so small, and counts each token once more.
    guessed, often = model.head.bias.softmax(0).detach().numpy(), counts > 20
    assert often.sum() > 10
    shares = counts / counts.sum()
    assert guessed[often] == pytest.approx(shares[often], rel=0.25)
    assert guessed[counts == 0].max(initial=0) < 2 / counts.sum()
    hidden = torch.randn(200, model.config.hidden_size)
    logits = model.head(hidden, model.encoder.embeddings.word.weight)
    entropy = -(shares[often] * np.log(shares[often])).sum()
    found = torch.nn.functional.cross_entropy(
        logits, torch.multinomial(torch.tensor(shares), 200, True)
    )
    assert found.item() < entropy + 0.5 < np.log(len(shares))


def test_frequencies_are_only_for_a_fresh_head_with_a_bias(pretrain_settings, tmp_path):
    pretrain(pretrain_settings("--budget 1step"))
    asked = f"--objective.start_at_frequencies true --run_dir {tmp_path / 'on'}"
    for words in (f"--model {tmp_path / 'run' / 'model'}", "--model.lm_head linear"):
        with pytest.raises(UserError, match=r"start_at_frequencies: only a fresh head"):
            pretrain(pretrain_settings(f"{words} {asked}"))
    assert not (tmp_path / "on").exists()


def test_accumulation_changes_no_loss(pretrain_settings, tmp_path):
    curves = []
    for accumulation in (1, 2, 4):
        run = tmp_path / str(accumulation)
        pretrain(
            pretrain_settings(
                f"--optimizer.name adamw --trainer.accumulate_grad_batches {accumulation} "
                f"--run_dir {run} --budget 10steps"
            )
        )
        curves.append(losses(run))
    for other in curves[1:]:
        assert other == pytest.approx(curves[0], abs=1e-5)


@pytest.mark.parametrize(
    "words",
    [
        "--trainer.gradient_clip_val 0.5",
        "--trainer.gradient_clip_val 1000",
        "--trainer.gradient_clip_val null",
        "--trainer.gradient_clip_val 0.01 --trainer.gradient_clip_algorithm value",
    ],
)
def test_the_optimizer_gets_clipped_gradients_of_the_mean(pretrain_settings, tmp_path, words):
    seen = []

    def look(optimizer, args, kwargs):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        flat = torch.cat([g.flatten() for g in gradients])
        seen.append((flat.norm().item(), flat.abs().max().item()))

    handle = register_optimizer_step_post_hook(look)
    try:
        pretrain(pretrain_settings(f"{words} --budget 4steps --optimizer.lr 0.01"))
    finally:
        handle.remove()
    rows = read_metrics(tmp_path / "run" / "metrics.csv")["gradient_norm"]
    told = [norm for norm in rows if norm is not None]  # a validation has a row too
    assert len(seen) == 4
    for (norm, largest), before in zip(seen, told, strict=True):
        assert 0.5 < before < 1000
        if "value" in words:
            assert largest == pytest.approx(0.01)
        else:
            assert norm == pytest.approx(0.5 if "0.5" in words else before, rel=1e-4)


def test_activation_checkpointing_changes_no_loss(pretrain_settings, tmp_path, monkeypatch):
    words = "--budget 3steps --model.hidden_dropout 0.1"
    calls = []
    recompute = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        "mlm.model.encoder.checkpoint", lambda *a, **k: calls.append(1) or recompute(*a, **k)
    )
    pretrain(pretrain_settings(f"{words} --run_dir {tmp_path / 'plain'}"))
    assert not calls
    pretrain(
        pretrain_settings(f"{words} --run_dir {tmp_path / 'less'} --activation_checkpointing true")
    )
    assert len(calls) == 3
    assert losses(tmp_path / "less") == losses(tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("position", "optimizer", "near"),
    [
        ("rope", "adamw", 1e-4),
        ("sinusoidal", "adamw", 1e-4),  # whose table is a buffer
        ("rope", "muon", 1e-2),  # the iteration in bf16 makes more of a rounding
    ],
)
def test_two_processes_change_no_loss(position, optimizer, near, store, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    words = (
        "--model.size tiny --data.batch_size 8 --data.sequence_length 32 "
        f"--optimizer.name {optimizer} --trainer.accelerator cpu --trainer.precision fp32 "
        "--trainer.log_every_n_steps 1 "
        f"--logging.wandb off --budget 10steps --store {store} --model.position {position}"
    )
    for run, more in ((one, ""), (two, "--trainer.devices 2 --trainer.strategy ddp")):
        command = f"-m mlm pretrain {words} {more} --run_dir {run}"
        subprocess.run([sys.executable, *command.split()], check=True, timeout=300)
    assert losses(two) == pytest.approx(losses(one), abs=near)


@pytest.mark.slow
def test_torchrun_starts_the_processes_that_are_asked_for(store, tmp_path):
    words = (
        "--model.size tiny --data.batch_size 8 --data.sequence_length 32 --trainer.accelerator cpu "
        f"--logging.wandb off --budget 2steps --store {store} --trainer.strategy ddp"
    )
    launcher = "-m torch.distributed.run --standalone --nproc-per-node 2 -m mlm pretrain"
    command = f"{launcher} {words} --trainer.devices 2 --run_dir {tmp_path / 'run'}"
    done = subprocess.run(
        [sys.executable, *command.split()], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("mlm: 2 processes, with a device each") == 1
    load_masked_lm(tmp_path / "run" / "model")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_order_and_masks_do_not_depend_on_workers_ranks_or_accumulation(
    store, workers, world, accumulation
):
    opened, options = TokenStore.open(store), DataOptions(batch_size=8, sequence_length=32)
    whole = TrainingBatches(opened, options, Share(), seed=7)
    parts: dict[int, list] = {}
    for rank in range(world):
        share = Share(rank, world, accumulation)
        batches = TrainingBatches(opened, options, share, seed=7)
        loader = TimedLoader(
            batches, sampler=From(0, 3 * accumulation), batch_size=None, num_workers=workers
        )
        for micro, batch in enumerate(loader):
            place = share.places(micro, 8).start
            parts[place] = [batch.input_ids, batch.labels, batch.replacements]
    for step in range(3):
        reference = whole[step]
        mine = [parts[place] for place in sorted(parts) if 8 * step <= place < 8 * (step + 1)]
        for index, name in enumerate(("input_ids", "labels", "replacements")):
            joined = torch.cat([part[index] for part in mine])
            assert torch.equal(joined, getattr(reference, name))


def test_masks_are_fresh_each_epoch(store):
    opened, options = TokenStore.open(store), DataOptions(batch_size=1, sequence_length=32)
    batches = TrainingBatches(opened, options, Share(), seed=7)
    seen: dict[tuple, set] = {}
    for place in range(2 * batches.rows):
        batch = batches[place]
        row = tuple(batch.input_ids.tolist())
        seen.setdefault(row, set()).add(tuple(batch.masked_positions.tolist()))
    fresh = [len(masks) for masks in seen.values()]
    assert sum(fresh) > 1.8 * len(fresh)


def test_sigterm_saves_and_exits_with_143(store, tmp_path):
    run = tmp_path / "run"
    command = (
        f"-m mlm pretrain --store {store} --run_dir {run} --model.size tiny --budget 100000steps "
        "--data.batch_size 8 --data.sequence_length 32 --logging.wandb off "
        "--trainer.log_every_n_steps 1 --trainer.accelerator cpu"
    )
    with subprocess.Popen(
        [sys.executable, *command.split()], stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            if line.startswith("step 3 "):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
        assert process.wait(60) == 143
    assert "--resume auto" in rest
    (saved,) = (run / "checkpoints").iterdir()
    assert f"{max(losses(run)):08d}" in saved.name


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--data.sequence_length 2000", "max_position_embeddings"),
        ("--data.mlm_probability 1.5", "mlm_probability"),
        ("--data.mlm_probability 0", r"mlm_probability: 0"),
        ("--data.mlm_probability_end 1", r"mlm_probability_end: 1"),
        ("--data.mask_rarity -1", r"mask_rarity: -1"),
        ("--trainer.accumulate_grad_batches 3", "multiple of 3"),
        ("--budget 5parsecs", "budget"),
        ("--trainer.max_steps 5 --trainer.max_epochs 2", "max_steps and trainer.max_epochs"),
        ("--trainer.strategy fsdp", "fsdp cuts the weights into shards"),
        ("--trainer.val_check_interval 0.25", "0.25 is a share of an epoch"),
        ("--checkpoint.keep 0", r"checkpoint\.keep: 0 must be at least 1"),
        ("--checkpoint.every_n_steps -5", r"every_n_steps: -5"),
        ("--data.ramp 0.2", r"data\.ramp: no size rises"),
        ("--resume no/such/checkpoint", "no/such/checkpoint"),
        ("--model.position ropes", "rope"),
        ("--model no/such/model", "no/such/model"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(pretrain_settings, tmp_path, words, named):
    with pytest.raises(UserError, match=named) as caught:
        pretrain(pretrain_settings(words))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_directory_in_use_is_refused(pretrain_settings, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        pretrain(pretrain_settings())


def test_what_stands_where_the_model_goes_is_named_at_once(pretrain_settings, tmp_path):
    pretrain(pretrain_settings("--budget 2steps"))
    (tmp_path / "run" / "model" / "onnx").mkdir()
    start = tmp_path / "run" / "checkpoints" / "step_00000002"
    for resume in ("auto", start):
        with pytest.raises(UserError, match=r"run/model: holds something other .* \(onnx\); take"):
            pretrain(pretrain_settings(f"--budget 4steps --resume {resume}"))
    assert max(losses(tmp_path / "run")) == 2


def test_a_folder_with_checkpoints_takes_none_of_another_run(pretrain_settings, tmp_path):
    one, two, link = (tmp_path / name for name in ("one", "two", "link"))
    words = "--checkpoint.every_n_steps 2 --checkpoint.keep 3"
    for run in (one, two):
        pretrain(pretrain_settings(f"{words} --run_dir {run}"))
    before = sorted((two / "checkpoints").iterdir())
    start = "checkpoints/step_00000002"
    with pytest.raises(UserError, match=f"{two} holds checkpoints of a run of its own; choose"):
        pretrain(pretrain_settings(f"{words} --run_dir {two} --resume {one / start}"))
    assert sorted((two / "checkpoints").iterdir()) == before
    link.symlink_to(two)
    pretrain(pretrain_settings(f"{words} --run_dir {two} --resume {link / start}"))


def test_where_there_are_no_locks_a_run_says_so_and_goes_on(
    pretrain_settings, tmp_path, monkeypatch, capsys
):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    pretrain(pretrain_settings("--budget 1step"))
    lines = [line for line in capsys.readouterr().err.splitlines() if "no locks" in line]
    assert len(lines) == 1
    assert lines[0].endswith(f"only one run writes in {tmp_path / 'run'}")
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_damaged_checkpoint_is_passed_over(pretrain_settings, tmp_path, capsys):
    words = "--budget 6steps --checkpoint.every_n_steps 3"
    pretrain(pretrain_settings(words))
    (tmp_path / "run" / "checkpoints" / "step_00000006.bak").mkdir()  # somebody's own
    newest = tmp_path / "run" / "checkpoints" / "step_00000006" / "state.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    pretrain(pretrain_settings(f"{words} --resume auto"))
    assert "damaged" in capsys.readouterr().err
    newest.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        pretrain(pretrain_settings(f"{words} --resume {newest.parent}"))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("--model.attention_bias false", "attention_bias is True, where this one wants False"),
        ("--model.hidden_size 64", "hidden_size is 32, where this one wants 64"),
        ("--model.num_hidden_layers 3", "num_hidden_layers is 1, where this one wants 3"),
        ("--model.activation silu", "activation is gelu, where this one wants silu"),
        ("--optimizer.name adamw", "is of --optimizer.name muon"),
    ],
)
def test_going_on_with_another_model_or_optimizer_is_refused(
    changed, named, pretrain_settings, tmp_path
):
    pretrain(pretrain_settings("--budget 2steps"))
    before = (tmp_path / "run" / "metrics.csv").read_text()
    with pytest.raises(UserError, match=f"--resume: this checkpoint .*{named}.*; go on with"):
        pretrain(pretrain_settings(f"--budget 4steps --resume auto {changed}"))
    assert (tmp_path / "run" / "metrics.csv").read_text() == before


def test_limits_of_the_command_line_replace_the_configs(pretrain_settings, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("budget: 30min\n")
    settings = pretrain_settings(f"--config {config} --trainer.max_steps 3")
    assert settings["budget"] is None
    pretrain(settings)
    assert list(losses(tmp_path / "run")) == [1, 2, 3]
    rates = read_metrics(tmp_path / "run" / "metrics.csv")["masking_rate"]
    assert rates[2] == pytest.approx(0.3 - 0.15 * 2.5 / 3)


def test_an_epoch_is_a_limit_too(pretrain_settings, store, tmp_path):
    pretrain(pretrain_settings("--trainer.max_epochs 1 --data.batch_size 16"))
    batches = TrainingBatches(
        TokenStore.open(store), DataOptions(batch_size=16, sequence_length=32), Share(), 0
    )
    assert max(losses(tmp_path / "run")) == -(-batches.rows // 16)


def test_training_goes_on_from_a_model_folder(pretrain_settings, tmp_path):
    pretrain(pretrain_settings(f"--run_dir {tmp_path / 'a'} --budget 40steps --optimizer.lr 0.01"))
    words = f"--model {tmp_path / 'a' / 'model'} --run_dir {tmp_path / 'b'} --budget 1step"
    pretrain(pretrain_settings(words))
    assert losses(tmp_path / "b")[1] < losses(tmp_path / "a")[1] - 0.5


@pytest.mark.slow
def test_compiling_changes_no_loss(pretrain_settings, tmp_path):
    common = "--optimizer.name adamw --budget 4steps"
    pretrain(pretrain_settings(f"{common} --run_dir {tmp_path / 'eager'}"))
    pretrain(pretrain_settings(f"{common} --run_dir {tmp_path / 'compiled'} --compile true"))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), abs=1e-4)


def test_a_model_folder_is_plain(pretrain_settings, tmp_path):
    pretrain(pretrain_settings())
    folder = tmp_path / "run" / "model"
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    assert json.loads((folder / "config.json").read_text())["mlm"]["steps"] == 6


def test_a_large_store_is_verified_before_the_first_step(
    pretrain_settings, store, tmp_path, monkeypatch
):
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    damaged = next((copy / "train").glob("*.arrow"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    monkeypatch.setattr("mlm.data.store._VERIFIED_AT_OPENING", 0)
    with pytest.raises(UserError, match="damaged"):
        pretrain(pretrain_settings(f"--store {copy} --budget 5000steps"))
    assert not (tmp_path / "run").exists()
