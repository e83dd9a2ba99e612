"""Randomness as a pure function of a key: SplitMix64, written out.

Order and masks must be the same tomorrow, on every machine and with every NumPy, so they use
this arithmetic and no library's generator. SplitMix64 passes BigCrush and needs one 64-bit state:
https://doi.org/10.1145/2714064.2660195
"""

from __future__ import annotations

import numpy as np

from mlm.errors import UserError

_BITS = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def check_seed(seed: int) -> None:
    """Refuse a seed that torch cannot hold.

    Raises:
        UserError: it is negative, or has more than 63 bits.
    """
    if not 0 <= seed < 1 << 63:
        raise UserError(f"seed: {seed} must lie between 0 and 2^63 - 1")


def scramble(word: int) -> int:
    """SplitMix64's output function: a bijection of 64-bit integers in which every bit counts."""
    word &= _BITS
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _BITS
    return word ^ (word >> 31)


def mix(*values: int) -> int:
    """One 64-bit key from any number of integers; their order counts.

    >>> mix(1, 2) == mix(1, 2), mix(1, 2) == mix(2, 1), mix(1) == mix(1, 0)
    (True, False, False)
    """
    key = 0
    for value in values:
        key = scramble((key + _GOLDEN) ^ scramble(value + _GOLDEN))
    return key


def mix_each(keys: np.ndarray, value: int) -> np.ndarray:
    """``mix(key, value)`` of each key, uint64, shaped like ``keys``.

    >>> mix_each(np.array([7, 8], np.uint64), 5).tolist() == [mix(7, 5), mix(8, 5)]
    True
    """
    golden = np.uint64(_GOLDEN)
    first = _scramble(np.uint64(_GOLDEN) ^ _scramble(keys.astype(np.uint64) + golden))
    return _scramble((first + golden) ^ np.uint64(scramble(value + _GOLDEN)))


def words(key: int | np.ndarray, places: np.ndarray) -> np.ndarray:
    """uint64, shaped like ``places``: those outputs (from 0) of SplitMix64 seeded with ``key``.

    Args:
        key: one for all places, or uint64 shaped like ``places``, one for each.
        places: integers from 0.
    """
    state = places.astype(np.uint64)
    state += np.uint64(1)  # unsigned NumPy arithmetic wraps, which is what is wanted
    state *= np.uint64(_GOLDEN)
    state += np.uint64(key & _BITS) if isinstance(key, int) else key
    return _scramble(state)


def uniforms(key: int | np.ndarray, places: np.ndarray) -> np.ndarray:
    """Float64 in [0, 1), shaped like ``places``, 53 random bits each; arguments as for `words`."""
    return (words(key, places) >> np.uint64(11)) * 2.0**-53


def _scramble(state: np.ndarray) -> np.ndarray:
    """`scramble` of each word, in place."""
    state ^= state >> np.uint64(30)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state
