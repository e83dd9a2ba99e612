"""Masks: right in the mean, nested, keyed, and fixed for ever."""

import numpy as np
import pytest

from mlm.data.keys import mix
from mlm.data.masking import (
    IGNORE_INDEX,
    Candidates,
    mask_candidates,
    mask_rows,
    mask_tokens,
)

SPECIAL, MASK, VOCAB = (0, 1, 2, 3, 4), 4, 1000


def a_row(length: int = 128, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, VOCAB, length)
    ids[rng.integers(0, length, length // 16)] = 1  # [UNK] in the text
    ids[0], ids[length // 3], ids[length // 3 + 1], ids[-1] = 2, 3, 2, 3
    return ids


def masked(ids: np.ndarray, key: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    return mask_tokens(ids, SPECIAL, key, rate, VOCAB, MASK)


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.3, 1.0])
@pytest.mark.parametrize("length", [7, 128])
def test_the_rate_is_right_in_the_mean(rate: float, length: int) -> None:
    ids = a_row(length)
    ordinary = ~np.isin(ids, SPECIAL)
    counts = [(masked(ids, mix(k), rate)[1] != IGNORE_INDEX).sum() for k in range(4000)]
    assert max(counts) - min(counts) <= 1  # the rounding of p * n is all that varies
    assert np.mean(counts) == pytest.approx(rate * ordinary.sum(), abs=0.04)


def test_every_ordinary_token_is_masked_alike_and_special_tokens_never() -> None:
    ids = a_row()
    ordinary = ~np.isin(ids, SPECIAL)
    hits = sum((masked(ids, mix(k), 0.15)[1] != IGNORE_INDEX).astype(int) for k in range(6000))
    assert hits[~ordinary].sum() == 0
    spread = (6000 * 0.15 * 0.85) ** 0.5
    assert np.abs(hits[ordinary] - 900).max() < 5 * spread


def test_weights_prefer_and_change_no_rate() -> None:
    ids = np.array([2, *range(5, 45), 3])
    weights = np.ones(VOCAB)
    weights[5:15], weights[15:25] = 4.0, 0.25
    hits, counts = np.zeros(len(ids)), []
    for k in range(2000):
        chosen = weighted(ids, mix(k), 0.1, weights).positions
        hits[chosen] += 1
        counts.append(len(chosen))
    assert min(counts) == max(counts) == 4
    # The first draw is in proportion; of four, the many alike ones are nearly so.
    often, seldom, others = hits[1:11].mean(), hits[11:21].mean(), hits[21:41].mean()
    assert 2.9 < often / others < 4.3
    assert 0.2 < seldom / others < 0.32
    first = [weighted(ids, mix(k), 0.025, weights).positions[0] for k in range(4000)]
    share = np.mean([1 <= place <= 10 for place in first])
    assert share == pytest.approx(40 / 62.5, abs=4 * (0.64 * 0.36 / 4000) ** 0.5)


def test_weighted_masks_are_nested_and_do_not_depend_on_their_batch() -> None:
    weights = 10.0 ** np.random.default_rng(0).uniform(-6, 6, VOCAB)
    ids = a_row()
    few, many = (set(weighted(ids, 3, p, weights).positions.tolist()) for p in (0.1, 0.4))
    assert few < many
    rows = [a_row(seed=s) for s in range(3)]
    keys = np.array([7, 8, 9], np.uint64)
    sizes = np.array([len(row) for row in rows])
    joint = mask_rows(np.concatenate(rows), sizes, keys, SPECIAL, 0.2, VOCAB, MASK, weights=weights)
    alone = [weighted(row, int(k), 0.2, weights) for row, k in zip(rows, keys, strict=True)]
    expected = np.concatenate([c.positions + 128 * i for i, c in enumerate(alone)])
    assert joint.positions.tolist() == expected.tolist()


def weighted(ids: np.ndarray, key: int, rate: float, weights: np.ndarray) -> Candidates:
    one = np.array([len(ids)]), np.array([key], np.uint64)
    return mask_rows(ids, *one, SPECIAL, rate, VOCAB, MASK, weights=weights)


def test_eighty_ten_ten() -> None:
    ids = a_row()
    kinds = np.zeros(3)
    for k in range(3000):
        c = mask_candidates(ids, SPECIAL, mix(k), 0.3, VOCAB, MASK)
        kept = c.replacements == c.labels
        kinds += [(c.replacements == MASK).sum(), kept.sum(), 0]
        kinds[2] += len(kept) - (c.replacements == MASK).sum() - kept.sum()
        assert not np.isin(c.replacements, [0, 1, 2, 3]).any()
    np.testing.assert_allclose(kinds / kinds.sum(), [0.8, 0.1, 0.1], atol=0.005)


def test_random_ids_cover_the_ordinary_vocabulary_alike() -> None:
    special = (0, 7, 8, 19, 3)  # anywhere, in any order
    ids = np.full(500, 5)
    put_in = np.concatenate(
        [mask_candidates(ids, special, mix(k), 1.0, 20, 7).replacements for k in range(600)]
    )
    random = put_in[(put_in != 7) & (put_in != 5)]
    assert set(random.tolist()) == set(range(20)) - set(special) - {5}
    counts = np.bincount(random)[[i for i in range(20) if i not in (*special, 5)]]
    assert counts.std() / counts.mean() < 0.05


def test_masks_at_lower_rates_are_subsets() -> None:
    ids = a_row()
    for k in range(50):
        highest = mask_candidates(ids, SPECIAL, k, 0.5, VOCAB, MASK)
        assert (np.diff(highest.positions) > 0).all()
        for rate in (0.0, 0.01, 0.15, 0.3, 0.499):
            lower = mask_candidates(ids, SPECIAL, k, rate, VOCAB, MASK)
            chosen = highest.thresholds <= np.float32(rate)
            for name in ("positions", "labels", "replacements", "thresholds"):
                np.testing.assert_array_equal(getattr(highest, name)[chosen], getattr(lower, name))


def test_fixed_by_the_key_and_fresh_by_the_key() -> None:
    ids = a_row()
    once, again, other = masked(ids, 7, 0.15), masked(ids, 7, 0.15), masked(ids, 8, 0.15)
    np.testing.assert_array_equal(once, again)
    both = ((once[1] != IGNORE_INDEX) & (other[1] != IGNORE_INDEX)).sum()
    assert both < 10


def test_mask_tokens_puts_the_candidates_in() -> None:
    ids = a_row().astype(np.uint16)
    c = mask_candidates(ids, SPECIAL, 3, 0.15, VOCAB, MASK)
    new_ids, labels = masked(ids, 3, 0.15)
    np.testing.assert_array_equal(new_ids[c.positions], c.replacements)
    np.testing.assert_array_equal(labels[c.positions], ids[c.positions])
    untouched = labels == IGNORE_INDEX
    np.testing.assert_array_equal(new_ids[untouched], ids[untouched])
    np.testing.assert_array_equal(ids, a_row())


@pytest.mark.parametrize("ids", [[], [2, 3], [2, 1, 1, 3]])
def test_a_row_without_ordinary_tokens_has_no_mask(ids: list[int]) -> None:
    new_ids, labels = masked(np.array(ids, dtype=np.int64), 0, 1.0)
    assert new_ids.tolist() == ids
    assert (labels == IGNORE_INDEX).all()


def test_rows_masked_together_are_masked_as_each_alone() -> None:
    rows = [a_row(length, length) for length in (7, 128, 30)]
    rows.insert(2, np.array([2, 3]))  # nothing ordinary in it
    rows.insert(3, np.array([], dtype=np.int64))
    keys = np.array([mix(k) for k in range(len(rows))], dtype=np.uint64)
    lengths = np.array([len(row) for row in rows])
    together = mask_rows(np.concatenate(rows), lengths, keys, SPECIAL, 0.3, VOCAB, MASK)
    alone = [
        mask_candidates(ids, SPECIAL, int(key), 0.3, VOCAB, MASK)
        for ids, key in zip(rows, keys, strict=True)
    ]
    shifts = np.cumsum(lengths) - lengths
    positions = [c.positions + shift for c, shift in zip(alone, shifts, strict=True)]
    np.testing.assert_array_equal(together.positions, np.concatenate(positions))
    for name in ("labels", "replacements", "thresholds"):
        expected = np.concatenate([getattr(c, name) for c in alone])
        np.testing.assert_array_equal(getattr(together, name), expected)


def test_ids_above_the_number_of_tokens_are_masked_too() -> None:
    ids = np.array([2, 5, VOCAB + 700, 9, 3], dtype=np.uint16)
    c = mask_candidates(ids, SPECIAL, -1, 1.0, VOCAB, MASK)
    assert c.labels.tolist() == [5, VOCAB + 700, 9]


def test_masks_do_not_change_for_ever() -> None:
    c = mask_candidates(np.arange(2, 34), SPECIAL, 42, 0.3, 40, MASK)
    assert c.positions.tolist() == GOLDEN_POSITIONS
    assert c.labels.tolist() == [p + 2 for p in GOLDEN_POSITIONS]
    assert c.replacements.tolist() == GOLDEN_REPLACEMENTS
    np.testing.assert_allclose(c.thresholds, GOLDEN_THRESHOLDS, rtol=1e-6)


GOLDEN_POSITIONS = [6, 9, 16, 17, 18, 19, 24, 28]
GOLDEN_REPLACEMENTS = [4, 4, 35, 4, 4, 5, 4, 4]
GOLDEN_THRESHOLDS = [
    *(0.19751215, 0.025098359, 0.059581116, 0.26647767),
    *(0.23199491, 0.094063878, 0.16302939, 0.12854664),
]
