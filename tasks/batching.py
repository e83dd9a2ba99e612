"""Which examples go into a batch together: pure functions of lengths, places and a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlm.data.order import stream_row

# Tokens at once where nothing is learned; small enough for attention over 512 tokens on a laptop.
EVALUATION_TOKENS = 16_384


def pool_rows(pool: int, lengths: np.ndarray, size: int, seed: int) -> np.ndarray:
    """The ``size`` examples at places pool·size … of the stream, shortest first.

    Batches cut from a pool hold examples of like lengths, which is what attention on padded
    sequences needs; which pool an example is in is as random as ever.

    Args:
        pool: number of the pool, from 0.
        lengths: (examples,) tokens of each.
        size: places in a pool.
        seed: names the stream.

    Returns:
        (size,) int64 numbers of examples.
    """
    places = range(pool * size, (pool + 1) * size)
    rows = np.array([stream_row(place, len(lengths), seed)[0] for place in places])
    return rows[np.argsort(lengths[rows], kind="stable")]


def length_batches(lengths: Sequence[int] | np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """All examples in batches of like lengths, longest first, none above ``max_tokens`` padded.

    An example that is longer than that has a batch of its own.

    >>> [batch.tolist() for batch in length_batches([5, 1, 4, 2], max_tokens=8)]
    [[0], [2, 3], [1]]
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches, start = [], 0
    while start < len(order):
        stop = start + max(1, max_tokens // int(lengths[order[start]]))
        batches.append(order[start:stop])
        start = stop
    return batches
