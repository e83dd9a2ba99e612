"""Words and spans: what they are for each kind of tokenizer, and that their masks are fair."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from mlm.data.keys import mix, mix_each
from mlm.data.masking import IGNORE_INDEX, mask_rows
from mlm.data.masking_units import LONGEST_UNIT, UNITS, Joints, find_joints, unit_starts
from mlm.data.tokenizer import num_ids, special_ids, train_tokenizer

TEXTS = ["The unbelievable catamarans, read by 1234 antidisestablishmentarians.", "a b c"]
WORDS = "the unbelievable catamarans , read by 1234 antidisestablishmentarians . a b c"


def split(tokenizer, text, unit="word", key=0):
    """The texts of the units of ``text``."""
    ids = np.array(tokenizer.encode(text).ids)
    special = np.array(special_ids(tokenizer).ids)
    ordinary = np.flatnonzero(~np.isin(ids, special))
    starts = unit_starts(
        UNITS[unit],
        find_joints(tokenizer, num_ids(tokenizer)),
        ids,
        ordinary,
        np.zeros(len(ordinary), np.int64),
        np.full(len(ordinary), mix(key), np.uint64),
        ordinary,
    )
    return [
        tokenizer.decode(part.tolist()).strip().lower()
        for part in np.split(ids[ordinary], starts[1:])
    ]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_words_are_those_of_the_text(kind):
    texts, size = (
        TEXTS * 3 + list("abcdefghijklmnopqrstuvwxyz1234"),
        80 if kind == "wordpiece" else 280,
    )
    tokenizer = train_tokenizer(texts, kind, vocab_size=size)
    for text, expected in zip(TEXTS, (WORDS.split()[:-3], WORDS.split()[-3:]), strict=True):
        assert len(tokenizer.encode(text).ids) > len(expected)  # words have several tokens
        joined = [word for part in split(tokenizer, text) for word in [part.replace(" ", "")]]
        cut = [word for word in expected if len(word) <= LONGEST_UNIT]
        assert [word for word in joined if word in cut] == cut
        assert "".join(joined) == "".join(expected)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_what_is_written_without_spaces_is_cut_at_each_letter_or_sooner(kind):
    tokenizer = train_tokenizer(["東京都に住む人"] * 5 + ["tokyo"], kind, vocab_size=300)
    assert len(split(tokenizer, "東京都に住む")) >= 3
    assert split(tokenizer, "東") == ["東"]  # its bytes stay together


def test_a_plain_unigram_vocabulary_marks_spaces_its_own_way():
    pieces = [("<unk>", 0.0), ("▁the", -1.0), ("re", -1.0), ("▁", -1.0), (",", -1.0), ("都", -1.0)]
    joints = find_joints(Tokenizer(models.Unigram(pieces, 0)), 6)
    assert joints.follows.tolist() == [False, False, True, False, False, False]
    assert joints.goes_on.tolist() == [False, True, True, False, False, False]


def test_an_old_bpe_marks_where_words_end():
    vocabulary = {"re": 0, "ad</w>": 1, "by</w>": 2}
    joints = find_joints(Tokenizer(models.BPE(vocabulary, [], end_of_word_suffix="</w>")), 3)
    assert joints.follows.all()
    assert joints.goes_on.tolist() == [True, False, False]


LETTERS = Joints(np.arange(100) >= 50, np.ones(100, bool))
"""Ids from 50 on go on with a word."""
SPECIAL, MASK = (0, 1, 2, 3, 4), 4


def a_row(seed=0, length=200):
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 100, length)
    ids[0], ids[length // 2], ids[-1] = 2, 3, 3
    return ids


def words_of(ids):
    """The places of each word, by the rule itself."""
    found = []
    for place, token in enumerate(ids):
        if token < 5:
            found.append(None)
        elif token >= 50 and found and found[-1] is not None and len(found[-1]) < LONGEST_UNIT:
            found[-1].append(place)
        else:
            found.append([place])
    return [word for word in found if word]


def masked_by(ids, key, rate, unit, max_rate=None):
    found = mask_rows(
        ids,
        np.array([len(ids)]),
        np.array([mix(key)], np.uint64),
        SPECIAL,
        max_rate or rate,
        100,
        MASK,
        unit,
        LETTERS,
    )
    labels = np.full(len(ids), IGNORE_INDEX)
    chosen = found.thresholds <= np.float32(rate)
    labels[found.positions[chosen]] = found.labels[chosen]
    return labels != IGNORE_INDEX


def test_words_are_masked_whole_or_not_at_all():
    ids = a_row()
    words = words_of(ids)
    assert max(map(len, words)) > 3
    for key in range(50):
        masked = masked_by(ids, key, 0.15, "word")
        for word in words:
            assert masked[word].all() or not masked[word].any()
        assert not masked[ids < 5].any()


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("rate", [0.15, 0.5, 1.0])
def test_each_token_is_masked_as_often(unit, rate):
    ids = a_row()
    hits = sum(masked_by(ids, key, rate, unit).astype(int) for key in range(3000))
    ordinary = ids >= 5
    spread = (3000 * rate * (1 - rate)) ** 0.5
    # A word of w tokens is in or out as one: the noise of its tokens is the same noise.
    assert np.abs(hits[ordinary] - 3000 * rate).max() <= 5 * spread
    assert hits[ordinary].mean() == pytest.approx(3000 * rate, rel=0.01)


@pytest.mark.parametrize("unit", ["word", "span"])
def test_masks_at_lower_rates_are_subsets(unit):
    ids = a_row()
    for key in range(30):
        high = masked_by(ids, key, 0.3, unit)
        low = masked_by(ids, key, 0.15, unit, max_rate=0.3)
        assert (high | ~low).all()
        assert (low == masked_by(ids, key, 0.15, unit)).all()


def test_spans_are_geometric_in_words():
    ids = np.full(20_000, 7)  # each a word
    count = len(ids)
    row, places = np.zeros(count, np.int64), np.arange(count)
    keys = np.full(count, mix(1), np.uint64)
    starts = unit_starts(UNITS["span"], LETTERS, ids, places, row, keys, places)
    lengths = np.diff(starts, append=count)
    assert lengths.mean() == pytest.approx(3.8, rel=0.05)
    share = 1 / 3.8
    for length in (1, 2, 5):
        expected = share * (1 - share) ** (length - 1)
        assert (lengths == length).mean() == pytest.approx(expected, abs=0.015)
    assert lengths.max() <= LONGEST_UNIT


@pytest.mark.parametrize("unit", ["word", "span"])
def test_rows_masked_together_are_masked_as_each_alone(unit):
    rows = [a_row(seed, length) for seed, length in enumerate((7, 90, 40))]
    rows.insert(1, np.array([2, 3]))
    keys = mix_each(np.arange(4, dtype=np.uint64), 5)
    lengths = np.array([len(row) for row in rows])
    more = (SPECIAL, 0.3, 100, MASK, unit, LETTERS)
    together = mask_rows(np.concatenate(rows), lengths, keys, *more)
    starts = np.cumsum(lengths) - lengths
    alone = [
        mask_rows(row, np.array([len(row)]), keys[n : n + 1], *more) for n, row in enumerate(rows)
    ]
    for name in ("labels", "replacements", "thresholds"):
        parts = [getattr(found, name) for found in alone]
        np.testing.assert_array_equal(getattr(together, name), np.concatenate(parts))
    positions = [found.positions + start for found, start in zip(alone, starts, strict=True)]
    np.testing.assert_array_equal(together.positions, np.concatenate(positions))
