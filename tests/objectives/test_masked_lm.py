"""Masks in a batch: against the row-wise function, and in the sums."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mlm.data.masking import IGNORE_INDEX, mask_tokens
from mlm.data.masking_units import LONGEST_UNIT, Joints
from mlm.model.config import preset
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives.masked_lm import Vocabulary, at_rate, collate, loss, score

VOCABULARY = Vocabulary(size=200, cls=2, sep=3, mask=4, special=(0, 1, 2, 3, 4))


def rows(count: int = 6) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        [rng.integers(5, 200, n).astype(np.uint16) for n in rng.integers(1, 40, rng.integers(1, 4))]
        for _ in range(count)
    ]


def framed(row: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.concatenate(([2], ids, [3])) for ids in row])


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.22, 0.3])
def test_a_batch_is_masked_as_its_rows_are_alone(rate):
    data = rows()
    keys = list(range(100, 106))
    batch = at_rate(collate(data, keys, VOCABULARY, 0.3), rate)
    ids, labels = [], []
    for row, key in zip(data, keys, strict=True):
        masked, label = mask_tokens(framed(row), VOCABULARY.special, key, rate, 200, 4)
        ids.append(masked)
        labels.append(label)
    assert batch.input_ids.tolist() == np.concatenate(ids).tolist()
    expected = np.concatenate(labels)
    positions, masked = np.flatnonzero(expected != -100), expected[expected != -100]
    missing = -len(positions) % 32
    assert batch.masked_positions.tolist() == [*positions, *[0] * missing]
    assert batch.labels.tolist() == [*masked, *[IGNORE_INDEX] * missing]


def test_sequences_and_boundaries():
    data = rows()
    batch = collate(data, range(6), VOCABULARY, 0.3)
    assert batch.num_sequences == sum(map(len, data))
    starts = batch.cu_seqlens[:-1].long()
    assert (batch.input_ids[starts] == 2).all()
    assert (batch.input_ids[batch.cu_seqlens[1:].long() - 1] == 3).all()
    assert (batch.position_ids[starts] == 0).all()


def test_still_shapes_change_no_figure():
    torch.manual_seed(0)
    model = MaskedLanguageModel(preset("modern", "tiny", vocab_size=200)).double()
    data = rows()
    loose = at_rate(collate(data, range(6), VOCABULARY, 0.3), 0.2)
    still = at_rate(collate(data, range(6), VOCABULARY, 0.3, still_length=200), 0.2, capacity=300)
    assert still.input_ids.numel() == 1200
    assert still.num_sequences % 8 == 0
    assert still.max_seqlen == 200
    assert still.masked_positions.numel() == 300
    a, b = score(model, loose), score(model, still)
    torch.testing.assert_close(a.loss, b.loss)
    assert a.targets == b.targets
    assert a.right == b.right


def test_score_is_a_sum():
    torch.manual_seed(0)
    model = MaskedLanguageModel(preset("modern", "tiny", vocab_size=200))
    batch = at_rate(collate(rows(), range(6), VOCABULARY, 0.3), 0.3)
    found, result = loss(model, batch), score(model, batch)
    logits = model(replace(batch, masked_positions=None))[batch.masked_positions]
    mean = F.cross_entropy(logits, batch.labels)
    torch.testing.assert_close(result.loss / result.targets, mean)
    torch.testing.assert_close(found.sum / found.targets, mean)


@pytest.mark.parametrize("unit", ["word", "span"])
def test_masks_of_words_fit_the_room_that_is_kept_for_them(unit):
    """As `PretrainingModule.sums` reckons it, for any rows and keys."""
    joints = Joints(np.arange(200) >= 60, np.ones(200, bool))  # long words
    vocabulary = replace(VOCABULARY, joints=joints)
    rng = np.random.default_rng(0)
    for key in range(200):
        row = [rng.integers(5, 200, 126)]
        candidates = collate([row], [key], vocabulary, 0.3, unit=unit)
        assert candidates.masked_positions.numel() <= math.ceil(128 * 0.3) + LONGEST_UNIT
        at_rate(candidates, 0.2, capacity=math.ceil(128 * 0.3) + LONGEST_UNIT)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.3])
def test_a_padded_mask_holds_what_a_plain_one_does(rate):
    made = collate(rows(), range(6), VOCABULARY, 0.3)
    plain, padded = at_rate(made, rate), at_rate(made, rate, capacity=100)
    assert torch.equal(plain.input_ids, padded.input_ids)
    for found in (plain, padded):
        counts = found.labels != IGNORE_INDEX
        assert (made.mask_thresholds <= rate).sum() == counts.sum()
        assert not found.masked_positions[~counts].any()
        assert found.masked_positions.numel() == found.labels.numel()
    assert padded.labels.numel() == 100
    there, here = plain.labels != IGNORE_INDEX, padded.labels != IGNORE_INDEX
    assert torch.equal(plain.labels[there], padded.labels[here])
    assert torch.equal(plain.masked_positions[there], padded.masked_positions[here])
