"""Which tokens of a row are masked, and by what: a function of (ids, key) alone.

`mask_rows` does many rows at once, which is many times faster than one after another.

BERT's recipe: of the chosen tokens 80 % become [MASK], 10 % a random ordinary token and 10 % stay
(https://arxiv.org/abs/1810.04805). Every token has a keyed score, and at rate p the
floor(p * n + u) lowest of n ordinary tokens are masked, where u in [0, 1) comes from the key too.
So the rate is right in the mean to a fraction of a token, and masks at a lower rate are subsets of
those at a higher one: a batch made for the highest rate serves every rate below it.

Whole words or spans are masked the same way: units have the scores then, and one of s tokens with c
tokens in the units below it is masked exactly if p * n >= c + (1 - u) * s. The one unit that p * n
falls into is so masked with the probability that is missing, and p * n tokens in the mean.

Tokens may have weights, by which they are preferred: the score of weight w is then -log(u) / w, so
that of what is left each next one is drawn with a probability in proportion to its weight
(https://doi.org/10.1016/j.ipl.2005.11.003). Rates stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlm.data.keys import mix_each, uniforms, words
from mlm.data.masking_units import UNITS, Joints, unit_starts

IGNORE_INDEX = -100
"""The label of what is not predicted; PyTorch's cross entropy skips it."""

_SCORE, _ROUNDING, _RECIPE, _RANDOM_ID, _SPAN = range(5)  # what a draw is for: one key each


@dataclass(frozen=True)
class Candidates:
    """The ``m`` tokens that are masked at the highest rate, in ascending position."""

    positions: np.ndarray
    """(m,) int64: where in the ids."""
    labels: np.ndarray
    """(m,) int64: the ids that stand there, which are to be predicted."""
    replacements: np.ndarray
    """(m,) int64: the ids that are put there."""
    thresholds: np.ndarray
    """(m,) float32: masked at rate p exactly if threshold <= p, compared in float32."""


def mask_rows(
    ids: np.ndarray,
    lengths: np.ndarray,
    keys: np.ndarray,
    special_ids: Sequence[int],
    max_rate: float,
    vocab_size: int,
    mask_id: int,
    unit: str = "token",
    joints: Joints | None = None,
    weights: np.ndarray | None = None,
) -> Candidates:
    """What is masked in each row at any rate up to ``max_rate``.

    Args:
        ids: (T,) integers: all rows end to end, special tokens included.
        lengths: (B,) how many of them each row has.
        keys: (B,) uint64: names each row's mask.
        special_ids: the ids that are never masked and never put in.
        max_rate: the highest share of ordinary tokens to mask, in [0, 1].
        vocab_size: random ids are drawn from below it.
        mask_id: the id of [MASK].
        unit: what is masked together, a key of `mlm.data.masking_units.UNITS`.
        joints: which ids go together in words; for any unit but `token`.
        weights: (vocab_size,) above 0, by which ids are preferred; a unit has its tokens' mean.
    """
    specials = sorted({int(i) for i in special_ids})
    # A tokenizer may leave gaps, and so have ids above its number of tokens.
    special = np.zeros(max(ids.max(initial=0), *specials, vocab_size) + 1, dtype=bool)
    special[specials] = True
    ordinary = np.flatnonzero(~special[ids])
    starts = np.cumsum(lengths) - lengths
    row = np.repeat(np.arange(len(lengths)), lengths)[ordinary]
    place = ordinary - starts[row]  # a row's mask does not depend on where the row stands
    counts = np.bincount(row, minlength=len(lengths))  # n of each row

    unit_row, unit_place, sizes = row, place, None  # None: each unit is one token
    unit_weights = None if weights is None else weights[ids[ordinary]]
    if (breaks := UNITS[unit]) is not None:
        assert joints is not None
        first = unit_starts(breaks, joints, ids, ordinary, row, mix_each(keys, _SPAN)[row], place)
        unit_row, unit_place = row[first], place[first]
        sizes = np.diff(first, append=len(ordinary))
        if unit_weights is not None and len(first):
            unit_weights = np.add.reduceat(unit_weights, first) / sizes
    # Sorted by row, then by score: the row goes into the topmost bits.
    bits = np.uint64(len(lengths).bit_length())
    score = words(mix_each(keys, _SCORE)[unit_row], unit_place)
    if unit_weights is not None:
        score = _preferring(unit_weights, score)
    score >>= bits
    order = np.argsort(score | (unit_row.astype(np.uint64) << (np.uint64(64) - bits)))
    # The token of rank j is among the floor(p * n + u) lowest exactly if p >= (j + 1 - u) / n.
    width = 1 if sizes is None else sizes[order]
    upto = np.arange(1, len(order) + 1) if sizes is None else np.cumsum(width)
    u = uniforms(mix_each(keys, _ROUNDING), np.zeros(len(lengths), np.int64))
    rank = upto - (np.cumsum(counts) - counts)[unit_row]
    thresholds = (rank - width * u[unit_row]) / counts[unit_row]
    threshold_of = np.empty(len(order), np.float32)
    threshold_of[order] = thresholds
    if sizes is not None:
        threshold_of = np.repeat(threshold_of, sizes)

    chosen = np.flatnonzero(threshold_of <= np.float32(max_rate))
    positions, row, place = ordinary[chosen], row[chosen], place[chosen]
    labels = ids[positions].astype(np.int64)
    recipe = uniforms(mix_each(keys, _RECIPE)[row], place)
    draws = uniforms(mix_each(keys, _RANDOM_ID)[row], place)
    random_ids = _ordinary_ids(draws, specials, vocab_size)
    replacements = np.where(recipe < 0.8, mask_id, np.where(recipe < 0.9, random_ids, labels))
    return Candidates(positions, labels, replacements, threshold_of[chosen])


def mask_candidates(
    ids: np.ndarray,
    special_ids: Sequence[int],
    key: int,
    max_rate: float,
    vocab_size: int,
    mask_id: int,
) -> Candidates:
    """What is masked in one row, named by ``key``; arguments as for `mask_rows`."""
    lengths, keys = np.array([len(ids)]), np.array([key % 2**64], dtype=np.uint64)
    return mask_rows(ids, lengths, keys, special_ids, max_rate, vocab_size, mask_id)


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


def _preferring(weights: np.ndarray, score: np.ndarray) -> np.ndarray:
    """uint64 scores that are the lower, the larger their weights; from uniform ones."""
    uniform = ((score >> np.uint64(11)) + 0.5) * 2.0**-53
    drawn = -np.log(uniform) / weights
    # In the same order, but within [0, 1): nothing is lost where weights are far from 1.
    return np.minimum(drawn / (1.0 + drawn) * 2.0**64, 2.0**64 - 2048).astype(np.uint64)


def _ordinary_ids(draws: np.ndarray, specials: Sequence[int], vocab_size: int) -> np.ndarray:
    """Uniform ids from the vocabulary without ``specials``, one for each draw in [0, 1)."""
    specials = [special for special in specials if special < vocab_size]
    drawn = (draws * (vocab_size - len(specials))).astype(np.int64)
    for special in specials:  # ascending: step over each special id that is not above
        drawn += drawn >= special
    return drawn
