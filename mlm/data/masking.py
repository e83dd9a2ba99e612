"""Which tokens of a row are masked, and by what: a function of (ids, key) alone.

BERT's recipe: of the chosen tokens 80 % become [MASK], 10 % a random ordinary token and 10 % stay
(https://arxiv.org/abs/1810.04805). Every token has a keyed score, and at rate p the
floor(p * n + u) lowest of n ordinary tokens are masked, where u in [0, 1) comes from the key too.
So the rate is right in the mean to a fraction of a token, and masks at a lower rate are subsets of
those at a higher one: a batch made for the highest rate serves every rate below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlm.data.keys import mix, uniform, uniforms, words

IGNORE_INDEX = -100
"""The label of what is not predicted; PyTorch's cross entropy skips it."""

_SCORE, _ROUNDING, _RECIPE, _RANDOM_ID = range(4)  # what a draw is for: one key each


@dataclass(frozen=True)
class Candidates:
    """The ``m`` tokens of a row that are masked at the highest rate, in ascending position."""

    positions: np.ndarray
    """(m,) int64: where in the row."""
    labels: np.ndarray
    """(m,) int64: the ids that stand there, which are to be predicted."""
    replacements: np.ndarray
    """(m,) int64: the ids that are put there."""
    thresholds: np.ndarray
    """(m,) float32: masked at rate p exactly if threshold <= p, compared in float32."""


def mask_candidates(
    ids: np.ndarray,
    special_ids: Sequence[int],
    key: int,
    max_rate: float,
    vocab_size: int,
    mask_id: int,
) -> Candidates:
    """What is masked in one row at any rate up to ``max_rate``.

    Args:
        ids: (T,) integers: all sequences of the row end to end, special tokens included.
        special_ids: the ids that are never masked and never put in.
        key: names the mask.
        max_rate: the highest share of ordinary tokens to mask, in [0, 1].
        vocab_size: ids are below it.
        mask_id: the id of [MASK].
    """
    specials = sorted({int(i) for i in special_ids})
    ids = np.asarray(ids, dtype=np.int64)
    special = np.zeros(ids.shape, dtype=bool)
    for i in specials:  # a handful of comparisons is faster than np.isin on one row
        special |= ids == i
    ordinary = np.flatnonzero(~special)
    n = len(ordinary)

    # The token of rank j is among the floor(p * n + u) lowest exactly if p >= (j + 1 - u) / n.
    u = uniform(mix(key, _ROUNDING))
    thresholds = ((np.arange(1, n + 1) - u) / max(n, 1)).astype(np.float32)
    m = int(np.searchsorted(thresholds, np.float32(max_rate), side="right"))
    by_score = np.argsort(words(mix(key, _SCORE), ordinary))[:m]
    order = np.argsort(by_score)
    positions = ordinary[by_score[order]]

    labels = ids[positions]
    recipe = uniforms(mix(key, _RECIPE), positions)
    random_ids = _ordinary_ids(uniforms(mix(key, _RANDOM_ID), positions), specials, vocab_size)
    replacements = np.where(recipe < 0.8, mask_id, np.where(recipe < 0.9, random_ids, labels))
    return Candidates(positions, labels, replacements, thresholds[:m][order])


def mask_tokens(
    ids: np.ndarray,
    special_ids: Sequence[int],
    key: int,
    rate: float,
    vocab_size: int,
    mask_id: int,
) -> tuple[np.ndarray, np.ndarray]:
    """One row masked at one rate; arguments as for `mask_candidates`.

    Returns:
        (T,) int64 ids with replacements put in, and (T,) int64 labels, `IGNORE_INDEX` elsewhere.
    """
    chosen = mask_candidates(ids, special_ids, key, rate, vocab_size, mask_id)
    masked = np.array(ids, dtype=np.int64)
    labels = np.full_like(masked, IGNORE_INDEX)
    masked[chosen.positions] = chosen.replacements
    labels[chosen.positions] = chosen.labels
    return masked, labels


def _ordinary_ids(draws: np.ndarray, specials: Sequence[int], vocab_size: int) -> np.ndarray:
    """Uniform ids from the vocabulary without ``specials``, one for each draw in [0, 1)."""
    specials = [special for special in specials if special < vocab_size]
    drawn = (draws * (vocab_size - len(specials))).astype(np.int64)
    for special in specials:  # ascending: step over each special id that is not above
        drawn += drawn >= special
    return drawn
