"""Word vectors counted from a store: what stands near what, and which tokens are alike."""

import numpy as np
import pytest

from mlm.data.cooccurrence import cooccurrences, positive_information, word_vectors
from mlm.data.prepare import PrepareOptions, prepare
from mlm.data.store import TokenSplit, TokenStore
from mlm.data.tokenizer import load_tokenizer


def prepared(folder, texts, vocab_size: int) -> TokenStore:
    corpus = folder / "corpus.txt"
    corpus.write_text("\n\n".join(texts))
    asked = PrepareOptions(
        corpus=[str(corpus)], output=str(folder / "store"), vocab_size=vocab_size
    )
    prepare(asked)
    return TokenStore.open(folder / "store")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    """Texts of up to 60 words, the common ones more often."""
    draw = np.random.default_rng(0)
    words = np.array([f"{a}{b}" for a in "bdfgklmn" for b in "aeiou"])
    lengths = draw.integers(1, 60, 300)
    texts = [" ".join(words[draw.zipf(1.5, n) % len(words)]) for n in lengths]
    return prepared(tmp_path_factory.mktemp("cooccurrence"), texts, 90)


@pytest.fixture
def split(store) -> TokenSplit:
    return store.split("train")


@pytest.fixture
def size(store) -> int:
    return store.vocab_size


def pair_by_pair(split: TokenSplit, size: int) -> np.ndarray:
    """What `cooccurrences` counts, in plain loops."""
    counts = np.zeros((size, size))
    starts = [0, *split.ends[:-1].tolist()]
    for start, end in zip(starts, split.ends[:].tolist(), strict=True):
        ids = split.tokens(start, end).tolist()
        for i, first in enumerate(ids):
            for j in range(i + 1, min(i + 5, len(ids))):
                counts[first, ids[j]] += 1 / (j - i)
                counts[ids[j], first] += 1 / (j - i)
    return counts


def test_pairs_of_one_document_count_by_their_distance(split, size, monkeypatch):
    whole = [(0, split.num_tokens)]
    monkeypatch.setattr(TokenSplit, "stretches", lambda *_: whole)
    found = cooccurrences(split, size).toarray()
    assert found == pytest.approx(pair_by_pair(split, size), rel=1e-4)
    assert found == pytest.approx(found.T)


def test_a_sample_in_stretches_loses_only_pairs_across_their_ends(split, size):
    found, all_pairs = cooccurrences(split, size).toarray(), pair_by_pair(split, size)
    # Stretches may share a token with the next, so some few pairs count twice.
    assert abs(found - all_pairs).sum() < 0.03 * all_pairs.sum()


def test_stretches_cover_a_short_split_and_sample_a_long_one(split):
    covered = np.zeros(split.num_tokens, dtype=bool)
    for start, stop in split.stretches(16, 1 << 21):
        covered[start:stop] = True
    assert covered.all()
    few = split.stretches(4, 10)
    assert [stop - start for start, stop in few] == [10] * 4
    assert few[0][0] == 0
    assert few[-1][1] == split.num_tokens


def test_information_is_that_of_its_definition(split, size):
    counts = cooccurrences(split, size)
    dense = counts.toarray().astype(np.float64)
    often = dense.sum(1)
    near = often**0.75 / (often**0.75).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.log(dense / often[:, None] / near)
    expected = np.where(dense > 0, np.maximum(expected, 0), 0)
    assert positive_information(counts).toarray() == pytest.approx(expected, abs=1e-4)


def test_vectors_are_factors_of_the_information(split, size):
    vectors = word_vectors(split, size, size - 1, seed=0)
    known = vectors.any(1)
    assert known.sum() == (cooccurrences(split, size).sum(1) > 0).sum()
    assert np.square(vectors[known]).sum(1).mean() == pytest.approx(1, rel=1e-5)
    # Of M = U S Vᵀ the vectors are U √S, turned: their products are U S Uᵀ, the root of M Mᵀ.
    matrix = positive_information(cooccurrences(split, size)).toarray().astype(np.float64)
    values, sides = np.linalg.eigh(matrix @ matrix.T)
    root = sides * np.sqrt(np.maximum(values, 0)) @ sides.T
    products = (vectors @ vectors.T).astype(np.float64)
    assert products / np.trace(products) == pytest.approx(root / np.trace(root), abs=1e-4)


def test_the_seed_turns_them_and_changes_no_angle(split, size):
    ones, same = (word_vectors(split, size, size - 1, seed=1) for _ in range(2))
    others = word_vectors(split, size, size - 1, seed=2)
    assert (ones == same).all()
    assert abs(ones - others).max() > 0.01
    assert ones @ ones.T == pytest.approx(others @ others.T, abs=1e-3)


def test_tokens_of_the_same_places_are_near_and_unseen_ones_nowhere(tmp_path):
    animals, drinks = ("cat", "dog", "cow"), ("tea", "milk", "wine")
    draw = np.random.default_rng(0)
    texts = []
    for _ in range(600):
        animal = draw.random() < 0.5
        words, (before, after) = (animals, ("the", "runs")) if animal else (drinks, ("some", "is"))
        texts.append(" ".join(f"{before} {draw.choice(words)} {after}" for _ in range(8)))
    store = prepared(tmp_path, texts, 200)
    tokenizer = load_tokenizer(store.tokenizer_dir)
    vectors = word_vectors(store.split("train"), store.vocab_size, 8, seed=0)
    assert not vectors[tokenizer.token_to_id("[MASK]")].any()
    ids = [tokenizer.encode(word, add_special_tokens=False).ids for word in animals + drinks]
    assert [len(found) for found in ids] == [1] * 6
    rows = vectors[[found[0] for found in ids]]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    assert cosines[:3, :3].min() > 0.9
    assert cosines[3:, 3:].min() > 0.9
    assert cosines[:3, 3:].max() < 0.5


@pytest.mark.parametrize("width", [2, 64, 500])
def test_any_width_will_do(split, size, width):
    vectors = word_vectors(split, size, width, seed=0)
    assert vectors.shape == (size, width)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()


def test_texts_of_one_token_say_nothing(tmp_path):
    store = prepared(tmp_path, list("abcdefghijklmnopqrstuvwxyz"), 60)
    split = store.split("train")
    assert split.num_tokens == split.num_documents
    assert not word_vectors(split, store.vocab_size, 8, seed=0).any()
