"""Looking words up gives the tokenizer's own ids, in order, from any number of processes."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

import mlm.data.encoding as encoding
from mlm.data.encoding import TextEncoder, encode_batches, id_type, text_hash
from mlm.data.tokenizer import KINDS, ROLES, train_tokenizer, treatment_of_spaces

WORDS = (
    "the quick brown naïve Straße İΣΑΣ 你好 カタカナ हिन्दी สวัสดี 👨‍👩‍👧 it😀😀 [MASK] "
    "don't 3.14 _x \u0301e"
)
# Runs of spaces are tokens of their own, also where a line ends with them.
TEXTS = [
    WORDS,
    WORDS.upper(),
    " ".join(reversed(WORDS.split())),
    "a\nb\tc\u00a0d\u3000e",
    "  a   \n    b  \n\n   \t  c   ",
]


def trained(kind: str, lowercase: bool) -> Tokenizer:
    """As a store's is read: the last bits of a unigram's scores, which break ties, change then."""
    found = train_tokenizer(TEXTS * 9, kind, 400, lowercase, strip_accents=lowercase)
    return Tokenizer.from_str(found.to_str())


_TOKENIZERS = {
    (kind, lowercase): trained(kind, lowercase) for kind in KINDS for lowercase in (True, False)
}


def berts_own() -> Tokenizer:
    """As google's: control characters dropped, ideographs set apart by the normalizer."""
    ours = _TOKENIZERS["wordpiece", True]
    tokenizer = Tokenizer(models.WordPiece(vocab=ours.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(clean_text=True, lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(ROLES.values()))
    return tokenizer


_TOKENIZERS["bert", True] = berts_own()


def a_foreign_tokenizer() -> Tokenizer:
    vocab = {name: i for i, name in enumerate([*ROLES.values(), "▁a", "▁b", "▁", "a", "b"])}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(list(ROLES.values()))
    return tokenizer


def plainly(tokenizer: Tokenizer, text: str) -> list[int]:
    """What the tokenizer says, special tokens in the text being text."""
    tokenizer.encode_special_tokens = True
    return tokenizer.encode(text, add_special_tokens=False).ids


texts = st.lists(
    st.one_of(
        st.sampled_from(WORDS.split()),
        st.sampled_from(
            [" ", "  ", "   ", "\n", "\n\n", "\t", "\r", "\u00a0", "\x1c", "\x85", "\u2028"]
        ),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0"), max_size=4),
    ),
    max_size=12,
).map("".join)


@pytest.mark.parametrize("which", _TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(batches=st.lists(st.lists(texts, min_size=1, max_size=4), min_size=1, max_size=3))
def test_ids_are_the_tokenizers(which, batches):
    tokenizer = _TOKENIZERS[which]
    assert treatment_of_spaces(tokenizer) == (
        "kept" if which[0] in ("bpe", "unigram") else "dropped"
    )
    encoder = TextEncoder(tokenizer)
    for batch in batches:
        encoded = encoder(batch)
        expected = [plainly(tokenizer, text) for text in batch]
        assert encoded.ids.tolist() == [i for ids in expected for i in ids]
        assert encoded.ends.tolist() == np.cumsum([len(ids) for ids in expected]).tolist()


def test_runs_of_spaces_are_tokens_also_before_a_line_ends():
    tokenizer = _TOKENIZERS["bpe", False]
    runs = [token for token in tokenizer.get_vocab() if set(token) == {"Ġ"} and len(token) > 1]
    assert runs
    for text in ("a   \nb", "a   ", "a  b   \n   ", "   \t b"):
        assert TextEncoder(tokenizer)([text]).ids.tolist() == plainly(tokenizer, text)


def test_tokenizers_that_may_join_words_see_whole_texts():
    tokenizer = a_foreign_tokenizer()
    assert treatment_of_spaces(tokenizer) is None
    more = Tokenizer.from_str(_TOKENIZERS["bpe", True].to_str())
    more.add_tokens(["two words"])
    assert treatment_of_spaces(more) is None
    for other in (tokenizer, more):
        encoded = TextEncoder(other)(["a b two words", "[MASK] a"])
        assert encoded.ids.tolist() == [
            *plainly(other, "a b two words"),
            *plainly(other, "[MASK] a"),
        ]


def test_forgetting_changes_nothing(monkeypatch):
    monkeypatch.setattr(encoding, "_REMEMBERED", 10)
    tokenizer = _TOKENIZERS["wordpiece", True]
    encoder = TextEncoder(tokenizer)
    for text in TEXTS * 2:
        assert encoder([text]).ids.tolist() == plainly(tokenizer, text)


def test_the_parting_character_in_a_text_harms_nothing():
    tokenizer = _TOKENIZERS["wordpiece", True]
    encoded = TextEncoder(tokenizer)(["the \ufdd0 quick", "brown"])
    assert encoded.ids.tolist() == plainly(tokenizer, "the \ufffd quick") + plainly(
        tokenizer, "brown"
    )


def test_counts():
    encoded = TextEncoder(_TOKENIZERS["bpe", False], seed=3)(["naïve  the\nquick", "x"])
    assert encoded.characters.tolist() == [16, 1]
    assert encoded.bytes.tolist() == [17, 1]
    assert encoded.words.tolist() == [3, 1]
    assert encoded.hashes.tolist() == [text_hash("naïve  the\nquick", 3), text_hash("x", 3)]


def test_hashes_do_not_change_for_ever():
    assert text_hash("a document", 0) == GOLDEN_HASH
    assert text_hash("a document", 1) != GOLDEN_HASH


@pytest.mark.parametrize(("size", "dtype"), [(256, "uint8"), (257, "uint16"), (65537, "uint32")])
def test_the_smallest_type(size, dtype):
    vocab = {str(i): i for i in range(size)}
    assert id_type(Tokenizer(models.WordPiece(vocab=vocab, unk_token="0"))) == dtype


@pytest.mark.parametrize("processes", [1, 3])
def test_batches_come_back_in_order(processes):
    tokenizer = _TOKENIZERS["wordpiece", True]
    batches = [(i, [f"the {i}", WORDS * (i % 7)]) for i in range(40)]
    found = list(encode_batches(iter(batches), tokenizer, processes))
    assert [tag for tag, _ in found] == list(range(40))
    encoder = TextEncoder(tokenizer)
    for (_, texts), (_, encoded) in zip(batches, found, strict=True):
        for ours, theirs in zip(encoded, encoder(texts), strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype


def test_few_batches_are_in_flight():
    taken = 0

    def batches():
        nonlocal taken
        for taken in range(1, 1001):
            yield taken, ["the quick brown"]

    found = encode_batches(batches(), _TOKENIZERS["wordpiece", True], 2)
    for _ in range(5):
        next(found)
    assert taken <= 12
    found.close()


PROCESS = Path("/proc/self/task")


def children() -> set[int]:
    return set(map(int, (PROCESS / f"{os.getpid()}/children").read_text().split()))


@pytest.mark.skipif(not PROCESS.exists(), reason="reads /proc")
def test_a_worker_that_dies_is_an_error_and_none_is_left():
    before = children()
    found = encode_batches(((i, [WORDS]) for i in range(1000)), _TOKENIZERS["bpe", True], 2)
    next(found)
    workers = children() - before
    assert len(workers) == 2
    os.kill(workers.pop(), signal.SIGKILL)
    with pytest.raises(RuntimeError, match="ended with code -9"):
        list(found)
    deadline = time.monotonic() + 10
    while children() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children() == before


GOLDEN_HASH = 9605232426743613657
