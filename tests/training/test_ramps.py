"""Ramps: what is left of a batch, whatever its division, and runs with them."""

import numpy as np
import pytest
import torch
from test_pretraining import losses

from mlm.data.masking import IGNORE_INDEX
from mlm.data.store import TokenStore
from mlm.errors import UserError
from mlm.objectives.masked_lm import Vocabulary, at_rate, collate
from mlm.training.batches import TrainingBatches
from mlm.training.budget import Budget, check_budget
from mlm.training.data_options import DataOptions, Share
from mlm.training.metrics_csv import read_metrics
from mlm.training.pretraining import pretrain
from mlm.training.ramps import (
    fewest_rows,
    ramped,
    ramped_length,
    row_ranks,
    with_length,
    with_rows,
)

VOCABULARY = Vocabulary(size=200, cls=2, sep=3, mask=4, special=(0, 1, 2, 3, 4))


def rows(count=8, longest=60):
    rng = np.random.default_rng(0)
    return [
        [rng.integers(5, 200, n).astype(np.uint16) for n in rng.integers(1, longest, 2)]
        for _ in range(count)
    ]


def made(data, **more):
    return collate(data, range(len(data)), VOCABULARY, 0.3, **more)


def test_sizes_rise_in_a_line_and_stay():
    sizes = [ramped(16, 64, p, 0.5) for p in np.linspace(0, 1, 101)]
    assert sizes[0] == 16
    assert sizes == sorted(sizes)
    assert sizes[50:] == [64] * 51
    assert ramped(None, 64, 0.0, 0.5) == 64
    lengths = {ramped_length(20, 130, p, 0.5) for p in np.linspace(0, 1, 101)}
    assert min(lengths) == 20
    assert max(lengths) == 130
    assert all(n % 8 == 0 for n in lengths - {20, 130})


@pytest.mark.parametrize("count", [1, 2, 6, 8, 24, 96])
def test_ranks_are_spread_over_equal_parts(count):
    ranks = row_ranks(count)
    assert sorted(ranks) == list(range(count))
    for parts in (p for p in (1, 2, 3, 4, 8) if count % p == 0):
        least = fewest_rows(count, parts)
        for k in range(least, count + 1):
            assert ((ranks < k).reshape(parts, -1).sum(1) > 0).all()
        if least > 1:
            assert not ((ranks < least - 1).reshape(parts, -1).sum(1) > 0).all()


def test_some_rows_are_what_they_are_alone():
    data = rows()
    keep = row_ranks(8) < 3
    found = with_rows(made(data, first_row=0), keep)
    chosen = np.flatnonzero(keep)
    alone = collate([data[i] for i in chosen], chosen, VOCABULARY, 0.3)
    for name in ("input_ids", "position_ids", "cu_seqlens", "labels", "masked_positions"):
        assert torch.equal(getattr(found, name), getattr(alone, name)), name
    assert torch.equal(at_rate(found, 0.2).input_ids, at_rate(alone, 0.2).input_ids)
    assert found.max_seqlen == alone.max_seqlen


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (1, 4), (2, 2)])
def test_ramped_rows_do_not_depend_on_their_division(store, world, accumulation):
    opened = TokenStore.open(store)
    options = DataOptions(batch_size=16, sequence_length=32, batch_size_start=4)
    keep = row_ranks(16) < 7
    whole = with_rows(TrainingBatches(opened, options, Share(), 7)[1], keep)
    parts = []
    for part in range(accumulation):
        for rank in range(world):
            batches = TrainingBatches(opened, options, Share(rank, world, accumulation), 7)
            parts.append(with_rows(batches[accumulation + part], keep))
    for name in ("input_ids", "labels", "replacements"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))


@pytest.mark.parametrize("length", [8, 16, 40, 58])
def test_pieces_are_framed_and_lose_nothing_else(length):
    data = rows()
    before = made(data)
    after = with_length(before, length, cls=2, sep=3)
    assert after.num_tokens == before.num_tokens
    lengths = after.sequence_lengths
    assert lengths.min() >= 3
    assert lengths.max() <= length + 2
    starts, stops = after.cu_seqlens[:-1].long(), after.cu_seqlens[1:].long()
    assert (after.input_ids[starts] == 2).all()
    assert (after.input_ids[stops - 1] == 3).all()
    assert (after.position_ids[starts] == 0).all()
    assert set(before.cu_seqlens.tolist()) <= set(after.cu_seqlens.tolist())
    changed = (after.input_ids != before.input_ids).sum()
    assert changed <= 2 * (after.num_sequences - before.num_sequences)
    masked = at_rate(after, 0.3)
    counts = masked.labels != IGNORE_INDEX
    assert (masked.labels[counts] >= 5).all()
    assert torch.equal(masked.labels[counts], after.input_ids[masked.masked_positions[counts]])


def test_short_sequences_stay_as_they_are():
    batch = made(rows(longest=9))
    assert with_length(batch, 16, 2, 3) is batch
    assert with_rows(made(rows(), first_row=0), np.ones(8, bool)).num_sequences == 16


def test_a_ramped_run_goes_on_bit_for_bit(pretrain_settings, tmp_path):
    common = "--data.batch_size_start 2 --data.sequence_length_start 8 --data.ramp 0.8"
    common += " --checkpoint.every_n_steps 3 --budget 10steps --model.hidden_dropout 0.1"
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    pretrain(pretrain_settings(f"{common} --run_dir {whole}"))
    pretrain(pretrain_settings(f"{common} --run_dir {halves}"))
    for late in ("step_00000006", "step_00000009", "step_00000010"):
        (halves / "checkpoints" / late).rename(tmp_path / f"late-{late}")
    pretrain(pretrain_settings(f"{common} --run_dir {halves} --resume auto"))
    assert losses(halves) == losses(whole)
    tokens = np.diff([0, *read_metrics(whole / "metrics.csv")["tokens"][:10]])
    assert tokens[0] < 0.4 * tokens[-1]
    assert min(tokens[-2:]) > 0.85 * 8 * 32


def test_accumulation_changes_no_loss_of_a_ramp(pretrain_settings, tmp_path):
    curves = []
    for accumulation in (1, 2):
        run = tmp_path / str(accumulation)
        words = f"--data.batch_size_start 4 --trainer.accumulate_grad_batches {accumulation}"
        pretrain(pretrain_settings(f"{words} --optimizer.name adamw --run_dir {run}"))
        curves.append(losses(run))
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


# As CUDA says it, and as a CPU's allocator does.
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no memory"), RuntimeError("can't allocate memory: 99 bytes")]
)
def test_a_ramp_that_ends_above_memory_is_refused_at_the_first_step(
    error, pretrain_settings, tmp_path, monkeypatch
):
    from mlm.training.module import PretrainingModule

    sums, seen = PretrainingModule.sums, []

    def too_little(self, batch):
        seen.append(batch.num_sequences)
        if batch.num_tokens > 8 * 28:  # the whole batch
            raise error
        return sums(self, batch)

    monkeypatch.setattr(PretrainingModule, "sums", too_little)
    with pytest.raises(UserError, match="the ramp ends above this device's memory, at 8 rows"):
        pretrain(pretrain_settings("--data.batch_size_start 2"))
    assert len(seen) == 1
    words = f"--data.batch_size_start 4 --on_oom split --run_dir {tmp_path / 'split'}"
    pretrain(pretrain_settings(words))
    assert len(seen) > 10  # in halves, which fit


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--data.batch_size_start 9", r"data\.batch_size_start: 9 must lie between 1 and"),
        ("--data.sequence_length_start 4", r"data\.sequence_length_start: 4"),
        ("--data.ramp 0 --data.batch_size_start 2", r"data\.ramp: 0"),
        ("--data.batch_size_start 2 --trainer.accumulate_grad_batches 4", "give 4 or more"),
        ("--data.batch_size_start 2 --compile true", "a ramp changes shapes"),
        ("--data.sequence_length_start 8 --objective.name sentence_order", "cannot be cut"),
        ("--budget 10tokens", "too short for one step, which takes 240 tokens"),
        ("--budget 0.5steps", "too short for one step"),
        ("--budget 1e-9s", "too short for one step"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(pretrain_settings, tmp_path, words, named):
    with pytest.raises(UserError, match=named) as caught:
        pretrain(pretrain_settings(words))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_unknown_speed_is_no_reason_to_refuse():
    check_budget(Budget("seconds", 1e-9), 100, float("nan"))
