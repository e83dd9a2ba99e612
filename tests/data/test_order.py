"""The order of rows: a permutation, keyed, fixed for ever."""

import time

import numpy as np
import pytest

from mlm.data.keys import mix, uniforms
from mlm.data.order import permute, stream_row


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 97, 256, 257, 1000, 1024, 9973])
@pytest.mark.parametrize("key", [0, 1, 2**63])
def test_permute_is_a_bijection(size: int, key: int) -> None:
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


def test_permute_is_a_bijection_of_any_size_up_to_200() -> None:
    for size in range(1, 200):
        assert len({permute(i, size, key=size) for i in range(size)}) == size


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_outside_is_an_error(index: int) -> None:
    with pytest.raises(IndexError):
        permute(index, 5, key=0)


@pytest.mark.parametrize("size", [2, 3, 6, 10, 24])
def test_every_element_lands_everywhere_alike(size: int) -> None:
    keys = 1500
    counts = np.zeros((size, size))
    for key in range(keys):
        for i in range(size):
            counts[i, permute(i, size, mix(key))] += 1
    expected = keys / size
    chi_squared = ((counts - expected) ** 2 / expected).sum(axis=1) / max(size - 1, 1)
    assert chi_squared.max() < 1 + 5 * (2 / max(size - 1, 1)) ** 0.5


def test_neighbours_are_torn_apart_and_epochs_differ() -> None:
    size = 5000
    first = np.array([stream_row(g, size, seed=3)[0] for g in range(size)])
    second = np.array([stream_row(g, size, seed=3)[0] for g in range(size, 2 * size)])
    for order in (first, second):
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
        assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.05
        assert (np.abs(np.diff(order)) == 1).mean() < 0.002
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
    assert (first == second).mean() < 0.002


def test_the_stream_goes_on_for_ever() -> None:
    rows, epochs = zip(*(stream_row(g, 7, seed=0) for g in range(21)), strict=True)
    assert epochs == (0,) * 7 + (1,) * 7 + (2,) * 7
    for epoch in range(3):
        assert sorted(rows[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert [stream_row(g, 7, seed=1)[0] for g in range(7)] != list(rows[:7])


def test_permute_is_cheap_at_any_size() -> None:
    start = time.perf_counter()
    for i in range(1000):
        permute(i, 10**12 + 39, key=5)
    assert time.perf_counter() - start < 0.5


def test_order_does_not_change_for_ever() -> None:
    assert [permute(i, 10, key=42) for i in range(10)] == GOLDEN_ORDER
    assert stream_row(123_456_789, 1_000_003, seed=17) == GOLDEN_ROW


def test_keys_do_not_change_for_ever() -> None:
    assert mix() == 0
    assert mix(1, 2, 3) == GOLDEN_KEY
    assert mix(-1) == mix(2**64 - 1)
    # The published test vector of SplitMix64 seeded with 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    np.testing.assert_array_equal(
        uniforms(1234567, np.arange(3)), [(w >> 11) / 2**53 for w in expected]
    )


def test_uniforms_are_uniform() -> None:
    draws = uniforms(mix(9), np.arange(100_000))
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, bins=50, range=(0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 100


GOLDEN_ORDER = [6, 2, 5, 9, 1, 8, 0, 4, 3, 7]
GOLDEN_ROW = (284533, 123)
GOLDEN_KEY = 17824878756907967
