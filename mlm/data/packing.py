"""Documents to rows of at most N tokens, boundaries kept, with nothing stored.

Imagine every document as ``[CLS] tokens [SEP]``, all laid end to end: a stream of
``tokens + 2 * documents`` places. Row ``r`` is the window ``[r * (N - 2), (r + 1) * (N - 2))``
of that stream. Each document with ordinary tokens in the window gives one sequence
``[CLS] those tokens [SEP]``; at most the two documents cut by the window's ends need a special
token that is not in the window, so a row has at most N tokens, nearly always N - 2 or more.
Every token is in exactly one row.

``ends`` is, for each document in order, the number of tokens up to its end; documents are never
empty. A row is found in it by binary search.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Protocol, SupportsInt, overload

import numpy as np


class Ends(Protocol):
    """What packing asks of ``ends``: an int64 array, or a view that acts like one."""

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, index: int) -> SupportsInt: ...
    @overload
    def __getitem__(self, index: slice) -> np.ndarray: ...


class Split(Protocol):
    """Documents as token ids: a split of a token store, or anything that acts like one."""

    @property
    def ends(self) -> Ends:
        """Tokens up to the end of each document."""

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """The ids from ``start`` up to ``stop``, counted over the whole split."""


def num_rows(ends: Ends, row_length: int) -> int:
    """How many rows of at most ``row_length`` tokens the documents fill.

    Raises:
        ValueError: ``row_length`` is below 3, the least that holds a token between its specials.
    """
    window = _window(row_length)
    documents = len(ends)
    places = int(ends[documents - 1]) + 2 * documents if documents else 0
    # The last place is a [SEP], and rows add their own: alone in a window it would make no row.
    return -(-(places - 1) // window) if documents else 0


def row_spans(ends: Ends, index: int, row_length: int) -> list[tuple[int, int]]:
    """The sequences of row ``index`` as (start, stop) in the split's token coordinates.

    Each span becomes ``[CLS] tokens[start:stop] [SEP]``; a row of spans has
    ``sum(stop - start + 2) <= row_length`` tokens.  Only a window that holds nothing but the
    end of one document and the start of the next, possible below ``row_length`` 5, is empty.

    >>> row_spans(np.array([4, 6]), 0, row_length=8)  # [CLS] a b c d [SEP] | [CLS] e f [SEP]
    [(0, 4)]
    >>> row_spans(np.array([4, 6]), 1, row_length=8)
    [(4, 6)]
    """
    window = _window(row_length)
    low, high = index * window, (index + 1) * window
    documents = len(ends)
    # Document d fills stream places [ends[d - 1] + 2 d, ends[d] + 2 d + 2).
    first = bisect_right(range(documents), low, key=lambda d: int(ends[d]) + 2 * d + 2)
    last = min(first + window // 3 + 2, documents)  # a whole document takes three places or more
    stops = ends[first:last]
    begin = int(ends[first - 1]) if first else 0
    starts = np.concatenate(([begin], stops[:-1]))
    # A token t of document d stands at place t + 2 d + 1: the window in token coordinates.
    shift = 2 * np.arange(first, last) + 1
    starts = np.maximum(starts, low - shift)
    stops = np.minimum(stops, high - shift)
    kept = starts < stops
    return list(zip(starts[kept].tolist(), stops[kept].tolist(), strict=True))


def _window(row_length: int) -> int:
    if row_length < 3:
        raise ValueError(f"row_length must be at least 3 ([CLS], a token, [SEP]), not {row_length}")
    return row_length - 2
