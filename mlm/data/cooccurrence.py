"""Word vectors from what stands near what: where the words of a fresh model begin.

Which tokens occur in the same places can be counted in seconds, where gradients need thousands of
steps to find it out. Factors of the positive pointwise mutual information are what word2vec comes
near to (https://papers.nips.cc/paper/5477; https://aclanthology.org/Q15-1016 for the settings).

Shapes: ``V`` tokens, ``D`` the vectors' width.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from scipy import sparse

from mlm.data.store import TokenSplit

# How many places to each side count as near.
_WINDOW = 4
# How often something is near counts to this power, or rare tokens would seem to belong together.
_SMOOTHING = 0.75
# Of the iteration for the largest singular values.
_ITERATIONS = 4


def word_vectors(split: TokenSplit, size: int, width: int, seed: int) -> np.ndarray:
    """(V, D) float32: tokens that occur in the same places have vectors that point the same way.

    What nothing is known of has 0s; the mean of the others' squared lengths is 1.

    Args:
        split: the documents; a sample of 32 M tokens at most is read.
        size: V.
        width: D; where V or what is known of the tokens is less, the rest is 0 before a rotation
            spreads everything over all of the width.
        seed: of the rotation, and of the numbers that the factors are found with.
    """
    from sklearn.utils.extmath import randomized_svd  # takes a second to import

    information = positive_information(cooccurrences(split, size))
    kept = min(width, size - 1)
    left, values, _ = randomized_svd(information, kept, n_iter=_ITERATIONS, random_state=seed)
    turned = np.random.default_rng(seed).standard_normal((width, width))
    rotation = np.linalg.qr(turned)[0][:kept]
    vectors = (left * np.sqrt(values)) @ rotation
    known = np.diff(information.indptr) > 0
    vectors[~known] = 0  # not a rounding of it
    length = np.sqrt(np.square(vectors).sum() / max(known.sum(), 1))
    return (vectors / max(length, 1e-12)).astype(np.float32)


def cooccurrences(split: TokenSplit, size: int) -> sparse.csr_array:
    """(V, V) float32: how often two tokens stand near each other, d places apart as 1/d.

    Args:
        split: the documents, which do not see each other.
        size: V.
    """
    counts = sparse.csr_array((size, size), dtype=np.float32)
    for start, stop in split.stretches(16, 1 << 21):
        ids = split.tokens(start, stop).astype(np.int32)
        first, last = bisect_right(split.ends, start), bisect_right(split.ends, stop - 1)
        ends = split.ends[first : last + 1]
        document = np.searchsorted(ends, np.arange(start, stop), side="right")
        pairs = [_pairs(ids, document, distance) for distance in range(1, _WINDOW + 1)]
        left, right, near = map(np.concatenate, zip(*pairs, strict=True))
        counts += sparse.coo_array((near, (left, right)), shape=(size, size)).tocsr()
    return sparse.csr_array(counts + counts.T)


def _pairs(
    ids: np.ndarray, document: np.ndarray, distance: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens ``distance`` places apart in one document, and what each pair counts."""
    same = document[:-distance] == document[distance:]
    left, right = ids[:-distance][same], ids[distance:][same]
    return left, right, np.full(len(left), 1 / distance, dtype=np.float32)


def positive_information(counts: sparse.csr_array) -> sparse.csr_array:
    """(V, V): log p(a, b) / (p(a) p(b)) where that is above 0; the p(b) are smoothed.

    Args:
        counts: (V, V), of the two standing near each other.

    >>> beside = sparse.csr_array([[0.0, 4.0, 0.0], [4.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    >>> np.round(positive_information(beside).toarray().astype(float), 2).tolist()
    [[0.0, 0.85, 0.0], [0.8, 0.0, 0.0], [0.0, 0.16, 0.85]]
    """
    pairs = counts.tocoo()
    often = counts.sum(axis=1)
    smoothed = often**_SMOOTHING
    smoothed /= max(smoothed.sum(), 1e-12)
    row, column = pairs.coords
    information = np.log(pairs.data / often[row] / smoothed[column])
    known = information > 0
    positive = information[known], (row[known], column[known])
    return sparse.csr_array(sparse.coo_array(positive, shape=counts.shape), dtype=np.float32)
