"""Smaller batches and shorter sequences while a run is young: pure functions of a batch.

Loaders make whole batches, and a step takes what its share of the budget allows: so a ramp may
follow the wall clock, and no loader process need know it. What stands at a place of the stream does
not depend on ramps.

Shapes: ``T`` tokens in all, ``N`` sequences, ``M`` masking candidates.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mlm.batch import Batch, end_to_end

# Lengths go up by so many tokens: a kernel likes even ones.
_GRAIN = 8


def ramped(start: int | None, end: int, progress: float, ramp: float, grain: int = 1) -> int:
    """A size that rises in a line from ``start`` to ``end`` over the first ``ramp`` of the run.

    Args:
        start: at progress 0; None is ``end``.
        end: from progress ``ramp`` on.
        progress: share of the budget spent, in [0, 1].
        ramp: share of the budget over which the size rises, above 0.
        grain: it is a multiple of it until it is ``end``.

    >>> [ramped(16, 64, p, ramp=0.5) for p in (0.0, 0.25, 0.5, 1.0)]
    [16, 40, 64, 64]
    """
    if start is None or progress >= ramp:
        return end
    size = start + (end - start) * progress / ramp
    return max(start, int(size // grain) * grain)


def ramped_length(start: int | None, end: int, progress: float, ramp: float) -> int:
    """As `ramped`, for lengths of sequences."""
    return ramped(start, end, progress, ramp, _GRAIN)


def row_ranks(rows: int) -> np.ndarray:
    """(rows,) int64: the rank of each row of a batch; a batch of k takes the ranks below k.

    By their bits reversed (https://en.wikipedia.org/wiki/Van_der_Corput_sequence), so that
    neighbouring rows, which are one device's, are taken as evenly as can be.

    >>> row_ranks(8).tolist()
    [0, 4, 2, 6, 1, 5, 3, 7]
    """
    bits = max(1, (rows - 1).bit_length())
    reverse = [int(f"{row:0{bits}b}"[::-1], 2) for row in range(rows)]
    return np.argsort(np.argsort(np.array(reverse)))


def fewest_rows(batch_size: int, parts: int) -> int:
    """The least number of rows that leaves each of ``parts`` equal parts of a batch one."""
    return int(row_ranks(batch_size).reshape(parts, -1).min(axis=1).max()) + 1


def with_rows(batch: Batch, keep: np.ndarray) -> Batch:
    """The sequences of some rows.

    Args:
        batch: from `masked_lm.collate`, with `rows`.
        keep: (rows of a step,) bool, one of the batch's at least.
    """
    assert batch.rows is not None
    chosen = keep[batch.rows.numpy()]
    if chosen.all():
        return batch
    lengths = batch.sequence_lengths.numpy()
    tokens = np.repeat(chosen, lengths)
    kept = end_to_end(batch.input_ids.numpy()[tokens], lengths[chosen])
    types, pairs = batch.token_type_ids, batch.pair_labels
    kept = replace(
        kept,
        rows=batch.rows[torch.from_numpy(chosen)],
        token_type_ids=None if types is None else types[torch.from_numpy(tokens)],
        pair_labels=None if pairs is None else pairs[torch.from_numpy(chosen)],
    )
    return _with_candidates(kept, batch, tokens)


def with_length(batch: Batch, length: int, cls: int, sep: int) -> Batch:
    """Sequences above ``length`` tokens in pieces of it; as many tokens in all as before.

    Where one piece ends and the next begins a [SEP] and a [CLS] take the places of two tokens. A
    rest too short for a token between them stays with the piece before it.

    Args:
        batch: from `masked_lm.collate`, without pairs.
        length: the most tokens of a sequence, or 2 more; at least 8.
        cls: id of [CLS].
        sep: id of [SEP].
    """
    assert batch.pair_labels is None, "a pair is not cut"
    lengths = batch.sequence_lengths.numpy().astype(np.int64)
    pieces = np.maximum(1, -(-(lengths - 2) // length))
    if (pieces == 1).all():
        return batch
    first = np.repeat(batch.cu_seqlens[:-1].numpy(), pieces)
    number = np.arange(len(first)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = first + number * length
    cuts = starts[number > 0]
    ids = batch.input_ids.numpy().copy()
    ids[cuts], ids[cuts - 1] = cls, sep
    kept = np.ones(len(ids), bool)
    kept[cuts] = kept[cuts - 1] = False
    rows = None if batch.rows is None else batch.rows.repeat_interleave(torch.from_numpy(pieces))
    cut = replace(end_to_end(ids, np.diff(starts, append=len(ids))), rows=rows)
    return _with_candidates(cut, batch, kept, moved=False)


def _with_candidates(batch: Batch, before: Batch, kept: np.ndarray, moved: bool = True) -> Batch:
    """``batch`` with those masking candidates of ``before`` that stand at ``kept`` tokens.

    Args:
        batch: what is left of ``before``.
        before: with candidates.
        kept: (T,) bool, of the tokens before.
        moved: whether the others are gone, so that those behind them have moved up.
    """
    positions = before.masked_positions
    assert positions is not None
    chosen = torch.from_numpy(kept)[positions]
    places = positions[chosen]
    if moved:
        places = (torch.from_numpy(kept).cumsum(0) - 1)[places]
    return replace(
        batch,
        masked_positions=places,
        labels=_chosen(before.labels, chosen),
        replacements=_chosen(before.replacements, chosen),
        mask_thresholds=_chosen(before.mask_thresholds, chosen),
    )


def _chosen(values: Tensor | None, chosen: Tensor) -> Tensor | None:
    return None if values is None else values[chosen]
