"""Rows: every token exactly once, never too long, hardly anything wasted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlm.data.packing import num_rows, row_spans


def rows_of(lengths: list[int], row_length: int) -> list[list[tuple[int, int]]]:
    ends = np.cumsum(lengths)
    return [row_spans(ends, r, row_length) for r in range(num_rows(ends, row_length))]


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60), row_length=st.integers(3, 50))
def test_every_token_exactly_once_and_boundaries_kept(lengths: list[int], row_length: int) -> None:
    rows = rows_of(lengths, row_length)
    spans = [span for row in rows for span in row]
    assert [t for start, stop in spans for t in range(start, stop)] == list(range(sum(lengths)))
    document = np.repeat(np.arange(len(lengths)), lengths)
    assert all(document[start] == document[stop - 1] for start, stop in spans)
    assert all(start < stop for start, stop in spans)
    assert max(sum(stop - start + 2 for start, stop in row) for row in rows) <= row_length
    assert rows[-1]
    if row_length >= 5:
        assert all(rows)


@pytest.mark.parametrize("mean", [25, 4000])
@pytest.mark.parametrize("row_length", [128, 512])
def test_waste_is_below_one_per_cent(mean: int, row_length: int) -> None:
    rng = np.random.default_rng(0)
    lengths = np.maximum(1, rng.lognormal(np.log(mean) - 0.5, 1.0, 2_000_000 // mean)).astype(int)
    ends = np.cumsum(lengths)
    rows = num_rows(ends, row_length)
    sample = [
        sum(stop - start + 2 for start, stop in row_spans(ends, r, row_length))
        for r in rng.integers(0, rows - 1, 2000).tolist()
    ]
    assert 1 - np.mean(sample) / row_length < 0.01


def test_a_row_too_short_for_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="row_length"):
        num_rows(np.array([4]), 2)


def test_no_documents_no_rows() -> None:
    assert num_rows(np.array([], dtype=np.int64), 128) == 0


def test_rows_do_not_change_for_ever() -> None:
    assert rows_of([4, 1, 9, 2], 8) == [[(0, 4)], [(4, 5), (5, 7)], [(7, 13)], [(13, 14), (14, 16)]]
