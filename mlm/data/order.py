"""Which row comes next: a function of the global row number alone.

There is no permutation array to store, to ship to workers or to restore: a keyed Feistel network
is a bijection that is computed one element at a time.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt

from mlm.data.keys import mix, scramble

_ROUNDS = 8


def permute(index: int, size: int, key: int) -> int:
    """Where ``index`` goes under the permutation of ``range(size)`` that ``key`` names.

    A Feistel network on the pair (index // width, index % width), with addition modulo each half's
    own size, permutes height * width >= size numbers; a result outside ``range(size)`` is sent
    through again until it lands inside ("cycle walking"), which keeps it a bijection.
    https://doi.org/10.1007/3-540-45760-7_9

    Args:
        index: in [0, size).
        size: how many elements, at least 1.
        key: names the permutation.

    >>> sorted(permute(i, 5, key=7) for i in range(5))
    [0, 1, 2, 3, 4]
    """
    if not 0 <= index < size:
        raise IndexError(f"index {index} is outside range({size})")
    width = isqrt(size - 1) + 1
    height = -(-size // width)  # height * width < size + width: nearly every walk ends at once
    round_keys = _round_keys(key)
    while True:
        left, right = divmod(index, width)
        for r in range(0, _ROUNDS, 2):
            left = (left + scramble(round_keys[r] ^ right)) % height
            right = (right + scramble(round_keys[r + 1] ^ left)) % width
        index = left * width + right
        if index < size:
            return index


@lru_cache(maxsize=64)
def _round_keys(key: int) -> tuple[int, ...]:
    return tuple(mix(key, r) for r in range(_ROUNDS))


def stream_row(global_row: int, rows: int, seed: int) -> tuple[int, int]:
    """The row that stands at place ``global_row`` of the endless stream, and its epoch.

    Every epoch visits each of the ``rows`` rows once, in an order of its own.

    Args:
        global_row: 0, 1, 2, …: the running number over all ranks, workers and restarts.
        rows: rows in an epoch, at least 1.
        seed: names the stream.

    Returns:
        (row in [0, rows), epoch from 0).
    """
    epoch, place = divmod(global_row, rows)
    return permute(place, rows, mix(seed, epoch)), epoch
