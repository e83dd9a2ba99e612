"""Masked language modelling: guess the tokens behind a mask (https://arxiv.org/abs/1810.04805).

The collator chooses candidates at the highest rate of the run and leaves the ids as they are;
`at_rate` then masks those that the present rate takes. So the rate may follow the wall clock, and
loader workers need not know it.

Shapes: ``T`` tokens in all, ``M`` candidates or masked positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mlm.batch import MULTIPLE, Batch, end_to_end
from mlm.data.masking import IGNORE_INDEX, mask_rows
from mlm.data.masking_units import Joints
from mlm.data.pairs import Pair
from mlm.model.heads import MaskedLanguageModel, asked_for
from mlm.objectives.cross_entropy import (
    projected_cross_entropy,
    projects_in_pieces,
    summed_cross_entropy,
)
from mlm.objectives.sums import Loss, Score


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of a tokenizer."""

    size: int
    """Number of ids."""
    cls: int
    """Id of [CLS]."""
    sep: int
    """Id of [SEP]."""
    mask: int
    """Id of [MASK]."""
    special: tuple[int, ...]
    """All special ids: never masked, never a random replacement."""
    joints: Joints | None = None
    """Which ids go together in words; only to mask words or spans."""
    weights: np.ndarray | None = None
    """(size,) by which ids are preferred; see `mask_rows`."""


def collate(
    rows: Sequence[Sequence[np.ndarray | Pair]],
    keys: Sequence[int],
    vocabulary: Vocabulary,
    max_rate: float,
    still_length: int | None = None,
    unit: str = "token",
    first_row: int | None = None,
) -> Batch:
    """Rows of documents' pieces → one ragged batch with its masking candidates.

    Args:
        rows: for each row the ordinary ids of its sequences, or pairs; [CLS] and [SEP] are added
            here.
        keys: for each row the key of its mask.
        vocabulary: ids that masking must know.
        max_rate: the highest rate that `at_rate` will be asked for.
        still_length: the length of a full row, to make shapes stand still for `torch.compile`: the
            batch is filled up to rows · length tokens by sequences of their own without candidates,
            and the number of sequences up to a coarse step by empty ones.
        unit: what is masked together, a key of `mlm.data.masking_units.UNITS`.
        first_row: the number of the first row in its step, for `Batch.rows`; not with
            ``still_length``.
    """
    # A window that holds nothing but [CLS] and [SEP] of its documents is a row of no sequences.
    sequences = [sequence for row in rows for sequence in row]
    cls, sep = np.array([vocabulary.cls]), np.array([vocabulary.sep])
    framed = [part for sequence in sequences for part in _framed(sequence, cls, sep)]
    lengths = [_length(sequence) for sequence in sequences]
    row_lengths = np.array([sum(map(_length, row)) for row in rows])
    ids = np.concatenate(framed, dtype=np.int64)
    candidates = mask_rows(
        ids,
        row_lengths,
        np.array(keys, dtype=np.uint64),
        vocabulary.special,
        max_rate,
        vocabulary.size,
        vocabulary.mask,
        unit,
        vocabulary.joints,
        vocabulary.weights,
    )
    if still_length is not None:
        missing = len(rows) * still_length - len(ids)
        whole, rest = divmod(missing, still_length)
        lengths += [still_length] * whole + ([rest] if rest else [])
        ids = np.concatenate([ids, np.full(missing, vocabulary.sep)])
    batch = end_to_end(ids, np.array(lengths))
    if any(isinstance(sequence, Pair) for sequence in sequences):
        batch = _with_pairs(batch, sequences)
    if first_row is not None:
        counts = torch.tensor([len(row) for row in rows])
        numbers = torch.arange(first_row, first_row + len(rows))
        batch = replace(batch, rows=numbers.repeat_interleave(counts))
    if still_length is not None:
        step = max(8, len(rows) // 4)
        empty = -batch.num_sequences % step
        batch = replace(
            batch,
            cu_seqlens=F.pad(batch.cu_seqlens, (0, empty), value=batch.num_tokens),
            max_seqlen=still_length,
            pair_labels=_filled(batch.pair_labels, empty),
        )
    return replace(
        batch,
        masked_positions=torch.from_numpy(candidates.positions),
        labels=torch.from_numpy(candidates.labels),
        replacements=torch.from_numpy(candidates.replacements),
        mask_thresholds=torch.from_numpy(candidates.thresholds),
    )


def at_rate(batch: Batch, rate: float, capacity: int | None = None) -> Batch:
    """Mask ``batch`` at ``rate``: the candidates whose thresholds are at most ``rate``.

    Args:
        batch: from `collate`.
        rate: share of the ordinary tokens to mask, at most `collate`'s ``max_rate``.
        capacity: a number of masked positions that stands still for `torch.compile`, and that no
            device has to count. Without it there are as many as are taken, and up to a multiple of
            `MULTIPLE`, since the projection to the vocabulary is the widest product of all.

    Returns:
        A batch with masked `input_ids`, and `masked_positions` and `labels` of those alone. At the
        end, and with ``capacity`` where a candidate is not taken, the position is 0 and the label
        `IGNORE_INDEX`.
    """
    assert batch.masked_positions is not None
    assert batch.mask_thresholds is not None
    assert batch.replacements is not None
    assert batch.labels is not None
    positions, labels = batch.masked_positions, batch.labels
    taken = batch.mask_thresholds <= rate
    input_ids = batch.input_ids.index_copy(
        0, positions, torch.where(taken, batch.replacements, labels)
    )
    if capacity is None:
        positions, labels = positions[taken], labels[taken]
        capacity = positions.numel() + -positions.numel() % MULTIPLE
    else:
        positions = torch.where(taken, positions, 0)
        labels = torch.where(taken, labels, IGNORE_INDEX)
    missing = (0, capacity - positions.numel())
    positions, labels = F.pad(positions, missing), F.pad(labels, missing, value=IGNORE_INDEX)
    return replace(
        batch,
        input_ids=input_ids,
        masked_positions=positions,
        labels=labels,
        replacements=None,
        mask_thresholds=None,
    )


def loss(model: MaskedLanguageModel, batch: Batch) -> Loss:
    """The loss of ``model`` on a batch that `at_rate` has masked."""
    return loss_of(model, model.encoder(batch), batch)


def loss_of(model: MaskedLanguageModel, hidden: Tensor, batch: Batch) -> Loss:
    """As `loss`, with the encoder's output (T, D) given."""
    assert batch.labels is not None
    hidden = asked_for(hidden, batch)
    weight = model.encoder.embeddings.word.weight
    if projects_in_pieces(weight):
        total = projected_cross_entropy(*model.unprojected(hidden), batch.labels)
    else:
        total = summed_cross_entropy(model.head(hidden, weight), batch.labels)
    return Loss(total, (batch.labels != IGNORE_INDEX).sum())


@torch.no_grad()
def score(model: MaskedLanguageModel, batch: Batch) -> Score:
    """How well ``model`` does on a batch that `at_rate` has masked."""
    labels = batch.labels
    assert labels is not None
    logits = model(batch)
    return Score(
        summed_cross_entropy(logits, labels),
        (labels != IGNORE_INDEX).sum(),
        (logits.argmax(-1) == labels).sum(),
    )


def _framed(sequence: np.ndarray | Pair, cls: np.ndarray, sep: np.ndarray) -> list[np.ndarray]:
    if isinstance(sequence, Pair):
        return [cls, sequence.first, sep, sequence.second, sep]
    return [cls, sequence, sep]


def _length(sequence: np.ndarray | Pair) -> int:
    if isinstance(sequence, Pair):
        return len(sequence.first) + len(sequence.second) + 3
    return len(sequence) + 2


def _with_pairs(batch: Batch, sequences: Sequence[np.ndarray | Pair]) -> Batch:
    """``batch`` with the token types and labels of its sequences that are pairs."""
    types = torch.zeros_like(batch.input_ids)
    labels = torch.full((batch.num_sequences,), IGNORE_INDEX)
    for number, sequence in enumerate(sequences):
        if isinstance(sequence, Pair):
            stop = int(batch.cu_seqlens[number + 1])
            types[stop - len(sequence.second) - 1 : stop] = 1
            labels[number] = int(sequence.follows)
    return replace(batch, token_type_ids=types, pair_labels=labels)


def _filled(labels: Tensor | None, missing: int) -> Tensor | None:
    """Labels for sequences that hold nothing, too."""
    return None if labels is None else F.pad(labels, (0, missing), value=IGNORE_INDEX)
