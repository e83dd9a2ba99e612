"""Pairs of texts: cut where sentences end, half of them false, none beyond its row."""

import numpy as np
import pytest

from mlm.data.pairs import Pair, PairReader, cuts, sentence_endings
from mlm.data.tokenizer import train_tokenizer

STOP = 9
ENDINGS = np.arange(100) == STOP


class Documents:
    """Documents as a split has them."""

    def __init__(self, documents):
        self.ids = np.concatenate([np.array(d) for d in documents])
        self.ends = np.cumsum([len(d) for d in documents])

    def tokens(self, start, stop):
        return self.ids[start:stop]


def documents(count=40, seed=0):
    """Each of sentences of tokens that are its own: 10 + its number."""
    rng = np.random.default_rng(seed)
    return [
        np.concatenate([[10 + d] * n + [STOP] for n in rng.integers(1, 9, rng.integers(1, 9))])
        for d in range(count)
    ]


def pairs(negatives, length=32, seeds=20):
    split = Documents(documents())
    reader = PairReader(split, ENDINGS, negatives)
    for row in range(len(split.ids) // length):
        for key in range(seeds):
            parts = reader(row, length, key)
            assert (
                sum(
                    len(p.first) + len(p.second) + 3 if isinstance(p, Pair) else len(p) + 2
                    for p in parts
                )
                <= length
            )
            found = [part for part in parts if isinstance(part, Pair)]
            assert len(found) <= 1
            yield from found


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_what_ends_a_sentence(kind):
    tokenizer = train_tokenizer(
        ["Is it? It is! It was. Well … or so 3.5"] * 3, kind, vocab_size=300
    )
    endings = sentence_endings(tokenizer, tokenizer.get_vocab_size())
    names = {tokenizer.id_to_token(int(i)).lstrip("Ġ▁") for i in np.flatnonzero(endings)}
    assert {".", "!", "?"} <= names
    assert all(set(name) <= set(".!?…âĢ¦") for name in names)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])  # a unigram of so little has bytes alone
def test_sentences_of_wide_characters_end_too(kind):
    text = "今日は良い天気です。本当に\uff1f はい\uff01 そう…"
    tokenizer = train_tokenizer([text] * 9, kind, vocab_size=500)
    endings = sentence_endings(tokenizer, tokenizer.get_vocab_size())
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert sum(endings[ids]) == 4


def test_cuts_stand_between_sentences():
    ids = np.array([5, 6, STOP, 7, STOP, STOP, STOP, 8, STOP])
    assert cuts(ids, ENDINGS).tolist() == [3, 7]
    assert cuts(ids[:1], ENDINGS).tolist() == []
    assert cuts(ids[:0], ENDINGS).tolist() == []


def test_swapped_parts_are_the_same_tokens():
    found = list(pairs("swapped"))
    for pair in found:
        assert len(pair.first) > 0
        assert len(pair.second) > 0
        first = pair.first if pair.follows else pair.second
        assert first[-1] == STOP
    follows = [pair.follows for pair in found]
    assert len(found) > 500
    assert abs(np.mean(follows) - 0.5) < 4 * (0.25 / len(found)) ** 0.5


def test_another_document_is_another_one():
    found = list(pairs("another"))
    owners = [({*p.first.tolist()} - {STOP}, {*p.second.tolist()} - {STOP}) for p in found]
    assert all(len(a) <= 1 and len(b) <= 1 for a, b in owners)
    for pair, (a, b) in zip(found, owners, strict=True):
        if a and b:  # neither is a stop alone
            assert (a == b) == pair.follows
    follows = [pair.follows for pair in found]
    assert abs(np.mean(follows) - 0.5) < 4 * (0.25 / len(found)) ** 0.5
    others = {n for pair, (_, b) in zip(found, owners, strict=True) if not pair.follows for n in b}
    assert len(others) > 30  # of all documents


def test_a_pair_follows_from_its_key():
    split = Documents(documents())
    reader = PairReader(split, ENDINGS, "another")
    a, b = reader(3, 32, 7), reader(3, 32, 7)
    assert [str(x) for x in a] == [str(x) for x in b]
    assert len({str(reader(3, 32, key)) for key in range(20)}) > 5


def test_one_sentence_makes_no_pair():
    split = Documents([[11, 12, 13, STOP], [14, 15, STOP]])
    parts = PairReader(split, ENDINGS, "swapped")(0, 32, 0)
    assert [p.tolist() for p in parts] == [[11, 12, 13, STOP], [14, 15, STOP]]
